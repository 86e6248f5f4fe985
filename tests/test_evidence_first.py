"""Evidence before what destroys, on a node of values: who waits for it, for how long, and what the record says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from stoop.actions.container import freeze
from stoop.captures import Captured, Still, Wanted
from stoop.catalogue import CATALOGUE
from stoop.errors import ActFailed
from stoop.evidence_first import LATE, NO_HANDS, NOT_WRITTEN, SETTLE_SECONDS, First
from stoop.giveback import RETRY_SECONDS
from stoop.node import ContainerFacts, NodeHost, ProcessFacts
from stoop.rules import ActionForm, MatchForm, RuleForm
from stoop.spec import Outcome
from stoop.testing import FakeClock, Workbench, alert_of
from stoop.testing_node import SECOND_NS
from tests.responding import balanced

CONTAINER = "c0ffee" * 10 + "0000"

KILL = ActionForm("kill", "process:kill", continue_=False)
RULE = RuleForm(rule="rule", match=MatchForm(rules=("Shell",)), actions=(KILL,), allow_host=True)


class Capture:
    """One that a test brings on."""

    def __init__(self) -> None:
        self.all_read = trio.Event()
        self.all_done = trio.Event()
        self.captured: Captured | None = None

    async def read(self) -> None:
        await self.all_read.wait()

    async def ended(self) -> None:
        await self.all_done.wait()

    def end(self, captured: Captured) -> None:
        self.captured = captured
        self.all_read.set()
        self.all_done.set()


class Hands:
    """Captures that were asked for, and of whom."""

    def __init__(self) -> None:
        self.asked: list[tuple[Wanted, list[int], str]] = []
        self.captures: list[Capture] = []

    async def take(
        self,
        wanted: Wanted,
        processes: Sequence[ProcessFacts],
        container: ContainerFacts | None,
        still: Still | None = None,
    ) -> Captured:
        raise AssertionError("nobody asks for one alone here")

    def begin(self, wanted: Wanted, processes: Sequence[ProcessFacts], container: ContainerFacts | None) -> Capture:
        pids = [facts.pid for facts in processes]
        self.asked.append((wanted, pids, container.container_id if container is not None else ""))
        self.captures.append(Capture())
        return self.captures[-1]

    def release(self, act: str) -> None:
        raise AssertionError("no act holds a bundle here")


def bench_of(rule: RuleForm = RULE, **first: Any) -> tuple[Workbench, Hands]:
    """A node with one process in a container, 40, and one that is in none, 41; both end on SIGKILL."""
    bench = Workbench(CATALOGUE.actions.values(), [rule])
    bench.evidence_first(First(**first), [rule])
    bench.host.capture = hands = Hands()
    for process in (bench.host.add_in_container(40, CONTAINER), bench.host.add(41)):
        process.ends_on = frozenset({9})
    return bench, hands


def evidence(bench: Workbench) -> dict[str, Any]:
    """Of the only record."""
    (record,) = bench.ledger.records
    found: dict[str, Any] = record.details["evidence"]
    return found


async def test_the_kill_comes_when_all_was_read_and_the_target_stands_till_then(nursery: trio.Nursery) -> None:
    bench, hands = bench_of(always=True)
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    await trio.testing.wait_all_tasks_blocked()
    ((wanted, pids, container),) = hands.asked
    assert (pids, container, wanted.about.actionner, wanted.about.rule) == ([40], CONTAINER, "process:kill", "rule")
    assert (bench.host.frozen, bench.host.processes[40].signals) == ([(CONTAINER, True)], [])
    hands.captures[0].all_read.set()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.host.processes[40].signals == [9]
    assert bench.host.frozen == [(CONTAINER, True), (CONTAINER, False)]
    assert not bench.ledger.records, "its record waits a little for the bundle's name"
    hands.captures[0].end(Captured(True, details={"bundle": "00000001-x"}))
    with trio.fail_after(5):
        await bench.responder.idle()
    assert (evidence(bench)["taken"], evidence(bench)["bundle"]) == (True, "00000001-x")
    assert bench.ledger.records[0].act == wanted.about.act
    assert balanced(bench)


async def test_the_kill_comes_at_the_deadline(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    bench, _ = bench_of(always=True, deadline_s=0.5)
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    await bench.responder.idle()
    assert trio.current_time() == pytest.approx(0.5 + SETTLE_SECONDS)
    assert [verdict for _, verdict, _ in bench.told] == ["done"]
    found = evidence(bench)
    assert (found["taken"], found["late"], found["reason"], found["waited_ms"]) == (False, True, LATE, 500.0)
    assert balanced(bench)


async def test_what_is_read_and_not_written_in_time_is_said(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench, hands = bench_of(always=True)
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    await trio.testing.wait_all_tasks_blocked()
    hands.captures[0].all_read.set()
    await bench.responder.idle()
    assert (evidence(bench)["taken"], evidence(bench)["reason"]) == (False, NOT_WRITTEN)
    assert "late" not in evidence(bench)


async def test_what_fails_at_once_holds_nothing_up(nursery: trio.Nursery) -> None:
    bench, _ = bench_of(always=True)
    bench.host.capture = None
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    with trio.fail_after(5):
        await bench.responder.idle()
    assert (evidence(bench)["taken"], evidence(bench)["reason"]) == (False, NO_HANDS)
    assert bench.host.processes[40].signals == [9]


async def test_one_that_ends_meanwhile_is_skipped_and_its_evidence_told(nursery: trio.Nursery) -> None:
    bench, hands = bench_of(always=True)
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=41))
    await trio.testing.wait_all_tasks_blocked()
    bench.host.processes[41].exit()
    hands.captures[0].end(Captured(False, "none of its processes is left"))
    with trio.fail_after(5):
        await bench.responder.idle()
    assert [(verdict, reason) for _, verdict, reason in bench.told] == [("skipped", "already exited")]
    assert evidence(bench)["reason"] == "none of its processes is left"
    assert balanced(bench)


async def test_cancelled_amid_it_the_target_goes_on_and_nothing_was_done() -> None:
    bench, _ = bench_of(always=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert bench.host.frozen == [(CONTAINER, True), (CONTAINER, False)]
    assert bench.host.processes[40].signals == []
    assert [verdict for _, verdict, _ in bench.told] == ["failed"]
    assert balanced(bench)


@pytest.mark.parametrize(
    ("rule_says", "config_says", "waits"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
async def test_who_waits(rule_says: bool | None, config_says: bool, waits: bool, nursery: trio.Nursery) -> None:
    bench, hands = bench_of(msgspec.structs.replace(RULE, evidence_first=rule_says), always=config_says)
    await nursery.start(bench.responder.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    assert len(hands.asked) == 0
    assert (bench.host.processes[40].signals == [9]) is not waits
    await trio.testing.wait_all_tasks_blocked()
    assert bool(hands.asked) is waits


# ---------------------------------------------------------------- the end of a hold


class TrioClock(FakeClock):
    """CLOCK_MONOTONIC goes with trio's, which jumps to whatever is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = trio.current_time()

    def mono_ns(self) -> int:
        return self.mono + int((trio.current_time() - self._begun) * SECOND_NS)


