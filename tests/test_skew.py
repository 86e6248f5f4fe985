"""How far Falco's clock is from ours: from delays, which hold latency, and from heartbeats, which do not."""

from __future__ import annotations

import pytest

from stoop.skew import CLOCK_NOISE_NS, ESTABLISHED, MAX_DRIFT_NS, SKEW_WINDOW, SPACING_NS, WIDEST_NS, Skew

MILLI = 1_000_000
SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


def skewed(*delays_ns: int) -> Skew:
    skew = Skew()
    for number, delay in enumerate(delays_ns, 1):
        skew.sample(delay, number * SPACING_NS)
    return skew


class TestDelays:
    def test_a_short_lag_is_falcos_latency_and_not_its_clock(self) -> None:
        assert skewed(*[12_000_000] * 20).drift_ns == 0

    def test_a_pid_given_anew_within_falcos_latency_does_not_pass(self) -> None:
        assert skewed(*[12_000_000] * 20).bounds(NOW) == (NOW, NOW + CLOCK_NOISE_NS)

    def test_a_longer_lag_is_believed_after_enough_alerts(self) -> None:
        assert skewed(*[3 * SECOND] * 3).drift_ns == 0
        assert skewed(*[3 * SECOND] * ESTABLISHED).drift_ns == 3 * SECOND

    def test_a_backlog_is_no_drift_however_many_alerts_it_brings(self) -> None:
        burst = Skew()
        for number in range(1000):
            burst.sample(3 * SECOND, SECOND + number * 1000)
        assert not burst.established
        assert burst.bounds(NOW)[1] == NOW + CLOCK_NOISE_NS

    def test_a_lag_beyond_what_clocks_drift_is_not_believed(self) -> None:
        assert skewed(*[95 * SECOND] * 20).bounds(NOW)[1] == NOW + CLOCK_NOISE_NS

    def test_a_stamp_far_ahead_is_another_machines_clock(self) -> None:
        assert skewed(*[1_000] * 10, -3600 * SECOND).lag_ns == 1_000

    def test_the_least_delay_leaves_with_the_window(self) -> None:
        skew = skewed(1_000, *[9_000] * SKEW_WINDOW)
        assert skew.lag_ns == 9_000

    def test_a_lower_delay_counts_at_once(self) -> None:
        skew = skewed(*[9_000] * 10)
        skew.sample(-5_000_000, 10 * SPACING_NS + 1)
        assert skew.lag_ns == -5_000_000

    def test_a_step_of_the_clock_is_noticed_and_begins_anew(self) -> None:
        skew = skewed(*[1_000] * 20)
        skew.measure(20 * MILLI, 20 * MILLI)
        assert not skew.clock(5 * SECOND)
        assert not skew.clock(5 * SECOND + 1_000)
        assert skew.clock(15 * SECOND)
        assert (skew.steps, skew.established, skew.drift_ns) == (1, False, 0)


class TestMeasured:
    def test_it_counts_at_once_and_below_falcos_latency(self) -> None:
        skew = Skew()
        assert skew.measure(20 * MILLI, 20 * MILLI + 40_000)
        assert (skew.established, skew.drift_ns) == (True, 20 * MILLI + 40_000)
        assert skew.bounds(NOW) == (NOW, NOW + 20 * MILLI + 40_000 + CLOCK_NOISE_NS)

    def test_a_clock_ahead_by_less_than_its_latency_is_seen(self) -> None:
        """12 ms of latency hide 12 ms of drift: without a heartbeat a newcomer of these would pass."""
        skew = skewed(*[-8 * MILLI] * 20)
        assert skew.bounds(NOW)[0] == NOW - 8 * MILLI
        skew.measure(-20 * MILLI - 40_000, -20 * MILLI)
        assert skew.bounds(NOW) == (NOW - 20 * MILLI - 40_000, NOW - 20 * MILLI + CLOCK_NOISE_NS)

    def test_two_clocks_that_agree_are_taken_for_one(self) -> None:
        skew = skewed(*[60 * MILLI] * 20)  # a slow feed, which looks like a clock that runs behind
        assert skew.drift_ns == 60 * MILLI
        skew.measure(-20_000, 30_000)
        assert (skew.drift_ns, skew.bounds(NOW)) == (0, (NOW, NOW + CLOCK_NOISE_NS))

    @pytest.mark.parametrize(
        ("low", "high"),
        [
            (0, WIDEST_NS + 1),
            (1, 0),
            (MAX_DRIFT_NS, MAX_DRIFT_NS + 1),
            (-MAX_DRIFT_NS - 1, -MAX_DRIFT_NS),
            (-(10**18), 10**18),
        ],
    )
    def test_what_measures_badly_or_too_much_changes_nothing(self, low: int, high: int) -> None:
        skew = Skew()
        assert not skew.measure(low, high)
        assert (skew.established, skew.drift_ns) == (False, 0)

    def test_a_delay_that_contradicts_it_ends_it(self) -> None:
        """Falco was 2 s behind and has been restarted: the first alert says so, before it is judged."""
        skew = Skew()
        skew.measure(2 * SECOND, 2 * SECOND + 50_000)
        skew.sample(2 * SECOND - CLOCK_NOISE_NS, NOW)
        assert skew.established
        skew.sample(MILLI, NOW)
        assert (skew.established, skew.drift_ns) == (False, 0)

    def test_another_machines_clock_does_not_end_it(self) -> None:
        skew = Skew()
        skew.measure(0, 50_000)
        skew.sample(-3600 * SECOND, NOW)
        assert skew.established

    def test_it_is_forgotten_with_its_heartbeat(self) -> None:
        skew = skewed(*[MILLI] * 20)
        skew.measure(2 * SECOND, 2 * SECOND)
        skew.forget_measure()
        assert (skew.lag_ns, skew.drift_ns) == (MILLI, 0)
