"""Waiting for containers that are started again, on a node of values: when it looks and stops, what it never tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
import trio
import trio.testing

from agent.node.cgroup import Found
from agent.restarts import MAX_NEW, TRIES_S, Restarts
from stoop.errors import TargetGone, TargetRefused
from stoop.metrics import Metrics
from stoop.node import ContainerFacts
from stoop.pods import PodFacts, Source, Told
from stoop.record import Record, Timing
from stoop.recorder import Recorder
from stoop.restarted import MAX_WATCHED, WATCH_NS
from stoop.spec import Mode, Verdict
from stoop.testing import FakeClock, FakeLedger
from stoop.testing_node import BOOT_ID

Jumps = trio.testing.MockClock

UID = "uid-1"
OLD, NEW = "c" * 64, "d" * 64


def pod(container_id: str, name: str = "app", *, why: str = "", init_pid: int = 0) -> PodFacts:
    source = Source.KUBELET if why else Source.BUNDLE
    container = Told(name, source) if name else Told()
    return PodFacts(container_id, container=container, sandbox_id="5" * 64, why=why, init_pid=init_pid)


class Clock(FakeClock):
    """CLOCK_MONOTONIC goes with trio's, which jumps to whatever is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = trio.current_time()

    def mono_ns(self) -> int:
        return round((trio.current_time() - self._begun) * 1e6) * 1000  # a jump ends a rounding error early or late


class FakeNode:
    """`names`: what the runtime's files tell of each container; `members`: of those that have a cgroup."""

    def __init__(self) -> None:
        self.names: dict[str, PodFacts] = {}
        self.members: dict[str, tuple[int, ...]] = {}
        self.there: list[Found] = []
        self.heard: Callable[[Found], None] | None = None
        self.looks: list[tuple[str, float]] = []
        self.refusal: TargetRefused | None = None

    def find_container(self, container_id: str) -> ContainerFacts:
        if self.refusal is not None:
            raise self.refusal
        if container_id not in self.members:
            raise TargetGone("gone")
        members = self.members[container_id]
        return ContainerFacts(container_id, UID, BOOT_ID, "/c", "", min(members, default=0), members)

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        return self.names.get(container_id, PodFacts(container_id, why="unknown"))

    def pod_by_runtime(self, container_id: str, pod_uid: str) -> PodFacts:
        self.looks.append((container_id, trio.current_time()))
        return self.pod_of(container_id, pod_uid)

    def containers(self) -> Iterable[Found]:
        if self.refusal is not None:
            raise self.refusal
        return iter(self.there)

    def hear_of_containers(self, heard: Callable[[Found], None] | None) -> None:
        self.heard = heard

    def comes(self, container_id: str, uid: str = UID) -> None:
        """Its cgroup is made."""
        if self.heard is not None:
            self.heard(Found(f"/pods/{container_id}", container_id, uid))


