"""What is held at a time: a container that is frozen, a network that is cut off; until when, and how to give it back.

Pure: `now_ns` (CLOCK_REALTIME) and `mono_ns` (CLOCK_MONOTONIC, which counts from the machine's start, so it goes on
over a restart of the agent and no step of the clock moves it) are handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from stoop.errors import UserError

MAX_HOLDS = 10_000
"""Held at a time at most: beyond it a reversible act is refused. Some 2 KiB of memory each."""

EXPIRING_SHARE = 0.8
"""Of the time to live: when it is said that a hold ends soon."""

SHORTEST_ID = 4
"""Digits of an id that a person must give at least."""

EVERY_HOLD = "*"
"""What `undo` takes for all of them at once."""


class Hold(msgspec.Struct, frozen=True):
    """One reversible act that was done, or was about to be: kept on disk before it is begun.

    `target`: identity, as facts name it. `key`: what of it is held. `until_ns` (CLOCK_REALTIME) and `until_mono_ns`
    (CLOCK_MONOTONIC of `boot_id`): when it is given back, 0 for never. `state`: what the action's `undo` gets.
    `shown`: what a person is told of the target. `told`: that it ends soon was said.
    `evidence_first`: whether its rule wanted evidence before what destroys, which its end may.
    """

    act: str
    run: str
    alert: str
    rule: str
    action: str
    actionner: str
    target: str
    key: str
    boot_id: str
    made_ns: int
    made_mono_ns: int
    until_ns: int
    until_mono_ns: int
    state: dict[str, Any]
    then: str = ""
    shown: dict[str, Any] = {}
    told: bool = False
    evidence_first: bool = False

    def expiring_mono_ns(self) -> int:
        """When it is to be said that it ends soon; 0 for never."""
        if not self.until_mono_ns or self.told:
            return 0
        return self.made_mono_ns + int((self.until_mono_ns - self.made_mono_ns) * EXPIRING_SHARE)


def until(hold: Hold, ttl_ns: int, now_ns: int, mono_ns: int) -> Hold:
    """The same hold, to last for so long from now; 0 for ever."""
    ends = (now_ns + ttl_ns, mono_ns + ttl_ns) if ttl_ns else (0, 0)
    return msgspec.structs.replace(
        hold, until_ns=ends[0], until_mono_ns=ends[1], made_mono_ns=mono_ns if ttl_ns else hold.made_mono_ns, told=False
    )


def lasts_longer(hold: Hold, ttl_ns: int, mono_ns: int) -> bool:
    """Whether another time to live, begun now, would end after the hold does."""
    return bool(hold.until_mono_ns) and (not ttl_ns or mono_ns + ttl_ns > hold.until_mono_ns)


class Table:
    """The holds of now. Not thread-safe."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self._keys: dict[tuple[str, str, str], str] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def __iter__(self) -> Iterator[Hold]:
        return iter(tuple(self._holds.values()))

    def put(self, hold: Hold) -> None:
        """Add it, or what became of it."""
        self._holds[hold.act] = hold
        self._keys[hold.actionner, hold.target, hold.key] = hold.act

    def get(self, act: str) -> Hold | None:
        """The hold of this act."""
        return self._holds.get(act)

    def of(self, actionner: str, target: str, key: str) -> Hold | None:
        """Who holds this already."""
        act = self._keys.get((actionner, target, key))
        return self._holds.get(act) if act is not None else None

    def remove(self, act: str) -> None:
        """It is given back. Idempotent."""
        hold = self._holds.pop(act, None)
        if hold is not None and self._keys.get((hold.actionner, hold.target, hold.key)) == act:
            del self._keys[hold.actionner, hold.target, hold.key]

    def due(self, mono_ns: int) -> list[Hold]:
        """Those whose time is over, the longest first."""
        over = [hold for hold in self._holds.values() if hold.until_mono_ns and hold.until_mono_ns <= mono_ns]
        return sorted(over, key=lambda hold: hold.until_mono_ns)

    def expiring(self, mono_ns: int) -> list[Hold]:
        """Those of which it is to be said now that they end soon."""
        return [hold for hold in self._holds.values() if 0 < hold.expiring_mono_ns() <= mono_ns]

    def next_mono_ns(self) -> int:
        """When there is something to do next; 0 for never."""
        times = [at for hold in self._holds.values() for at in (hold.until_mono_ns, hold.expiring_mono_ns()) if at]
        return min(times, default=0)

    def named(self, name: str) -> list[Hold]:
        """Those whose run or act begins so, or all for EVERY_HOLD. Raises UserError for none and for two runs."""
        if name == EVERY_HOLD:
            return list(self._holds.values())
        if len(name) < SHORTEST_ID:
            raise UserError(f"{name!r} is too short for an id", hint=f"give {SHORTEST_ID} digits or more of it")
        found = [hold for hold in self._holds.values() if hold.run.startswith(name) or hold.act.startswith(name)]
        if not found:
            raise UserError(f"nothing is held by {name}", hint="`stoop active` lists what is held")
        if len({hold.run for hold in found}) > 1:
            runs = ", ".join(sorted({hold.run[:12] for hold in found}))
            raise UserError(f"{name} is the beginning of several ids: {runs}", hint="give more digits")
        return found


def shown(holds: Iterable[Hold], mono_ns: int, troubles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The form that `stoop active --json` prints: one object a hold, the next to end first.

    `troubles`: by act, why it can't be given back or what somebody else did to it.
    """
    rows = sorted(holds, key=lambda hold: (not hold.until_mono_ns, hold.until_mono_ns))
    return [
        {
            "run": hold.run,
            "act": hold.act,
            "rule": hold.rule,
            "action": hold.action,
            "actionner": hold.actionner,
            "target": hold.shown,
            "since_ns": hold.made_ns,
            "until_ns": hold.until_ns,
            "left_s": max(0.0, (hold.until_mono_ns - mono_ns) / 1e9) if hold.until_mono_ns else None,
            "then": hold.then,
            "trouble": troubles.get(hold.act, ""),
        }
        for hold in rows
    ]
