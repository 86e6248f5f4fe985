"""Records of acts for a person: the one line that `run` and `history` show for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from stoop.cli.screen import OUTCOME_STYLES, duration, plain, target_name

STEPS = ("received", "decided", "acted", "verified")
"""The steps of `timing_us`, in order."""


def record_line(record: Mapping[str, Any]) -> Text:
    """`TIME  done     Kill a shell · process:kill · sh[4711] in default/d34690e67a3a · 430 µs after it was read`.

    Takes the form of `Record.public()`; what is missing is left out.
    """
    outcome = str(record.get("outcome", "?"))
    line = Text()
    at = record.get("time")
    if at:
        line.append(f"{plain(at)}  ", "dim")
    line.append(f"{plain(outcome):<8}", OUTCOME_STYLES.get(outcome, ""))
    line.append(f" {plain(record.get('rule', '?'))}", "bold")
    details = record.get("details") or {}
    what = "undo of " if details.get("undoes") else "evidence of " if details.get("delivers") else ""
    parts = [f"{what}{record.get('actionner', '?')}", target_name(record.get("target") or {})]
    if details.get("delivers"):
        parts.append(f"to {details.get('output', '?')} {details.get('object', '?')}")
    took = since_read(record)
    if took is not None:
        parts.append(f"{duration(took)} after it was read")
    for part in parts:
        line.append(f" · {plain(part)}")
    if reason := record.get("reason"):
        line.append(f" · {plain(reason)}", "italic")
    if repeats := record.get("repeats"):
        line.append(f" · {plain(repeats)} more like it", "dim")
    if record.get("amended"):
        line.append(" · amends an earlier record", "dim")
    return line


def since_read(record: Mapping[str, Any]) -> int | None:
    """Microseconds from reading the alert to the last step that was reached; None when only the reading is known."""
    steps = [record.get("timing_us", {}).get(name) for name in STEPS] if record.get("timing_us") else []
    if not steps or steps[0] is None:
        return None
    later = [step for step in steps[1:] if step is not None]
    return int(later[-1] - steps[0]) if later else None
