"""Beats and their answers, on values: what is alive, late, missed, told twice, or not ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stoop.alert import Alert, decode
from stoop.heartbeat import (
    KEPT,
    LAGS_KEPT,
    MISSED_LIMIT,
    STEP_NS,
    Beat,
    Beats,
    Heard,
    is_token,
    lags_ms,
    opener,
    pause_s,
    token_in,
)

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
PID = 4321


class Node:
    """Beats of an agent with two clocks that a test moves."""

    def __init__(self, pid: int = PID) -> None:
        self.beats = Beats(pid)
        self.now, self.mono = NOW, 50 * SECOND

    def touch(self, token: str, width_ns: int = 50_000) -> Beat:
        beat = self.beats.begin(token)
        beat.begun_mono_ns, beat.begun_ns, beat.done_ns = self.mono, self.now, self.now + width_ns
        return beat

    def passes(self, ns: int) -> None:
        self.now += ns
        self.mono += ns

    def hear(self, token: str, pid: int = PID, event_ns: int = NOW) -> Heard:
        return self.beats.hear(token, pid, event_ns, self.now, self.mono).heard


def state(node: Node) -> tuple[bool | None, int, int]:
    return node.beats.alive, node.beats.missed, node.beats.missed_total


class TestAnswers:
    def test_nothing_is_known_before_the_first_answer(self) -> None:
        node = Node()
        node.touch("a")
        assert state(node) == (None, 0, 0)
        assert node.hear("a") is Heard.ANSWERED
        assert state(node) == (True, 0, 0)

    def test_the_lag_is_from_the_touch_by_the_clock_that_does_not_jump(self) -> None:
        node = Node()
        node.touch("a")
        node.mono += 700_000
        node.now += 9 * SECOND
        assert node.beats.hear("a", PID, NOW, node.now, node.mono).lag_ns == 700_000

    def test_one_missed_beat_is_no_silence_and_two_are(self) -> None:
        node = Node()
        node.touch("a")
        node.hear("a")
        node.touch("b")
        node.touch("c")
        assert state(node) == (True, 1, 1)
        node.touch("d")
        assert state(node) == (False, 2, 2)
        assert node.hear("d") is Heard.ANSWERED
        assert state(node) == (True, 0, 2)

    def test_the_first_beats_without_an_answer_are_a_silence_too(self) -> None:
        node = Node()
        for token in "abc":
            node.touch(token)
        assert state(node) == (False, MISSED_LIMIT, MISSED_LIMIT)

    def test_a_feed_that_is_minutes_behind_is_late_and_not_alive(self) -> None:
        node = Node()
        for token in "abcd":
            node.touch(token)
        assert node.hear("a") is Heard.LATE
        assert node.hear("b") is Heard.LATE
        assert state(node) == (False, 3, 3)
        assert node.hear("c") is Heard.ANSWERED
        assert node.beats.alive

    def test_what_came_twice_counts_once(self) -> None:
        node = Node()
        node.touch("a")
        assert [node.hear("a"), node.hear("a")] == [Heard.ANSWERED, Heard.REPEATED]

    def test_an_old_answer_told_again_keeps_no_feed_alive(self) -> None:
        node = Node()
        node.touch("a")
        node.hear("a")
        for token in "bcd":
            node.touch(token)
            assert node.hear("a") is Heard.REPEATED
        assert node.beats.alive is False

    def test_a_beat_whose_file_could_not_be_touched_is_not_missed(self) -> None:
        node = Node()
        for token in "abcd":
            node.beats.untouched(node.touch(token))
        assert state(node) == (None, 0, 0)
        assert node.hear("a") is Heard.UNKNOWN

    def test_beats_are_forgotten_after_a_while(self) -> None:
        node = Node()
        for number in range(KEPT + 1):
            node.touch(str(number))
        assert [node.hear("0"), node.hear("1")] == [Heard.UNKNOWN, Heard.LATE]

    def test_before_its_file_is_opened_a_beat_has_no_answer(self) -> None:
        node = Node()
        node.beats.begin("a")
        assert node.hear("a") is Heard.UNKNOWN


class TestWho:
    def test_another_process_does_not_answer_and_the_agent_still_can(self) -> None:
        node = Node()
        node.touch("a")
        assert [node.hear("a", pid=PID + 1), node.hear("a")] == [Heard.FOREIGN, Heard.ANSWERED]

    @pytest.mark.parametrize(("own", "told"), [(0, PID + 1), (PID, 0)])
    def test_pids_that_are_not_known_or_not_comparable_are_no_evidence(self, own: int, told: int) -> None:
        node = Node(own)
        node.touch("a")
        assert node.hear("a", pid=told) is Heard.ANSWERED

    @pytest.mark.parametrize(
        ("pid", "opened_by"), [(4321, 4321), (-1, 0), (0, 0), (1, 0), (True, 0), ("4321", 0), (None, 0), (4321.5, 0)]
    )
    def test_the_opener_is_a_real_pid_or_unknown(self, pid: Any, opened_by: int) -> None:
        assert opener(alert_of(**{"proc.pid": pid})) == opened_by

    @pytest.mark.parametrize(
        ("name", "token"),
        [
            ("/run/stoop/heartbeat/abc", "abc"),
            ("/run/stoop/heartbeat/", ""),
            ("/run/stoop/heartbeat/../shadow", "../shadow"),
            ("/run/stoop/heartbeats/abc", None),
            ("/etc/shadow", None),
            (None, ""),
            (17, ""),
        ],
    )
    def test_only_files_of_the_beacon_are_beats(self, name: Any, token: str | None) -> None:
        assert token_in(alert_of(**{"fd.name": name}), "/run/stoop/heartbeat/") == token

    @pytest.mark.parametrize(
        ("name", "fits"),
        [("0123456789abcdef" * 2, True), ("A" * 32, False), ("a" * 31, False), ("../" + "a" * 29, False)],
    )
    def test_only_names_of_beats_are_removed(self, name: str, fits: bool) -> None:
        assert is_token(name) is fits


class TestDrift:
    def test_the_event_lies_between_the_two_looks_at_the_clock(self) -> None:
        node = Node()
        node.touch("a", width_ns=50_000)
        node.passes(30_000_000)  # of Falco's latency nothing is in it
        answer = node.beats.hear("a", PID, NOW - 3 * SECOND + 20_000, node.now, node.mono)
        assert answer.drift == (3 * SECOND - 20_000, 3 * SECOND + 30_000)

    @pytest.mark.parametrize("step_ns", [2 * STEP_NS, -2 * STEP_NS, 3600 * SECOND])
    def test_a_step_of_the_clock_meanwhile_measures_nothing(self, step_ns: int) -> None:
        node = Node()
        node.touch("a")
        node.passes(SECOND)
        answer = node.beats.hear("a", PID, NOW, node.now + step_ns, node.mono)
        assert (answer.heard, answer.drift) == (Heard.ANSWERED, None)

    def test_without_a_time_or_an_end_of_the_touch_nothing_is_measured(self) -> None:
        node = Node()
        node.touch("a")
        assert node.beats.hear("a", PID, 0, node.now, node.mono).drift is None
        node.touch("b").done_ns = 0
        assert node.beats.hear("b", PID, NOW, node.now, node.mono).drift is None


@pytest.mark.parametrize(
    ("interval_s", "roll", "pause"), [(30, 0.0, 27.0), (30, 0.5, 30.0), (30, 1.0, 33.0), (1, 0.0, 1.0), (1, 1.0, 1.1)]
)
def test_the_pause_is_a_tenth_more_or_less_and_never_below_a_second(interval_s: int, roll: float, pause: float) -> None:
    assert pause_s(interval_s * SECOND, roll) == pytest.approx(pause)


def test_lags_are_kept_by_the_pacemakers_state_and_bounded() -> None:
    beats = Beats(PID)
    for number in range(10 * LAGS_KEPT):
        beats.felt("off", number * 1_000_000)
    beats.felt("running", 500_000)
    assert lags_ms(beats.lags) == {
        "off": {"beats": LAGS_KEPT, "p50": 608.0, "max": 639.0},
        "running": {"beats": 1, "p50": 0.5, "max": 0.5},
    }


def alert_of(**fields: Any) -> Alert:
    return decode(json.dumps({"rule": "Stoop heartbeat", "output_fields": fields}).encode())
