"""The responder on a node of values: what waits. Lanes, deadlines, cancellation, the queue."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from stoop.amending import AMEND_SECONDS, MAX_AMENDING
from stoop.backlog import INLINE_RUNS, QUEUE_CAPACITY
from stoop.lanes import MAX_WAITING
from stoop.respond import STOPPED
from stoop.spec import (
    Verdict,
)
from stoop.testing import alert_of
from stoop.testing_node import FakeHost
from tests.responding import (
    DEADLINE,
    STUCK,
    balanced,
    bench_of,
    rule,
    step,
)


class TestLanes:
    async def test_acts_on_one_target_follow_each_other(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait"), name="1"), rule(step("wait"), name="2"))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        await trio.testing.wait_all_tasks_blocked()
        assert process.signals == [15]
        assert bench.responder.load() == {"queued": 0, "lanes": 1, "waiting": 1}
        process.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert [(name, verdict) for name, verdict, _ in bench.told] == [("1", "done"), ("2", "skipped")]
        assert balanced(bench)

    async def test_acts_on_two_targets_go_on_side_by_side(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait")))
        one, two = bench.host.add(40), bench.host.add(41)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40), alert_of(proc_pid=41))
        assert one.signals == two.signals == [15]
        two.exit()
        await trio.testing.wait_all_tasks_blocked()
        assert [record.target["pid"] for record in bench.ledger.records] == [41]
        one.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert balanced(bench)

    async def test_what_waits_too_long_for_one_target_expires(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait")))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        for number in range(MAX_WAITING + 2):
            bench.accept(alert_of(proc_pid=40, evt_num=number))
        assert bench.told == [("rule", "expired", "queue full: too much waits for this target")]
        assert bench.metrics.samples()["queue_dropped_total"] == [((), 1)]
        process.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert [verdict for _, verdict, _ in bench.told] == ["expired", "done", "skipped"]
        assert balanced(bench)

    async def test_rules_may_change_while_an_act_is_under_way(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait"), step("done"), name="old"))
        process = bench.host.add(40)
        bench.host.add(41)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        bench.use([rule(step("done"), name="new")])
        bench.accept(alert_of(proc_pid=41))
        process.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert [(name, verdict) for name, verdict, _ in bench.told] == [
            ("new", "done"),
            ("old", "done"),
            ("old", "done"),
        ]
        assert balanced(bench)


class TestDeadline:
    async def test_a_stuck_act_is_given_up_and_amended_when_it_ends_after_all(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        stuck, other = bench.host.add(40), bench.host.add(41)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40), alert_of(proc_pid=41))
        other.exit()
        await trio.sleep(DEADLINE / 2)
        assert [record.target["pid"] for record in bench.ledger.records] == [41]
        await bench.responder.idle()
        assert trio.current_time() == pytest.approx(DEADLINE)
        given_up = bench.ledger.records[1]
        assert (given_up.verdict, given_up.reason, given_up.amends) == (*STUCK, False)
        assert given_up.timing.verified_ns == 0
        assert bench.host.open_holds == 2
        await trio.sleep(60)
        stuck.exit()
        await trio.testing.wait_all_tasks_blocked()
        amended = bench.ledger.records[2]
        assert (amended.act, amended.verdict, amended.amends) == (given_up.act, Verdict.DONE, True)
        assert amended.timing.verified_ns
        assert balanced(bench)

    async def test_an_amended_record_touches_no_slot_that_has_become_anothers(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        first, second = bench.host.add(40), bench.host.add(41)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        await bench.responder.idle()
        bench.accept(alert_of(proc_pid=41))
        first.exit()
        await trio.testing.wait_all_tasks_blocked()
        assert [intent.pid for intent in bench.ledger.open.values()] == [41]
        second.exit()
        await bench.responder.idle()
        assert balanced(bench)

    async def test_a_stuck_act_does_not_keep_its_target_from_being_tried_again(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        for number in range(2):
            bench.accept(alert_of(proc_pid=40, evt_num=number))
            await bench.responder.idle()
        assert process.signals == [15, 15]
        assert bench.told == [("rule", *map(str, STUCK))] * 2

    async def test_what_never_ends_is_let_go_in_time(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        await trio.sleep(DEADLINE + AMEND_SECONDS + 1)
        assert len(bench.ledger.records) == 1
        assert balanced(bench)

    async def test_only_so_many_are_watched(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        await nursery.start(bench.responder.serve)
        for pid in range(100, 100 + MAX_AMENDING + 3):
            bench.host.add(pid)
            bench.accept(alert_of(proc_pid=pid))
        await bench.responder.idle()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.host.open_holds == 2 * MAX_AMENDING

    async def test_a_late_failure_is_told_too(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait and fail")))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        await bench.responder.idle()
        process.exit()
        await trio.testing.wait_all_tasks_blocked()
        assert [
            (reason, record.amends) for (_, _, reason), record in zip(bench.told, bench.ledger.records, strict=True)
        ] == [
            ("still there", False),
            ("it ended otherwise", True),
        ]
        assert balanced(bench)


class TestCancelled:
    """Each await of the way is cut once. Every matched alert has exactly one record then, and nothing is held."""

    async def test_while_an_act_is_verified(self) -> None:
        bench = bench_of(rule(step("wait"), step("done")))
        bench.host.add(40)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            bench.accept(alert_of(proc_pid=40))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert bench.told == [("rule", "failed", "begun, but the agent stopped before it was verified")]
        assert balanced(bench)

    async def test_before_a_lane_has_run(self) -> None:
        bench = bench_of(rule(step("wait")))
        bench.host.add(40)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            bench.accept(alert_of(proc_pid=40))
            nursery.cancel_scope.cancel()
        assert [verdict for _, verdict, _ in bench.told] == ["failed"]
        assert balanced(bench)

    async def test_while_runs_wait_in_a_lane(self) -> None:
        bench = bench_of(rule(step("wait"), name="1"), rule(step("wait"), name="2"))
        bench.host.add(40)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            for number in range(3):
                bench.accept(alert_of(proc_pid=40, evt_num=number))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert len({record.act for record in bench.ledger.records}) == len(bench.ledger.records) == 6
        assert [verdict for _, verdict, _ in bench.told] == ["failed"] + ["expired"] * 5
        assert {reason for _, _, reason in bench.told[1:]} == {STOPPED}
        assert balanced(bench)

    async def test_when_the_act_ends_in_the_same_moment(self) -> None:
        bench = bench_of(rule(step("wait"), name="1"), rule(step("wait"), name="2"))
        process = bench.host.add(40)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            bench.accept(alert_of(proc_pid=40))
            await trio.testing.wait_all_tasks_blocked()
            process.exit()
            nursery.cancel_scope.cancel()
        assert len({record.act for record in bench.ledger.records}) == len(bench.ledger.records) == 2
        assert balanced(bench)

    @pytest.mark.parametrize("turns", range(4))
    async def test_while_alerts_are_queued(self, turns: int) -> None:
        bench = bench_of(rule(step("done")))
        settled: list[int] = []
        pids = range(100, 100 + 4 * INLINE_RUNS)
        for pid in pids:
            bench.host.add(pid)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            bench.accept(*(alert_of(proc_pid=pid) for pid in pids), settled=lambda: settled.append(1))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert len({record.act for record in bench.ledger.records}) == len(bench.ledger.records) == len(pids)
        assert {(verdict, reason) for _, verdict, reason in bench.told} <= {("done", ""), ("expired", STOPPED)}
        assert settled == [1]
        assert balanced(bench)

    async def test_while_an_act_is_watched_to_be_amended(self, autojump_clock: trio.testing.MockClock) -> None:
        bench = bench_of(rule(step("wait")))
        bench.host.add(40)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            bench.accept(alert_of(proc_pid=40))
            await bench.responder.idle()
            nursery.cancel_scope.cancel()
        assert bench.told == [("rule", *map(str, STUCK))]
        assert balanced(bench)

    async def test_while_nothing_is_there(self) -> None:
        bench = bench_of(rule(step("wait")))
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.responder.serve)
            with trio.fail_after(5):
                await bench.responder.idle()
            nursery.cancel_scope.cancel()
        assert not bench.ledger.records


class TestQueue:
    def fill(self, host: FakeHost, count: int) -> None:
        for pid in range(100, 100 + count):
            host.add_in_container(pid, "a" * 64)

    async def test_a_quiet_container_is_not_held_up_by_a_noisy_one(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("done")))
        noisy = 3 * INLINE_RUNS
        self.fill(bench.host, noisy)
        bench.host.add_in_container(99, "b" * 64)
        await nursery.start(bench.responder.serve)
        loud = [alert_of(proc_pid=100 + number, container_id="a" * 12) for number in range(noisy)]
        bench.accept(*loud, alert_of(proc_pid=99, container_id="b" * 12))
        assert len(bench.ledger.records) == INLINE_RUNS
        assert 99 in [record.target["pid"] for record in bench.ledger.records[:2]]
        with trio.fail_after(5):
            await bench.responder.idle()
        assert len(bench.ledger.records) == noisy + 1
        assert balanced(bench)

    async def test_when_it_is_full_the_busiest_crowd_gives_way(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("done"), name="1"), rule(step("done"), name="2"))
        bench.host.add(40)
        bench.host.add(41)
        settled: list[int] = []
        await nursery.start(bench.responder.serve)
        crowd = [alert_of(proc_pid=40, evt_num=number) for number in range(QUEUE_CAPACITY)]
        bench.accept(*crowd, alert_of(proc_pid=41), settled=lambda: settled.append(1))
        lost = [record for record in bench.ledger.records if record.verdict is Verdict.EXPIRED]
        assert [(record.rule, record.reason, record.target["claimed_pid"]) for record in lost] == [
            ("1", "queue full", 40),
            ("2", "queue full", 40),
        ]
        with trio.fail_after(30):
            await bench.responder.idle()
        assert {record.target.get("pid") for record in bench.ledger.records if record.verdict is Verdict.DONE} == {
            40,
            41,
        }
        assert bench.metrics.samples()["queue_dropped_total"] == [((), 1)]
        assert settled == [1]
        assert balanced(bench)

    async def test_one_alert_sent_often_has_one_record_an_act_also_when_it_is_full(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("done")))
        bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(*[alert_of(proc_pid=40)] * (QUEUE_CAPACITY + 3))
        with trio.fail_after(30):
            await bench.responder.idle()
        acts = [record.act for record in bench.ledger.records if not record.amends]
        assert len(acts) == len(set(acts))
        assert balanced(bench)
