"""Alert + rules + memory + now → what to run.

Pure: no I/O and no clock; `mono_ns` (CLOCK_MONOTONIC) is handed in. One `Memory` belongs to one responder.

The table that everything here follows (Talon's, talon.md 1.7):

    continue of a rule     false → rules after this one are not looked at for this alert
    continue of an action  false → no further action of this rule, whatever the outcome was
    ignore_errors          true  → an error does not by itself end the chain; `continue` is still applied
    dry_run of a rule      true  → everything but the act; counts as success
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from stoop.rules.model import ActionForm

MAX_REMEMBERED = 20_000
"""Acts remembered for de-duplication: at the hard limit of matches a node can act on in a window, a few MiB."""

REPEAT_REPORT_NS = 1_000_000_000
"""How often the count of repeats of one act is told, in nanoseconds."""


def run_id(alert_id: str, rule: str) -> str:
    """The id of one alert × one rule: 32 hex digits."""
    return hashlib.blake2b(f"{alert_id}\0{rule}".encode(), digest_size=16).hexdigest()


def act_id(run: str, index: int, repeat: int = 0) -> str:
    """The id of one step of a run: 32 hex digits. `repeat` tells a reported repetition from the act itself."""
    return hashlib.blake2b(f"{run}\0{index}\0{repeat}".encode(), digest_size=16).hexdigest()


def undo_id(act: str) -> str:
    """The id of what gives back what this act took: 32 hex digits."""
    return hashlib.blake2b(f"{act}\0undo".encode(), digest_size=16).hexdigest()


def delivery_id(act: str) -> str:
    """The id of what sends the evidence of this act: 32 hex digits."""
    return hashlib.blake2b(f"{act}\0delivery".encode(), digest_size=16).hexdigest()


def should_continue(action: ActionForm, is_error: bool) -> bool:
    """Whether the next action of the same rule is to be run."""
    if is_error and not action.ignore_errors:
        return False
    return action.continue_


class Repeat(msgspec.Struct, frozen=True):
    """An act that was seen before. `first`: report it as skipped; `due`: tell the new count of repeats now."""

    original: str  # the act that it repeats
    count: int
    first: bool
    due: bool


class _Remembered:
    __slots__ = ("act", "count", "restored", "since_ns", "told_ns")

    def __init__(self, act: str, mono_ns: int, restored: bool) -> None:
        self.act = act
        self.since_ns = mono_ns
        self.told_ns = mono_ns
        self.count = 0
        self.restored = restored


class Memory:
    """What was done lately, so that nothing is done twice.

    Two keys for each act: its own id (the same alert delivered again, for as long as it is remembered) and
    (rule, target, index) within `window_ns` from the first one, not sliding (Talon:
    `deduplication.time_window_seconds`). Eviction: the oldest goes first when MAX_REMEMBERED is reached.
    """

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self._acts: OrderedDict[str, _Remembered] = OrderedDict()
        self._targets: OrderedDict[tuple[str, str, int], _Remembered] = OrderedDict()
        self._untold: dict[str, _Remembered] = {}

    def __len__(self) -> int:
        return len(self._acts)

    def restore(self, acts: Iterable[str], mono_ns: int) -> None:
        """Act ids of an earlier life: delivered again they are only counted."""
        for act in acts:
            self._acts[act] = _Remembered(act, mono_ns, restored=True)
        self._evict()

    def let_again(self, acts: Iterable[str]) -> None:
        """These acts of an earlier life may be done after all."""
        for act in acts:
            self._acts.pop(act, None)

    def repeat(self, act: str, key: tuple[str, str, int] | None, mono_ns: int) -> Repeat | None:
        """Whether this act was seen before; None when it is new. `key` is None while the target is not known."""
        known = self._acts.get(act)
        if known is None and key is not None:
            known = self._targets.get(key)
            if known is not None and mono_ns - known.since_ns > self.window_ns:
                del self._targets[key]
                known = None
        if known is None:
            return None
        known.count += 1
        first = known.count == 1 and not known.restored
        due = first or mono_ns - known.told_ns >= REPEAT_REPORT_NS
        if due:
            known.told_ns = mono_ns
            self._untold.pop(known.act, None)
        elif len(self._untold) < MAX_REMEMBERED:
            self._untold[known.act] = known
        return Repeat(known.act, known.count, first, due)

    def remember(self, act: str, key: tuple[str, str, int] | None, mono_ns: int) -> None:
        """This act is being carried out now (or was judged)."""
        entry = _Remembered(act, mono_ns, restored=False)
        self._acts[act] = entry
        if key is not None:
            self._targets[key] = entry
        self._evict()

    def forget(self, key: tuple[str, str, int]) -> None:
        """The act failed: the next alert about this target may try again."""
        self._targets.pop(key, None)

    def forget_targets(self) -> None:
        """The mode was switched: what was judged in the old one may be judged anew."""
        self._targets.clear()

    def pending_counts(self, mono_ns: int) -> Iterator[tuple[str, int]]:
        """Counts of repeats that are due and were not told yet: (act, count)."""
        due = [entry for entry in self._untold.values() if mono_ns - entry.told_ns >= REPEAT_REPORT_NS]
        for entry in due:
            del self._untold[entry.act]
            entry.told_ns = mono_ns
            yield entry.act, entry.count

    def _evict(self) -> None:
        while len(self._acts) > MAX_REMEMBERED:
            self._acts.popitem(last=False)
        while len(self._targets) > MAX_REMEMBERED:
            self._targets.popitem(last=False)
