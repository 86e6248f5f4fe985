"""How far Falco's clock is from ours: from the delays of its alerts, or measured by a heartbeat. Pure."""

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

WIDEST_NS = 500_000
"""A heartbeat's own open takes some 50 µs; one that was interrupted for longer than this measures too coarsely."""


class Skew:
    """How far Falco's clock is from ours, from the delays of its alerts.

    Falco adds kernel time to an offset that it sampled once at its start, so its clock drifts from CLOCK_REALTIME with
    each adjustment (reference/falco.md). `delay = received - event time = drift + latency`, and latency is never
    negative: the least delay seen is an upper bound of the drift. Only alerts of this node's kernel that came at once
    may be sampled: not those of a plugin's source, nor those read from a file.

    A heartbeat knows when its event happened, so no latency is in what it measures: that counts, as long as it is fresh
    and no delay contradicts it.
    """

    def __init__(self) -> None:
        self._delays: deque[int] = deque(maxlen=SKEW_WINDOW)
        self._least = 0
        self._last_ns = 0
        self._offset_ns: int | None = None
        self._measured: tuple[int, int] | None = None
        self.steps = 0

    def sample(self, delay_ns: int, at_ns: int) -> None:
        """One alert's delay, seen at this time (CLOCK_REALTIME). Cheap: most of a busy node's are not looked at."""
        measured = self._measured
        if measured is not None and -MAX_DRIFT_NS <= delay_ns < measured[0] - CLOCK_NOISE_NS:
            self._measured = None  # before its event by what was measured: Falco has been restarted since
        spaced = abs(at_ns - self._last_ns) >= SPACING_NS
        if (not spaced and delay_ns >= self._least) or delay_ns < -MAX_DRIFT_NS:
            return
        delays = self._delays
        if not spaced and delays:
            delays[-1] = delay_ns
        else:
            self._last_ns = at_ns
            delays.append(delay_ns)
        self._least = min(delays)

    def measure(self, low_ns: int, high_ns: int) -> bool:
        """The drift lies between these two, as a heartbeat's own event shows. Whether it was taken.

        It is proven, yet not believed beyond MAX_DRIFT_NS: such a Falco has to be restarted.
        """
        taken = 0 <= high_ns - low_ns <= WIDEST_NS and low_ns >= -MAX_DRIFT_NS and high_ns <= MAX_DRIFT_NS
        if taken:
            self._measured = (low_ns, high_ns)
        return taken

    def forget_measure(self) -> None:
        """The heartbeat is silent: Falco may not be the one any more that was measured."""
        self._measured = None

    def clock(self, realtime_minus_boottime_ns: int, tolerance_ns: int = 5_000_000) -> bool:
        """Notice a step of this machine's clock: True when it jumped since the last look. Delays start anew then."""
        last = self._offset_ns
        self._offset_ns = realtime_minus_boottime_ns
        if last is None or abs(realtime_minus_boottime_ns - last) <= tolerance_ns:
            return False
        self.steps += 1
        self._delays.clear()
        self._measured = None
        return True

    @property
    def established(self) -> bool:
        """Whether it was measured, or enough was seen to believe the lag."""
        return self._measured is not None or len(self._delays) >= ESTABLISHED

    @property
    def lag_ns(self) -> int:
        """The lag that is believed: the least delay when it is established and not too long, and any negative one."""
        if not self._delays or self._least < 0:
            return self._least if self._delays else 0
        return self._least if self.established and self._least <= MAX_DRIFT_NS else 0

    @property
    def drift_ns(self) -> int:
        """What is taken as Falco's drift: what was measured, else only what its own latency can't explain.

        Slewing (adjtimex(2)) moves CLOCK_REALTIME and CLOCK_BOOTTIME alike, so only a step of the clock makes Falco's
        differ, and NTP steps by 128 ms or more: a lag below Falco's latency is no drift.
        """
        if self._measured is not None:
            low, high = self._measured
            return high if low > 0 or high < 0 else 0
        lag = self.lag_ns
        return lag if lag < 0 or lag > FALCO_POLL_NS else 0

    def bounds(self, event_ns: int) -> tuple[int, int]:
        """(earliest, latest) instant of our clock at which an event that Falco stamped so may have happened."""
        drift = self.drift_ns
        least = self._measured[0] if self._measured is not None and drift else drift
        # Never later than the event's own stamp: what was measured of a Falco that has ended would let a newcomer pass.
        return event_ns + min(least, 0), event_ns + drift + CLOCK_NOISE_NS
