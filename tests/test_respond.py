"""The responder on a node of values: one record an act, lanes, cancellation, fairness, repeats, batches."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from stoop.backlog import INLINE_RUNS, QUEUE_CAPACITY
from stoop.catalogue import CATALOGUE
from stoop.engine import act_id, run_id
from stoop.errors import ActFailed
from stoop.lanes import MAX_WAITING
from stoop.record import Record, Timing
from stoop.respond import AMEND_SECONDS, MAX_AMENDING, STOPPED
from stoop.rules import ActionForm, Condition, MatchForm, RuleForm
from stoop.spec import ActContext, Action, ActionSpec, Begun, Mode, Outcome, Reach, Scope, TargetKind, Verdict
from stoop.testing import NOW_NS, FakeHost, Workbench, alert_of

DEADLINE = 2.0
STUCK = (Verdict.FAILED, "still there")


def spec(name: str, target: TargetKind = TargetKind.PROCESS) -> ActionSpec:
    return ActionSpec(
        name=name,
        description="",
        target=target,
        scope=Scope.NODE,
        reach=Reach.PROCESS,
        continue_default=True,
    )


def raises(_: ActContext) -> Outcome:
    raise ActFailed("not permitted")


def signals(ctx: ActContext) -> Begun | Outcome:
    """Signal 15, which the fake process ignores as long as a test likes. One more hold is kept beside it."""
    assert ctx.process is not None
    if not ctx.process.signal(15):
        return Outcome(Verdict.SKIPPED, "already exited")
    return Begun((ctx.host.hold(ctx.process.facts.pid),))


async def until_exit(ctx: ActContext, begun: Begun) -> Outcome:
    assert ctx.process is not None
    await ctx.process.wait_exited()
    for held in begun.held:
        held.close()
    return Outcome(Verdict.DONE)


async def fails_at_exit(ctx: ActContext, begun: Begun) -> Outcome:
    await until_exit(ctx, begun)
    raise ActFailed("it ended otherwise")


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    return Outcome(*STUCK)


ACTIONS = (
    CATALOGUE.actions["process:kill"],
    Action(spec("done"), begin=lambda ctx: Outcome(Verdict.DONE, details={"how": "at once"})),
    Action(spec("fails"), begin=lambda ctx: Outcome(Verdict.FAILED, "no such thing")),
    Action(spec("raises"), begin=raises),
    Action(spec("wait"), begin=signals, verify=until_exit, overdue=overdue),
    Action(spec("wait and fail"), begin=signals, verify=fails_at_exit, overdue=overdue),
)


def step(actionner: str, *, goes_on: bool = True, ignore: bool = False) -> ActionForm:
    return ActionForm(f"do {actionner}", actionner, continue_=goes_on, ignore_errors=ignore)


def rule(*steps: ActionForm, name: str = "rule", **changes: Any) -> RuleForm:
    form = RuleForm(rule=name, match=MatchForm(rules=("Shell",)), actions=steps, allow_host=True)
    return msgspec.structs.replace(form, **changes)


def bench_of(*rules: RuleForm, window_s: float = 5.0) -> Workbench:
    return Workbench(ACTIONS, rules, window_s=window_s, deadline_s=DEADLINE)


def balanced(bench: Workbench) -> bool:
    """Every alert that was taken is settled, nothing is held, no slot is taken or was misused."""
    ledger = bench.ledger
    settled = ledger.accepted_alerts == ledger.settled_alerts
    return settled and not bench.host.open_holds and not ledger.open and not ledger.misused


class TestOneAlertOneRule:
    async def test_the_record_says_who_what_and_when(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("process:kill")))
        bench.clock.step_ns = 10_000
        process = bench.host.add_in_container(40, "c" * 64, pod_uid="pod-1", comm="nc", exe="/bin/nc", uid=7, ppid=3)
        await nursery.start(bench.responder.serve)
        alert = alert_of(proc_pid=40, container_id="c" * 12, k8s_ns_name="shop")
        bench.accept(alert)
        with trio.fail_after(5):
            await bench.responder.idle()
        assert process.signals == [9]
        (record,) = bench.ledger.records
        timing = record.timing
        run = run_id(record.alert, "rule")
        assert record == Record(
            alert=record.alert,
            run=run,
            act=act_id(run, 0),
            rule="rule",
            action="do process:kill",
            actionner="process:kill",
            verdict=Verdict.DONE,
            reason="",
            target={
                "pid": 40,
                "birth": 1_000_040,
                "comm": "nc",
                "exe": "/bin/nc",
                "uid": 7,
                "ppid": 3,
                "proven_by": "start",
                "container_id": "c" * 64,
                "pod_uid": "pod-1",
                "namespace": "shop",
                "told_by": {"namespace": "alert", "pod_uid": "cgroup"},
            },
            timing=timing,
            details=record.details,
            falco_rule="Shell",
            priority="Notice",
            output=alert.output,
            mode=Mode.ENFORCE,
        )
        assert record.details["signal"] == "KILL"
        assert record.details["count"] == 1
        assert len(record.alert) == 32
        assert timing.event_ns == NOW_NS - 1_000_000
        assert timing.event_ns < timing.received_ns < timing.decided_ns < timing.acted_ns < timing.verified_ns
        assert bench.shown == [record]
        assert balanced(bench)

    async def test_the_intent_is_written_before_and_marked_when_it_has_begun(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait")))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        (intent,) = bench.ledger.begun
        assert (intent.pid, intent.birth, intent.rule, intent.actionner) == (40, 1_000_040, "rule", "wait")
        assert intent.target == process.facts.identity
        assert not bench.ledger.records
        process.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert [record.act for record in bench.ledger.records] == [intent.act]
        assert balanced(bench)

    def test_an_act_that_ends_at_once_needs_no_lane(self) -> None:
        bench = bench_of(rule(step("done")))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        (record,) = bench.ledger.records
        assert (record.verdict, record.details) == (Verdict.DONE, {"how": "at once"})
        assert record.timing == Timing(NOW_NS - 1_000_000, NOW_NS, NOW_NS, NOW_NS, 0)
        assert balanced(bench)

    def test_an_alert_that_no_rule_takes_leaves_nothing_but_its_count(self) -> None:
        bench = bench_of(rule(step("done")))
        bench.accept(alert_of("Another"))
        assert not bench.ledger.records
        assert not bench.host.held
        assert (bench.ledger.accepted_alerts, bench.ledger.settled_alerts) == (1, 1)

    @pytest.mark.parametrize(
        ("actionner", "reason"), [("fails", "no such thing"), ("raises", "not permitted"), ("wait and fail", "")]
    )
    async def test_an_act_that_fails_may_be_tried_again(
        self, actionner: str, reason: str, nursery: trio.Nursery
    ) -> None:
        bench = bench_of(rule(step(actionner)))
        bench.host.add(40)
        await nursery.start(bench.responder.serve)
        for number in range(2):
            bench.accept(alert_of(proc_pid=40, evt_num=number))
            bench.host.processes[40].exit()
            with trio.fail_after(5):
                await bench.responder.idle()
            bench.host.add(40)
        expected = ("rule", "failed", reason or "it ended otherwise")
        assert bench.told == [expected, expected]
        assert balanced(bench)


class TestChains:
    @pytest.mark.parametrize(
        ("steps", "verdicts"),
        [
            ((step("done"), step("done"), step("done")), ["done", "done", "done"]),
            ((step("done", goes_on=False), step("done")), ["done"]),
            ((step("fails"), step("done")), ["failed"]),
            ((step("raises"), step("done")), ["failed"]),
            ((step("fails", ignore=True), step("done")), ["failed", "done"]),
            ((step("fails", ignore=True, goes_on=False), step("done")), ["failed"]),
        ],
    )
    def test_continue_and_ignore_errors(self, steps: tuple[ActionForm, ...], verdicts: list[str]) -> None:
        bench = bench_of(rule(*steps))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        assert [verdict for _, verdict, _ in bench.told] == verdicts
        run = bench.ledger.records[0].run
        assert [record.act for record in bench.ledger.records] == [act_id(run, n) for n in range(len(verdicts))]
        assert bench.host.held == [40]
        assert balanced(bench)

    async def test_a_chain_goes_on_after_what_was_waited_for(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("done"), step("wait"), step("done"), step("wait", goes_on=False), step("done")))
        process = bench.host.add(40)
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40))
        assert bench.told == [("rule", "done", "")]
        process.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert [verdict for _, verdict, _ in bench.told] == ["done", "done", "done", "skipped"]
        assert balanced(bench)

    def test_a_dry_run_does_all_but_the_act(self) -> None:
        bench = bench_of(rule(step("done"), step("fails"), dry_run=True))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        assert bench.told == [("rule", "would", "dry run of the rule")] * 2
        assert not bench.ledger.intents
        assert balanced(bench)

    def test_a_rule_without_continue_stops_later_rules(self) -> None:
        bench = bench_of(
            rule(step("done"), name="1"), rule(step("done"), name="2", continue_=False), rule(step("done"), name="3")
        )
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        assert [name for name, _, _ in bench.told] == ["1", "2"]
        assert balanced(bench)

    def test_a_rule_that_turns_out_not_to_match_stops_nothing(self) -> None:
        in_shop = MatchForm(rules=("Shell",), entries=((Condition("k8s.ns.name", False, ("shop",)),),))
        bench = bench_of(rule(step("done"), name="1", match=in_shop, continue_=False), rule(step("done"), name="2"))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        assert [name for name, _, _ in bench.told] == ["2"]
        assert balanced(bench)


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


class TestOddTimes:
    @pytest.mark.parametrize("began_before_s", [0.5, 2.0, 10.0])
    def test_a_clock_of_falcos_that_is_ahead_spares_nobody_who_began_before_the_event(
        self, began_before_s: float
    ) -> None:
        bench = bench_of(rule(step("done")))
        bench.host.add(40, start_ns=NOW_NS - int(began_before_s * 1e9), start_slack_ns=5_000)
        bench.host.add(41, start_ns=NOW_NS - 100_000, start_slack_ns=5_000)
        bench.judge.skew.sample(-3_000_000_000, NOW_NS - 1_000_000_000)
        event_ns = NOW_NS + 3_000_000_000 - 1_000_000  # it happened 1 ms ago, by a clock that is 3 s ahead
        bench.accept(alert_of(proc_pid=40, time_ns=event_ns), alert_of(proc_pid=41, time_ns=event_ns))
        assert [verdict for _, verdict, _ in bench.told] == ["done", "refused"]

    @pytest.mark.parametrize("time_ns", [253_402_300_799 * 10**9, -30_610_224_000 * 10**9])
    def test_a_time_beyond_64_bits_is_recorded_as_far_as_they_go(self, time_ns: int) -> None:
        bench = bench_of(rule(step("done")))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40, time_ns=time_ns))
        (record,) = bench.ledger.records
        assert abs(record.timing.event_ns) == 2**63 - 1
        assert record.verdict is Verdict.EXPIRED


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


class TestRepeats:
    def test_the_first_is_recorded_and_later_ones_are_counted_once_a_second(self) -> None:
        bench = bench_of(rule(step("done")))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40, evt_num=0))
        original = bench.ledger.records[0].act
        for number in range(1, 4):
            bench.accept(alert_of(proc_pid=40, evt_num=number))
        assert bench.told[1:] == [("rule", "skipped", f"duplicate of {original}")]
        assert bench.ledger.records[1].act != original
        assert bench.ledger.counts == []
        bench.clock.advance(1)
        bench.accept(alert_of(proc_pid=40, evt_num=4))
        assert bench.ledger.counts == [(original, 4)]
        bench.accept(alert_of(proc_pid=40, evt_num=5))
        bench.responder.tell_repeats()
        assert bench.ledger.counts == [(original, 4)]
        bench.clock.advance(1)
        bench.responder.tell_repeats()
        bench.responder.tell_repeats()
        assert bench.ledger.counts == [(original, 4), (original, 5)]
        assert bench.metrics.by("acts_repeated_total", 0) == {"done": 5}
        assert balanced(bench)

    def test_after_the_window_it_is_no_repeat(self) -> None:
        bench = bench_of(rule(step("done")), window_s=5)
        bench.host.add(40)
        for number in range(2):
            bench.accept(alert_of(proc_pid=40, evt_num=number))
            bench.clock.advance(6)
        assert [verdict for _, verdict, _ in bench.told] == ["done", "done"]

    def test_the_same_alert_again_is_a_repeat_however_late(self) -> None:
        bench = bench_of(rule(step("done"), step("done")), window_s=5)
        bench.host.add(40)
        for _ in range(3):
            bench.accept(alert_of(proc_pid=40))
            bench.clock.advance(6)
        assert [verdict for _, verdict, _ in bench.told] == ["done", "done", "skipped"]
        assert balanced(bench)

    def test_one_that_could_not_be_done_is_not_recorded_twice_either(self) -> None:
        bench = bench_of(rule(step("done")))
        for _ in range(3):
            bench.accept(alert_of(proc_pid=40))
        assert [verdict for _, verdict, _ in bench.told] == ["skipped", "skipped"]
        assert bench.told[1][2] == f"duplicate of {bench.ledger.records[0].act}"
        assert balanced(bench)

    def test_an_act_of_an_earlier_life_is_only_counted(self) -> None:
        before = bench_of(rule(step("done")))
        before.host.add(40)
        before.accept(alert_of(proc_pid=40))
        act = before.ledger.records[0].act
        bench = bench_of(rule(step("done")))
        bench.host.add(40)
        bench.memory.restore([act], bench.clock.mono_ns())
        bench.accept(alert_of(proc_pid=40))
        assert not bench.ledger.records
        bench.clock.advance(1)
        bench.responder.tell_repeats()
        assert bench.ledger.counts == [(act, 1)]
        assert balanced(bench)

    def test_two_rules_are_no_repeats_of_each_other(self) -> None:
        bench = bench_of(rule(step("done"), name="1"), rule(step("done"), name="2"))
        bench.host.add(40)
        bench.accept(alert_of(proc_pid=40))
        assert bench.told == [("1", "done", ""), ("2", "done", "")]


class TestBatches:
    async def test_a_batch_is_settled_once_when_everything_is_recorded(self, nursery: trio.Nursery) -> None:
        bench = bench_of(rule(step("wait"), name="1"), rule(step("done"), name="2"))
        one, two = bench.host.add(40), bench.host.add(41)
        settled: list[int] = []
        await nursery.start(bench.responder.serve)
        sent = (alert_of(proc_pid=40), alert_of("Another"), alert_of(proc_pid=41))
        bench.accept(*sent, settled=lambda: settled.append(len(bench.ledger.records)))
        await trio.testing.wait_all_tasks_blocked()
        assert (bench.ledger.accepted_alerts, bench.ledger.settled_alerts) == (3, 1)
        one.exit()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.ledger.settled_alerts == 2
        assert settled == []
        two.exit()
        with trio.fail_after(5):
            await bench.responder.idle()
        assert settled == [4]
        assert bench.ledger.settled_alerts == 3

    async def test_an_act_that_is_given_up_settles_its_batch(
        self, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        bench = bench_of(rule(step("wait")))
        process = bench.host.add(40)
        settled: list[int] = []
        await nursery.start(bench.responder.serve)
        bench.accept(alert_of(proc_pid=40), settled=lambda: settled.append(1))
        await bench.responder.idle()
        process.exit()
        await trio.testing.wait_all_tasks_blocked()
        assert settled == [1]
        assert balanced(bench)

    def test_nothing_to_do_settles_at_once(self) -> None:
        bench = bench_of(rule(step("done")))
        settled: list[int] = []
        bench.accept(settled=lambda: settled.append(1))
        bench.accept(alert_of("Another"), settled=lambda: settled.append(2))
        assert settled == [1, 2]
        assert balanced(bench)
