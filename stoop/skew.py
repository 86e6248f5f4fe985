"""How far Falco's clock is from ours, from how late its alerts come. Pure."""

from __future__ import annotations

from collections import deque

CLOCK_NOISE_NS = 30_000
"""Two readings of two clocks, one after the other: what may lie between them. More would let a pid pass that was given
anew right after the event (a test does it in 0.15 ms)."""

FALCO_POLL_NS = 50_000_000
"""Falco's own delay on an idle node is at most about 33 ms (measured, reference/falco.md): a lag below this says
nothing of its clock, one above says that it runs behind."""

MAX_DRIFT_NS = 5_000_000_000
"""A clock that is adjusted (NTP) leaves Falco's behind by ms to seconds. More is a backlog, or another machine's clock,
and believing it would make a process of after the event pass."""

ESTABLISHED = 8
"""Delays after which the lag between Falco's clock and ours is believed."""

SPACING_NS = 100_000_000
"""Between two delays that count: a backlog comes in a burst, and says nothing of a clock however long it is."""

SKEW_WINDOW = 64
"""Delays kept to take the least of: some seconds of a busy node, an hour of a quiet one."""

STEP_NS = 5_000_000
"""What CLOCK_REALTIME jumps less than is no step: NTP slews that much (and then CLOCK_BOOTTIME with it)."""

STEPS_KEPT = 4
"""Clocks of before a step that Falco may still go by: it is restarted now and then, and clocks are seldom stepped."""


class Skew:
    """How far Falco's clock is from ours, from the delays of its alerts.

    Falco adds kernel time to an offset that it sampled once at its start, so its clock drifts from CLOCK_REALTIME with
    each adjustment (reference/falco.md). `delay = received - event time = drift + latency`, and latency is never
    negative: the least delay seen is an upper bound of the drift. Only alerts of this node's kernel that came at once
    may be sampled: not those of a plugin's source, nor those read from a file.

    After a step of this machine's clock Falco goes on by the old one until it is restarted. How far that is off is
    known: a lag that fits it is believed, however long it is.
    """

    def __init__(self) -> None:
        self._delays: deque[int] = deque(maxlen=SKEW_WINDOW)
        self._least = 0
        self._last_ns = 0
        self._offset_ns: int | None = None
        self._offsets_before: deque[int] = deque(maxlen=STEPS_KEPT)
        self._stepped_ns: tuple[int, ...] = ()
        self.steps = 0

    def sample(self, delay_ns: int, at_ns: int) -> None:
        """One alert's delay, seen at this time (CLOCK_REALTIME). Cheap: most of a busy node's are not looked at."""
        spaced = abs(at_ns - self._last_ns) >= SPACING_NS
        if not spaced and delay_ns >= self._least:
            return
        if delay_ns < -MAX_DRIFT_NS and not self._step(delay_ns):
            return
        delays = self._delays
        if not spaced and delays:
            delays[-1] = delay_ns
        else:
            self._last_ns = at_ns
            delays.append(delay_ns)
        self._least = min(delays)

    def clock(self, realtime_minus_boottime_ns: int) -> bool:
        """Notice a step of this machine's clock: True when it jumped since the last look. Delays start anew then."""
        last = self._offset_ns
        self._offset_ns = now = realtime_minus_boottime_ns
        if last is None or abs(now - last) <= STEP_NS:
            return False
        self.steps += 1
        self._offsets_before.append(last)
        self._stepped_ns = tuple(now - before for before in self._offsets_before if abs(now - before) > STEP_NS)
        self._delays.clear()
        self._least = self._last_ns = 0
        return True

    def _step(self, delay_ns: int) -> int:
        """The step that such a delay fits: of an alert by the clock of before it. 0: none.

        One from the future is by that clock, however late it came. One that is late may be a backlog: it must have
        come at once.
        """
        for by_ns in self._stepped_ns:
            latest_ns = FALCO_POLL_NS if by_ns > 0 else MAX_DRIFT_NS
            if -STEP_NS <= delay_ns - by_ns <= latest_ns and (delay_ns < 0) == (by_ns < 0):
                return by_ns
        return 0

    @property
    def established(self) -> bool:
        """Whether enough was seen to believe the lag."""
        return len(self._delays) >= ESTABLISHED

    @property
    def lag_ns(self) -> int:
        """The lag that is believed: a step's that fits, any negative one, an established one that is not too long."""
        if not self._delays:
            return 0
        least = self._least
        step = self._step(least)
        if step or least < 0:
            return min(least, step)
        return least if self.established and least <= MAX_DRIFT_NS else 0

    @property
    def drift_ns(self) -> int:
        """What is taken as Falco's drift: only what its own latency can't explain.

        Slewing (adjtimex(2)) moves CLOCK_REALTIME and CLOCK_BOOTTIME alike, so only a step of the clock makes Falco's
        differ, and NTP steps by 128 ms or more: a lag below Falco's latency is no drift.
        """
        lag = self.lag_ns
        return lag if lag < 0 or lag > FALCO_POLL_NS else 0

    def ours(self, event_ns: int) -> int:
        """When an event that Falco stamped so happened, by our clock, for its age.

        Corrected by a step that was seen, never by a lag that is only estimated: a backlog can look like one.
        """
        return event_ns + (self._step(self._least) if self._delays else 0)

    def bounds(self, event_ns: int) -> tuple[int, int]:
        """(earliest, latest) instant of our clock at which an event that Falco stamped so may have happened."""
        drift = self.drift_ns
        return event_ns + min(drift, 0), event_ns + drift + CLOCK_NOISE_NS
