"""Placeholders in parameters: `$FD_NAME` and `${FD_NAME}` stand for what an alert says. Pure.

Names and forms are Talon's (talon.md 4.2): a field's name in capitals, `.` and `[` as `_`, `]` left out; beside these
PRIORITY, HOSTNAME, RULE, SOURCE and TAGS. Unlike Talon nothing else is known: no environment, no earlier alert. What
an alert does not tell is no empty text but a reason not to act: a command or a path without it is another one.

An alert's words are the target's own: whoever uses an expanded text must be safe from whatever is in it.
"""

from __future__ import annotations

import re

from stoop.alert import Alert, text_form
from stoop.errors import TargetRefused

MAX_EXPANDED = 64 * 1024
"""Characters of an expanded text: Falco cuts what it prints of one field far below that."""

MAX_SHOWN = 64
"""Characters of a placeholder's name in an error."""

_PLACEHOLDER = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z0-9_]+)|[*#$@!?-])")
_TO_NAME = str.maketrans({".": "_", "[": "_", "]": None})


def expand(text: str, alert: Alert) -> str:
    """The text with each placeholder replaced. Raises TargetRefused for one that the alert has no value for, and for
    a text that grows too long."""
    if "$" not in text:
        return text
    values = _values(alert)

    def value(found: re.Match[str]) -> str:
        name = found[1] if found[1] is not None else found[2]
        if name is None or name not in values:
            shown = found[0][:MAX_SHOWN]
            raise TargetRefused(f"the alert has no value for {shown!r}: have the Falco rule output that field")
        return values[name]

    expanded = _PLACEHOLDER.sub(value, text)
    if len(expanded) > MAX_EXPANDED:
        raise TargetRefused(f"{text[:MAX_SHOWN]!r} becomes {len(expanded)} characters; the limit is {MAX_EXPANDED}")
    return expanded


def _values(alert: Alert) -> dict[str, str]:
    """By placeholder's name. Null, empty and unknown (`<NA>`) fields have none."""
    own = {
        "PRIORITY": alert.priority_text,
        "HOSTNAME": alert.hostname,
        "RULE": alert.rule,
        "SOURCE": alert.source,
        "TAGS": ",".join(text_form(tag) for tag in alert.sent_tags),
    }
    told = {
        name.upper().translate(_TO_NAME): text_form(value) for name, value in alert.fields.items() if value is not None
    }
    return {name: value for name, value in (told | own).items() if value not in ("", "<NA>")}