class Stage:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.node, self.ledger, self.clock = FakeNode(), FakeLedger(), Clock()
        self.said: list[tuple[str, str, dict[str, Any]]] = []
        recorder = Recorder(self.ledger, Metrics(), lambda: Mode.ENFORCE, ())
        self.restarts = Restarts(self.node, recorder, self.clock, self.say)
        self.nursery = nursery
        self.node.names[OLD] = pod(OLD)

    def say(self, level: str, event: str, **fields: Any) -> None:
        self.said.append((level, event, fields))

    async def killed(self, act: str = "a", container_id: str = OLD, uid: str = UID) -> None:
        """An act that killed it was recorded, and that was looked at."""
        target = {"container_id": container_id, "pod_uid": uid, "told_by": {"pod_uid": "cgroup"}}
        timing = Timing(verified_ns=self.clock.now)
        self.restarts.put(Record("alert", "run", act, "R", "kill", "container:kill", Verdict.DONE, "", target, timing))
        await trio.testing.wait_all_tasks_blocked()

    @property
    def told(self) -> list[tuple[str, str]]:
        """(act, as which it was restarted) of each record that was amended."""
        return [(record.act, record.details["restarted_as"]) for record in self.ledger.records]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with trio.open_nursery() as nursery:
        made = Stage(nursery)
        nursery.start_soon(made.restarts.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_nothing_is_listened_to_while_nothing_is_waited_for(stage: Stage) -> None:
    assert stage.node.heard is None
    await stage.killed()
    assert stage.node.heard is not None
    stage.node.names[NEW] = pod(NEW)
    stage.node.comes(NEW)
    await trio.testing.wait_all_tasks_blocked()
    assert stage.told == [("a", NEW)]
    assert stage.node.heard is None
    assert stage.restarts.waiting() == 0


async def test_its_files_come_later_than_its_cgroup(stage: Stage, autojump_clock: Jumps) -> None:
    await stage.killed()
    stage.node.comes(NEW)
    await trio.sleep(TRIES_S[0] + TRIES_S[1] / 2)
    assert stage.told == []
    stage.node.names[NEW] = pod(NEW)
    await trio.sleep(TRIES_S[1])
    assert stage.told == [("a", NEW)]


async def test_one_that_never_ran_is_left_after_some_looks_and_the_next_one_told(
    stage: Stage, autojump_clock: Jumps
) -> None:
    await stage.killed()
    stage.node.comes(NEW)
    await trio.sleep(sum(TRIES_S) + 1)
    assert len(stage.node.looks) == len(TRIES_S) + 1
    await trio.sleep(60)
    assert len(stage.node.looks) == len(TRIES_S) + 1
    third = "e" * 64
    stage.node.names[third] = pod(third)
    stage.node.comes(third)
    await trio.testing.wait_all_tasks_blocked()
    assert stage.told == [("a", third)]


async def test_the_kubelet_s_word_alone_tells_of_none(stage: Stage, autojump_clock: Jumps) -> None:
    await stage.killed()
    stage.node.names[NEW] = pod(NEW, why="not seen here")
    stage.node.comes(NEW)
    await trio.sleep(sum(TRIES_S) + 1)
    assert stage.told == []


async def test_the_one_that_was_ended_is_not_looked_at(stage: Stage) -> None:
    stage.node.there = [Found("/x", OLD, UID)]
    await stage.killed()
    assert stage.node.looks == []


async def test_one_that_came_before_anybody_listened(stage: Stage) -> None:
    stage.node.names[NEW] = pod(NEW)
    stage.node.there = [Found("/x", NEW, UID), Found("/y", "f" * 64, "uid-2")]
    await stage.killed()
    assert stage.told == [("a", NEW)]
    assert [container_id for container_id, _ in stage.node.looks] == [NEW]


async def test_after_the_kubelet_s_longest_back_off_nobody_waits(stage: Stage, autojump_clock: Jumps) -> None:
    await stage.killed()
    await trio.sleep(WATCH_NS / 1e9 + 1)
    assert stage.restarts.waiting() == 0
    assert stage.node.heard is None


async def test_other_pods_are_not_looked_at(stage: Stage) -> None:
    await stage.killed()
    stage.node.comes(NEW, "uid-2")
    await trio.testing.wait_all_tasks_blocked()
    assert stage.node.looks == []


@pytest.mark.parametrize(
    ("members", "init_pid", "waits"),
    [
        ((), 0, True),  # empty
        ((8, 9), 7, True),  # its first process has gone, the runtime ends the rest
        ((7, 8), 7, False),
        ((8, 9), 0, False),  # nobody knows which was the first
    ],
)
async def test_whether_it_ended_is_looked_at(
    members: tuple[int, ...], init_pid: int, waits: bool, stage: Stage
) -> None:
    stage.node.names[OLD] = pod(OLD, init_pid=init_pid)
    stage.node.members[OLD] = members
    await stage.killed()
    assert stage.restarts.waiting() == int(waits)


async def test_one_of_unknown_name_or_that_can_t_be_found_out_is_not_waited_for(stage: Stage) -> None:
    await stage.killed(container_id="f" * 64)
    stage.node.refusal = TargetRefused("two of them")
    await stage.killed()
    assert stage.restarts.waiting() == 0


async def test_where_the_cgroups_can_t_be_looked_through_it_is_said_and_it_is_waited_for(stage: Stage) -> None:
    class Refusing(FakeNode):
        def containers(self) -> Iterable[Found]:
            raise TargetRefused("too many")

    node = Refusing()
    node.names[OLD] = pod(OLD)
    restarts = Restarts(node, stage.restarts._recorder, stage.clock, stage.say)
    stage.nursery.start_soon(restarts.serve)
    stage.restarts = restarts
    await stage.killed()
    assert [fields for _, _, fields in stage.said] == [{"reason": "too many"}]
    assert restarts.waiting() == 1


async def test_bounded_in_acts_and_in_new_containers(stage: Stage) -> None:
    for number in range(MAX_WATCHED + 5):
        await stage.killed(str(number))
    assert stage.restarts.waiting() == MAX_WATCHED
    assert [event for _, event, _ in stage.said] == ["not every container that was ended is waited for"]
    for number in range(MAX_NEW + 5):
        stage.node.comes(f"{number:064x}")
    await trio.testing.wait_all_tasks_blocked()
    assert len(stage.node.looks) == MAX_NEW


async def test_cancelled_it_listens_no_more() -> None:
    async with trio.open_nursery() as nursery:
        stage = Stage(nursery)
        nursery.start_soon(stage.restarts.serve)
        await stage.killed()
        assert stage.node.heard is not None
        nursery.cancel_scope.cancel()
    assert stage.node.heard is None
