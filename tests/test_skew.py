"""How far Falco's clock is from ours: what a delay tells and what it does not. Pure, so everything here is values."""

from __future__ import annotations

import pytest

from stoop.skew import CLOCK_NOISE_NS, ESTABLISHED, SKEW_WINDOW, SPACING_NS, Skew

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
LATENCY = 12_000_000
"""Of Falco on an idle node."""


def skewed(*delays_ns: int) -> Skew:
    """What these delays, far enough apart, have taught it."""
    skew = Skew()
    for number, delay in enumerate(delays_ns, 1):
        skew.sample(delay, number * SPACING_NS)
    return skew


class TestSkew:
    def test_an_age_is_not_corrected_by_what_is_only_estimated(self) -> None:
        assert skewed(*[3 * SECOND] * ESTABLISHED).ours(NOW) == NOW
        assert skewed(-SECOND).ours(NOW) == NOW

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
        assert not skew.clock(5 * SECOND)
        assert not skew.clock(5 * SECOND + 1_000)
        assert skew.clock(15 * SECOND)
        assert (skew.steps, skew.established) == (1, False)


class TestStep:
    """Falco goes on by the clock that it read at its start; `by` is how far ours was stepped away from it."""

    @staticmethod
    def stepped(*by_s: int) -> Skew:
        skew = Skew()
        offset_ns = 0
        for step_s in (0, *by_s):
            offset_ns += step_s * SECOND
            skew.clock(offset_ns)
        return skew

    def test_a_clock_set_back_leaves_falco_ahead_by_just_so_much(self) -> None:
        skew = self.stepped(-10)
        skew.sample(-10 * SECOND + LATENCY, SECOND)
        assert skew.drift_ns == -10 * SECOND
        assert skew.ours(NOW) == NOW - 10 * SECOND

    def test_a_clock_set_forward_leaves_falco_behind_which_one_alert_shows(self) -> None:
        skew = self.stepped(10)
        skew.sample(10 * SECOND + LATENCY, SECOND)
        assert skew.drift_ns == 10 * SECOND
        # The span in which one more match is asked: before it is the one meant, after it another one.
        assert skew.bounds(NOW) == (NOW, NOW + 10 * SECOND + CLOCK_NOISE_NS)

    @pytest.mark.parametrize("delay_s", [3, 9, 11, 60])
    def test_a_backlog_that_no_step_explains_stays_one(self, delay_s: int) -> None:
        skew = self.stepped(10)
        skew.sample(delay_s * SECOND, SECOND)
        assert skew.drift_ns == 0

    @pytest.mark.parametrize("latency_s", [0.0, 0.04, 0.5, 4.9])
    def test_a_stamp_ahead_is_by_the_clock_of_before_however_late_it_came(self, latency_s: float) -> None:
        skew = self.stepped(-10)
        skew.sample(int((latency_s - 10) * SECOND), SECOND)
        assert skew.drift_ns == -10 * SECOND

    @pytest.mark.parametrize("delay_s", [-11, -3600])
    def test_a_stamp_ahead_that_no_step_explains_is_not_believed(self, delay_s: int) -> None:
        skew = self.stepped(-10)
        skew.sample(delay_s * SECOND, SECOND)
        assert skew.drift_ns == 0

    @pytest.mark.parametrize("by_s", [10, -10])
    def test_a_falco_that_was_started_afterwards_goes_by_our_clock(self, by_s: int) -> None:
        skew = self.stepped(by_s)
        skew.sample(LATENCY, SECOND)
        assert skew.drift_ns == 0

    def test_a_small_step_back_is_no_reason_for_a_late_alert(self) -> None:
        skew = Skew()
        for offset_ns in (0, -30_000_000):
            skew.clock(offset_ns)
        skew.sample(LATENCY, SECOND)
        assert skew.drift_ns == 0

    def test_a_clock_that_is_stepped_there_and_back_is_falcos_again(self) -> None:
        skew = self.stepped(10, -10)
        skew.sample(10 * SECOND + LATENCY, SECOND)
        assert skew.drift_ns == 0
        skew.sample(LATENCY, 2 * SECOND)
        assert (skew.drift_ns, skew.steps) == (0, 2)

    def test_the_clock_before_the_last_step_but_one_is_remembered(self) -> None:
        skew = self.stepped(-10, -7)
        skew.sample(-17 * SECOND + LATENCY, SECOND)
        assert skew.drift_ns == -17 * SECOND

    def test_the_first_alert_after_a_step_counts_however_soon_it_comes(self) -> None:
        skew = self.stepped()
        skew.sample(1_000, NOW)
        skew.clock(-10 * SECOND)
        skew.sample(-10 * SECOND + LATENCY, NOW + 1)
        assert skew.drift_ns == -10 * SECOND
