"""Which acts may have ended a container, whose place another one took, and what the record says then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.pods import PodFacts, Source, Told
from stoop.record import Record, Timing
from stoop.restarted import MAX_WATCHED, Ended, Watched, may_have_ended, name_in_pod, told
from stoop.spec import Verdict

SECOND = 10**9
TARGET = {"container_id": "c" * 64, "pod_uid": "uid-1", "told_by": {"pod_uid": "cgroup"}}


def record(act: str = "a", **changes: Any) -> Record:
    made = Record(
        "alert", "run", act, "R", "kill", "container:kill", Verdict.DONE, "", TARGET, Timing(verified_ns=100 * SECOND)
    )
    return msgspec.structs.replace(made, **changes)


def ended(act: str = "a", **changes: Any) -> Ended:
    made = Ended(record(act), container_id="c" * 64, pod_uid="uid-1", container="app", until_mono_ns=10 * SECOND)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actionner": "process:kill"},
        {"actionner": "container:freeze", "details": {"undoes": "x", "container_id": "c" * 64}},
    ],
)
def test_what_may_have_ended_one(changes: dict[str, Any]) -> None:
    assert may_have_ended(record(**changes)) == ("c" * 64, "uid-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": Verdict.FAILED},
        {"verdict": Verdict.SKIPPED},
        {"verdict": Verdict.WOULD},
        {"actionner": "container:freeze"},
        {"actionner": "container:freeze", "details": {"container_id": "c" * 64}},
        {"actionner": "container:freeze", "details": {"undoes": "x"}},  # thawed
        {"details": {"restarted_as": "d" * 64}},  # said already
        {"target": {}},
        {"target": TARGET | {"container_id": ""}},
        {"target": TARGET | {"pod_uid": ""}},
        {"target": TARGET | {"pod_uid": 7}},
        {"target": TARGET | {"told_by": {"pod_uid": "alert"}}},  # somebody's claim
        {"target": TARGET | {"told_by": "cgroup"}},
        {"target": TARGET | {"claimed_container_id": "d" * 12}},  # it has moved: whose container it is is in doubt
    ],
)
def test_what_has_not(changes: dict[str, Any]) -> None:
    assert may_have_ended(record(**changes)) is None


def test_a_container_is_known_by_its_name_and_a_sandbox_by_being_one() -> None:
    assert name_in_pod(PodFacts("c", container=Told("app", Source.KUBELET), sandbox_id="s")) == "app"
    assert name_in_pod(PodFacts("s", sandbox_id="s")) == ""
    assert name_in_pod(PodFacts("c", sandbox_id="s")) is None
    assert name_in_pod(PodFacts("c")) is None


@pytest.mark.parametrize(
    ("reason", "said"),
    [("", "restarted as dddddddddddd 1.5 s later"), ("killed", "killed; restarted as dddddddddddd 1.5 s later")],
)
def test_the_record_says_more_and_nothing_less(reason: str, said: str) -> None:
    before = record(reason=reason, details={"count": 3})
    after = told(ended(record=before), "d" * 64, 100 * SECOND + 1_500_000_000)
    assert after.reason == said
    assert after.details == {"count": 3, "restarted_as": "d" * 64, "restarted_after_s": 1.5}
    assert after.amends
    assert msgspec.structs.replace(after, reason=reason, details={"count": 3}, amends=False) == before
    assert may_have_ended(after) is None


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    assert told(ended(), "d" * 64, 1).details["restarted_after_s"] == 0


def test_the_place_is_the_pod_s_and_the_name_s_and_never_its_own() -> None:
    watched = Watched()
    watched.add(ended())
    assert watched.pods() == {"uid-1"}
    assert (watched.has_ended("c" * 64), watched.has_ended("d" * 64)) == (True, False)
    assert watched.took_place("d" * 64, "uid-2", "app") == []
    assert watched.took_place("d" * 64, "uid-1", "side") == []
    assert watched.took_place("c" * 64, "uid-1", "app") == []
    assert watched.took_place("d" * 64, "uid-1", "app") == [ended()]
    assert watched.took_place("e" * 64, "uid-1", "app") == []
    assert watched.pods() == frozenset()


def test_two_acts_that_ended_the_same_are_both_told() -> None:
    watched = Watched()
    watched.add(ended("a"))
    watched.add(ended("b"))
    assert [one.record.act for one in watched.took_place("d" * 64, "uid-1", "app")] == ["a", "b"]


def test_the_oldest_goes_for_one_too_many() -> None:
    watched = Watched()
    assert all(watched.add(ended(str(number))) for number in range(MAX_WATCHED))
    assert watched.add(ended("0"))  # the same act once more takes no further place
    assert not watched.add(ended("more"))
    assert len(watched) == MAX_WATCHED
    left = {one.record.act for one in watched.took_place("d" * 64, "uid-1", "app")}
    assert left == {str(number) for number in range(MAX_WATCHED) if number != 1} | {"more"}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=20), st.integers(0, 10))
def test_whoever_is_over_goes_and_the_next_is_known(times: list[tuple[int, int]], now: int) -> None:
    watched = Watched()
    for act, until in times:
        watched.add(ended(str(act), until_mono_ns=until))
    count = len(watched)
    gone = watched.over(now)
    assert all(one.until_mono_ns <= now for one in gone)
    assert len(watched) == count - len(gone)
    assert watched.next_mono_ns() > now or not len(watched)
