"""Heartbeats: which touches of the beacon came back as alerts, how late, and whether the feed is alive. Pure.

The agent opens a file of a name that nobody can guess, and Falco's alert of that open has to come back through the
whole feed. The name is the proof: an alert that was kept from an earlier time, or made up, does not have it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque

import msgspec

from stoop.alert import Alert

MISSED_LIMIT = 2
"""Beats in a row without an answer that count as silence: one alone may be a drop, or a Falco that reads its rules."""

KEPT = 8
"""Beats whose answers are still recognised: those of a feed that is some minutes behind are late, not unknown."""

LAGS_KEPT = 64
"""Lags kept for `stoop status`, of each state of the pacemaker: half an hour's."""

STEP_NS = 1_000_000
"""Between the two clocks over one beat: more is a step or a sleep of the machine, and the beat measures no offset."""

MIN_PAUSE_S = 1.0
"""The reflex has no timer below this."""

TOKEN_LENGTH = 32
"""Characters of a token: 128 random bits in hexadecimal."""

_DIGITS = frozenset("0123456789abcdef")


class Heard(enum.StrEnum):
    """What an alert of the heartbeat's rule turned out to be."""

    ANSWERED = "answered"  # of one of the last MISSED_LIMIT beats: the feed is alive
    LATE = "late"  # of an earlier one
    REPEATED = "repeated"  # answered before: by another intake, or sent twice
    UNKNOWN = "unknown"  # no beat of this agent: somebody else opened such a file, or it is of an earlier agent
    FOREIGN = "foreign"  # a beat's name, opened by another process than the agent


class Beat(msgspec.Struct):
    """One touch of the beacon. Times are 0 until they are known; whoever opens the file sets them.

    `begun_ns`, `begun_mono_ns`, `done_ns`: right before and right after the open (CLOCK_REALTIME, CLOCK_MONOTONIC).
    """

    token: str
    number: int
    begun_ns: int = 0
    begun_mono_ns: int = 0
    done_ns: int = 0
    answered: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What came of one alert. `lag_ns`: from the touch until it was here. `drift`: as `Skew.measure` takes it."""

    heard: Heard
    lag_ns: int = 0
    drift: tuple[int, int] | None = None


def pause_s(interval_ns: int, roll: float) -> float:
    """Seconds until the next beat: a tenth more or less by `roll` (0 to 1), so that no two nodes keep step."""
    return max(MIN_PAUSE_S, interval_ns / 1e9 * (0.9 + 0.2 * roll))


def token_in(alert: Alert, prefix: str) -> str | None:
    """The token that an alert of the rule brings; None when it is about a file elsewhere, "" when it names none.

    `prefix`: the beacon's directory with its final slash.
    """
    name = alert.fields.get("fd.name")
    if not isinstance(name, str):
        return ""
    if not name.startswith(prefix):
        return None
    return name[len(prefix) :]


def is_token(name: str) -> bool:
    """Whether a file of this name can be a beat's."""
    return len(name) == TOKEN_LENGTH and _DIGITS.issuperset(name)


def opener(alert: Alert) -> int:
    """The pid that opened it; 0 when Falco does not say (-1 is its word for a process that it does not know)."""
    pid = alert.fields.get("proc.pid")
    return pid if isinstance(pid, int) and not isinstance(pid, bool) and pid > 1 else 0


class Beats:
    """The beats under way and what is known of the feed. `alive` is None until the first answer or silence."""

    def __init__(self, pid: int) -> None:
        """`pid`: the agent's own, as Falco numbers it; 0 where that is not known, and then no alert's is compared."""
        self._pid = pid
        self._beats: OrderedDict[str, Beat] = OrderedDict()
        self._number = 0
        self.alive: bool | None = None
        self.missed = 0
        self.missed_total = 0
        self.last_mono_ns = 0
        self.counts: dict[Heard, int] = dict.fromkeys(Heard, 0)
        self.lags: dict[str, deque[int]] = {}

    def begin(self, token: str) -> Beat:
        """The next beat, before its file is opened. The one before has been missed if it has no answer by now."""
        before = next(reversed(self._beats.values()), None)
        if before is not None and before.number == self._number and not before.answered:
            self.missed += 1
            self.missed_total += 1
            if self.missed >= MISSED_LIMIT:
                self.alive = False
        self._number += 1
        beat = self._beats[token] = Beat(token, self._number)
        while len(self._beats) > KEPT:
            self._beats.popitem(last=False)
        return beat

    def untouched(self, beat: Beat) -> None:
        """Its file could not be opened: there is no answer to wait for."""
        self._beats.pop(beat.token, None)

    def hear(self, token: str, pid: int, event_ns: int, now_ns: int, mono_ns: int) -> Answer:
        """Judge an alert: its token, its opener, its event's time, and both clocks of now."""
        answer = self._judge(token, pid, event_ns, now_ns, mono_ns)
        self.counts[answer.heard] += 1
        if answer.heard is Heard.ANSWERED:
            self.alive, self.missed = True, 0
        if answer.heard in (Heard.ANSWERED, Heard.LATE):
            self.last_mono_ns = mono_ns
        return answer

    def _judge(self, token: str, pid: int, event_ns: int, now_ns: int, mono_ns: int) -> Answer:
        beat = self._beats.get(token)
        if beat is None or not beat.begun_ns:
            return Answer(Heard.UNKNOWN)
        if pid and self._pid and pid != self._pid:
            return Answer(Heard.FOREIGN)
        if beat.answered:
            return Answer(Heard.REPEATED)
        beat.answered = True
        is_late = self._number - beat.number >= MISSED_LIMIT
        lag_ns = mono_ns - beat.begun_mono_ns
        return Answer(
            Heard.LATE if is_late else Heard.ANSWERED, lag_ns, _drift(beat, event_ns, now_ns - beat.begun_ns - lag_ns)
        )

    def felt(self, pace: str, lag_ns: int) -> None:
        """Keep a lag under the pacemaker's state of the time."""
        self.lags.setdefault(pace, deque(maxlen=LAGS_KEPT)).append(lag_ns)


def _drift(beat: Beat, event_ns: int, step_ns: int) -> tuple[int, int] | None:
    """The event lies between the two looks at our clock; what must be added to Falco's stamp to get there."""
    if not event_ns or not beat.done_ns or abs(step_ns) > STEP_NS:
        return None
    return beat.begun_ns - event_ns, beat.done_ns - event_ns


def lags_ms(lags: dict[str, deque[int]]) -> dict[str, dict[str, float]]:
    """For a person: how many, the median and the most, in milliseconds, by the pacemaker's state."""
    shown = {}
    for pace, each in lags.items():
        ordered = sorted(each)
        shown[pace] = {"beats": len(ordered), "p50": ordered[len(ordered) // 2] / 1e6, "max": ordered[-1] / 1e6}
    return shown
