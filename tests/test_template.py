"""Placeholders: what Talon makes of a text where it makes sense, and a reason where the alert does not tell."""

from __future__ import annotations

from typing import Any

import pytest

from stoop.alert import Alert
from stoop.errors import TargetRefused
from stoop.template import MAX_EXPANDED, expand
from stoop.testing import alert_of

FIELDS: dict[str, Any] = {
    "fd_name": "/tmp/a b$RULE",
    "proc_aname[2]": "init",
    "proc_pid": 1234567,
    "evt_args": ["a", "b"],
    "proc_is__exe__upper__layer": True,
    "proc_name": None,
    "user_name": "<NA>",
    "fd_type": "",
}


@pytest.fixture
def alert() -> Alert:
    """One with fields of each kind."""
    return alert_of("A rule", **FIELDS)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("/etc/passwd", "/etc/passwd"),
        ("${FD_NAME}", "/tmp/a b$RULE"),  # once: what an alert says is no text of the rule's author
        ("$FD_NAME.bak", "/tmp/a b$RULE.bak"),
        ("/proc/$PROC_PID/x", "/proc/1.234567e+06/x"),
        ("${PROC_ANAME_2}", "init"),
        ("$EVT_ARGS", "[a b]"),
        ("${PROC_IS_EXE_UPPER_LAYER}", "true"),
        ("$RULE|$SOURCE|$PRIORITY", "A rule|syscall|Notice"),
        ("a$", "a$"),
        ("$(id)", "$(id)"),
        ("$ x $/", "$ x $/"),
    ],
)
def test_as_talon_expands_it(alert: Alert, text: str, expanded: str) -> None:
    assert expand(text, alert) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "$NONE",
        "${NONE}",
        "${PROC_NAME}",
        "$USER_NAME",
        "$FD_TYPE",
        "$PATH",
        "$HOME",
        "${fd.name}",
        "${}",
        "$1",
        "$$",
        "$?",
    ],
)
def test_what_the_alert_does_not_tell_is_no_empty_text(alert: Alert, text: str) -> None:
    with pytest.raises(TargetRefused, match="the alert has no value for"):
        expand(f"/tmp/{text}/x", alert)


def test_it_is_bounded() -> None:
    with pytest.raises(TargetRefused, match="the limit is"):
        expand("$FD_NAME" * 9, alert_of(fd_name="x" * (MAX_EXPANDED // 8)))