async def test_an_end_that_fails_is_tried_again_and_evidence_taken_once(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    failures = [ActFailed("no")]

    async def at_end(host: NodeHost, state: dict[str, Any]) -> Outcome:
        if failures:
            raise failures.pop()
        return await freeze.at_end(host, state)

    parameters = {"ttl": "1m", "then": "kill"}
    step = ActionForm("freeze", "container:freeze", continue_=True, parameters=parameters)
    rule = msgspec.structs.replace(RULE, actions=(step,), evidence_first=True)
    action = msgspec.structs.replace(freeze.ACTION, at_end=at_end)
    bench = Workbench([action], [rule], clock=TrioClock())
    bench.evidence_first(First(deadline_s=0.5), [rule])
    bench.host.capture = hands = Hands()
    bench.host.add_in_container(40, CONTAINER)
    await nursery.start(bench.responder.serve)
    await nursery.start(bench.giveback.serve)
    bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
    await bench.responder.idle()
    (held,) = bench.holdings.table
    assert held.evidence_first
    await trio.sleep(60 + 0.5 + SETTLE_SECONDS + RETRY_SECONDS[0] + 1)
    first, failed, ended = bench.ledger.records
    assert [pids for _, pids, _ in hands.asked] == [[]]
    assert hands.asked[0][0].about.act == failed.act == ended.act
    assert [str(record.verdict) for record in (first, failed, ended)] == ["done", "failed", "done"]
    assert failed.details["evidence"] == {"taken": False, "reason": LATE, "late": True, "waited_ms": 500.0}
    assert ended.amends
    assert bench.host.processes[40].signals == []
    assert bench.host.processes[40].exited.is_set()
