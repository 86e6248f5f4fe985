"""The heartbeat whatever comes: it is alive only by its own newest names, and swallows only its own alerts."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.heartbeat import Around, Heart
from stoop.alert import Alert, decode
from stoop.config import Heartbeat
from stoop.heartbeat import MISSED_LIMIT, Beat, Beats, Heard
from stoop.metrics import Metrics
from stoop.skew import Skew
from stoop.testing import FakeClock, FakeLedger

PID = 4321
PATH = "/run/stoop/heartbeat"
RULE = "Stoop heartbeat"

STEPS = st.lists(
    st.one_of(
        st.just(("touch",)),
        st.just(("fail",)),
        st.tuples(st.just("hear"), st.integers(0, 20), st.sampled_from([0, PID, PID + 1])),
    ),
    max_size=60,
)


@given(STEPS)
def test_alive_means_that_one_of_the_newest_beats_was_answered_by_the_agents_own_open(steps: list[Any]) -> None:
    beats, touched, answered = Beats(PID), list[Beat](), set[str]()
    for step in steps:
        if step[0] != "hear":
            beat = beats.begin(f"token {len(touched)}")
            touched.append(beat)
            beat.begun_ns = beat.begun_mono_ns = beat.done_ns = 1
            if step[0] == "fail":
                beats.untouched(beat)
            continue
        _, back, pid = step
        token = touched[-1 - back].token if back < len(touched) else "a stranger's"
        before = beats.alive
        answer = beats.hear(token, pid, 1, 2, 2)
        counts = answer.heard in (Heard.ANSWERED, Heard.LATE)
        assert not (counts and (token in answered or pid == PID + 1))
        assert (answer.heard is Heard.ANSWERED) <= (back < MISSED_LIMIT)
        assert beats.alive is (True if answer.heard is Heard.ANSWERED else before)
        if counts:
            answered.add(token)
    assert beats.missed_total <= len(touched)
    if len(touched) > MISSED_LIMIT and not answered and all(step[0] != "fail" for step in steps):
        assert beats.alive is False


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just(PATH + "/x")
)
FIELDS = st.dictionaries(st.sampled_from(["fd.name", "proc.pid", "evt.time", "other"]), VALUES)
ALERTS = st.lists(st.tuples(st.sampled_from([RULE, "stoop heartbeat", "Other"]), FIELDS), max_size=8)


def alert_of(rule: str, fields: dict[str, Any]) -> Alert:
    return decode(json.dumps({"rule": rule, "output_fields": fields}).encode())


@given(ALERTS, st.sampled_from(["unix", "http", "file", "stdin"]))
def test_only_alerts_of_the_rule_about_the_beacon_or_about_nothing_are_taken_out(told: list[Any], kind: str) -> None:
    ledger = FakeLedger()
    around = Around(
        clocks=FakeClock(),
        skew=Skew(),
        metrics=Metrics(),
        say=lambda *words, **fields: None,
        pace=lambda: "off",
        felt=lambda pace, lag_ns: None,
        ledger=ledger,
    )
    heart = Heart(Heartbeat(path=PATH), PID, _NoToucher(), around)
    alerts = [alert_of(rule, fields) for rule, fields in told]

    def is_ours(alert: Alert) -> bool:
        name = alert.fields.get("fd.name")
        return alert.rule == RULE and (not isinstance(name, str) or name.startswith(PATH + "/"))

    rest = heart.sift(alerts, kind, 1)
    assert rest == [alert for alert in alerts if not is_ours(alert)]
    assert ledger.settled_alerts == (len(alerts) - len(rest) if kind in ("unix", "http") else 0)
    assert (heart.beats.alive, around.skew.established) == (None, False)


class _NoToucher:
    """Nothing is touched here."""

    async def prepare(self) -> None:
        raise AssertionError

    async def touch(self, beat: Beat) -> None:
        raise AssertionError
