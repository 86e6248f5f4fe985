"""What is kept of one act: one Record each, in the form that the journal, the log and `stoop history` tell. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from stoop.spec import (
    Mode,
    Verdict,
)


class Timing(msgspec.Struct, frozen=True):
    """When, in nanoseconds of CLOCK_REALTIME; 0 where it did not come to that."""

    event_ns: int = 0
    received_ns: int = 0
    decided_ns: int = 0
    acted_ns: int = 0
    verified_ns: int = 0

    def since_event_us(self) -> dict[str, int | None]:
        """Each step in whole microseconds since the event, or None."""
        steps = {
            "received": self.received_ns,
            "decided": self.decided_ns,
            "acted": self.acted_ns,
            "verified": self.verified_ns,
        }
        if not self.event_ns:
            return dict.fromkeys(steps)
        return {name: (at - self.event_ns) // 1000 if at else None for name, at in steps.items()}


class Record(msgspec.Struct, frozen=True):
    """What is kept of one act: `respond` emits exactly one, and one more (`amends`) when it ends differently later,
    or when something followed that is worth telling (`details.restarted_as`: the kubelet started the container again).
    """

    alert: str
    run: str
    act: str
    rule: str
    action: str
    actionner: str
    verdict: Verdict
    reason: str
    target: dict[str, Any]
    timing: Timing
    details: dict[str, Any] = {}
    falco_rule: str = ""
    priority: str = ""
    output: str = ""
    mode: Mode = Mode.ENFORCE
    repeats: int = 0
    amends: bool = False

    @property
    def at_ns(self) -> int:
        """When its last step was, in nanoseconds of CLOCK_REALTIME."""
        timing = self.timing
        return timing.verified_ns or timing.acted_ns or timing.decided_ns or timing.received_ns

    def public(self) -> dict[str, Any]:
        """The form that `stoop history --json` prints: one object a line. `time`: RFC 3339 of its last step."""
        at = datetime.fromtimestamp(self.at_ns // 10**9, UTC)
        return {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{self.at_ns // 1000 % 10**6:06d}Z",
            "alert": self.alert,
            "run": self.run,
            "act": self.act,
            "rule": self.rule,
            "action": self.action,
            "actionner": self.actionner,
            "outcome": str(self.verdict),
            "reason": self.reason,
            "target": self.target,
            "timing_us": self.timing.since_event_us(),
            "falco_rule": self.falco_rule,
            "priority": self.priority,
            "output": self.output,
            "mode": str(self.mode),
            "repeats": self.repeats,
            "amended": self.amends,
            "details": self.details,
        }
