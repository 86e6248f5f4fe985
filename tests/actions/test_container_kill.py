"""container:kill against a node made of values: what it says in each case. Real cgroups: tests/real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from stoop.actions.container import kill
from stoop.errors import ActFailed, StoopError, TargetGone, TargetRefused
from stoop.node import ContainerFacts, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)

BOX = ContainerFacts("c" * 64, "", "boot", "/v2", "", 100, (100, 101))


@dataclass
class Node:
    """A node with one container: it ends after so many kills, or a kill raises something."""

    needed: int = 1
    error: StoopError | None = None
    kills: int = 0
    held: list[Held] = field(default_factory=list)
    init_is_in: str = BOX.container_id

    def hold(self, pid: int) -> Held:
        if not self.init_is_in:
            raise TargetGone("already exited")
        self.held.append(Held(self, pid, looked_at=True))
        return self.held[-1]

    def kill_container(self, container: ContainerFacts) -> None:
        if self.error is not None:
            raise self.error
        self.kills += 1

    def container_members(self, container: ContainerFacts) -> tuple[int, ...]:
        return BOX.members if self.kills < self.needed else ()

    async def wait_container_empty(self, container: ContainerFacts) -> None:
        await trio.lowlevel.checkpoint()
        if self.container_members(container):
            await trio.sleep_forever()


@dataclass
class Held:
    """Its init."""

    node: Node
    pid: int
    closed: bool = False
    gone: bool = False
    looked_at: bool = False
    signals: list[int] = field(default_factory=list)

    @property
    def facts(self) -> ProcessFacts:
        return ProcessFacts(
            pid=self.pid,
            birth=1,
            start_ns=0,
            start_slack_ns=0,
            boot_id="boot",
            ppid=1,
            comm="init",
            exe="/init",
            uid=0,
            kernel_thread=False,
            mnt_ns=1,
            cgroups=(),
            container_id=self.node.init_is_in,
        )

    def again(self) -> Held:
        self.node.held.append(Held(self.node, self.pid))
        return self.node.held[-1]

    def has_exited(self) -> bool:
        return self.gone

    def signal(self, signo: int) -> bool:
        self.signals.append(signo)
        return True

    def state(self) -> str:
        return "D"

    async def wait_exited(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.closed = True


def context(node: Node, container: ContainerFacts | None = BOX, protected: str = "") -> ActContext:
    protects: Callable[[ProcessFacts], str] = lambda facts: protected  # noqa: E731
    return ActContext(
        host=node,  # type: ignore[arg-type]
        params=None,
        process=None,
        container=container,
        protects=protects,
        protects_container=lambda container: "",
    )


async def test_it_is_done_when_it_is_empty(autojump_clock: MockClock) -> None:
    node = Node()
    ctx = context(node)
    begun = kill.begin(ctx)
    assert isinstance(begun, Begun)
    assert node.held[0].signals == [9]
    assert await kill.verify(ctx, begun) == Outcome(
        Verdict.DONE, details={"container_id": BOX.container_id, "count": 2}
    )
    assert node.held[0].closed


async def test_it_is_killed_again_and_ever_more_seldom(autojump_clock: MockClock) -> None:
    node = Node(needed=4)
    ctx = context(node)
    begun = kill.begin(ctx)
    assert isinstance(begun, Begun)
    started = trio.current_time()
    outcome = await kill.verify(ctx, begun)
    assert outcome.details["killed_again"] == 3
    assert trio.current_time() - started == pytest.approx(0.1 + 0.2 + 0.4, abs=0.05)


async def test_a_deadline_closes_nothing_for_it_is_watched_on(autojump_clock: MockClock) -> None:
    node = Node(needed=1000)
    ctx = context(node)
    begun = kill.begin(ctx)
    assert isinstance(begun, Begun)
    with trio.move_on_after(1) as scope:
        await kill.verify(ctx, begun)
    assert scope.cancelled_caught
    assert not node.held[0].closed
    outcome = kill.overdue(ctx, begun)
    assert (outcome.verdict, outcome.reason) == (
        Verdict.FAILED,
        "killed, yet not empty: 2 left, its init in state D",
    )
    node.needed = 0
    assert (await kill.verify(ctx, begun)).verdict is Verdict.DONE


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (TargetGone("x"), Verdict.SKIPPED),
        (TargetRefused("x"), Verdict.REFUSED),
        (ActFailed("x"), Verdict.FAILED),
    ],
)
def test_what_the_node_says_is_the_outcome(error: StoopError, verdict: Verdict) -> None:
    node = Node(error=error)
    assert kill.begin(context(node)) == Outcome(verdict, "x")
    assert node.held[0].closed


def test_a_protected_init_saves_it() -> None:
    node = Node()
    assert kill.begin(context(node, protected="needed")) == Outcome(Verdict.REFUSED, "the container's init: needed")
    assert (node.kills, node.held[0].closed) == (0, True)


@pytest.mark.parametrize("other", [{}, {"pid": 101}, {"gone": True}])
def test_an_init_that_is_the_alert_s_own_process_is_not_looked_at_twice(other: dict[str, Any]) -> None:
    node = Node()
    seen = Held(node, **{"pid": BOX.init_pid} | other)
    ctx = msgspec.structs.replace(context(node), seen=seen)
    assert isinstance(kill.begin(ctx), Begun)
    assert [held.pid for held in node.held] == [BOX.init_pid]
    assert node.held[0].looked_at == bool(other)
    assert not seen.closed
    assert not seen.signals


async def test_an_init_that_has_gone_or_is_another_s_is_not_touched(autojump_clock: MockClock) -> None:
    for node in (Node(init_is_in=""), Node(init_is_in="d" * 64)):
        ctx = context(node)
        begun = kill.begin(ctx)
        assert isinstance(begun, Begun)
        assert all(held.closed and not held.signals for held in node.held)
        assert (await kill.verify(ctx, begun)).verdict is Verdict.DONE


def test_nothing_to_kill() -> None:
    assert kill.begin(context(Node(), None)) == Outcome(Verdict.REFUSED, "no container was found for it")
    empty = ContainerFacts(BOX.container_id, "", "boot", "/v2", "", 0, ())
    assert kill.begin(context(Node(), empty)) == Outcome(Verdict.SKIPPED, "no process is left in the container")
