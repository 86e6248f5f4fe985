"""One record → one log line: its level and its keys. Pure."""

from __future__ import annotations

from typing import Any

from stoop.record import Record
from stoop.spec import (
    Mode,
    Verdict,
)

EVENT = "act"
"""The constant message of every record's line."""

_LEVELS = {Verdict.REFUSED: "warning", Verdict.EXPIRED: "warning", Verdict.FAILED: "error"}


def level_of(record: Record) -> str:
    """`info` for what went as it should, `warning` for what was not done, `error` for what did not work."""
    return _LEVELS.get(record.verdict, "info")


def fields_of(record: Record) -> dict[str, Any]:
    """The line's keys: always the same ones first; those that say nothing are left out."""
    always = {
        "outcome": str(record.verdict),
        "rule": record.rule,
        "action": record.action,
        "actionner": record.actionner,
        "target": record.target,
        "timing_us": {step: us for step, us in record.timing.since_event_us().items() if us is not None},
    }
    sometimes = {
        "reason": record.reason,
        "mode": "" if record.mode is Mode.ENFORCE else str(record.mode),
        "repeats": record.repeats,
        "amended": record.amends,
        "details": record.details,
        "falco_rule": record.falco_rule,
        "priority": record.priority,
        "output": record.output,
        "alert": record.alert,
        "run": record.run,
        "act": record.act,
    }
    return always | {key: value for key, value in sometimes.items() if value}
