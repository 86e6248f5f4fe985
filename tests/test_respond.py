"""The responder on a node of values: one record an act, chains, odd times, repeats, batches."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from stoop.engine import act_id, run_id
from stoop.record import Record, Timing
from stoop.rules import ActionForm, Condition, MatchForm
from stoop.spec import (
    Mode,
    Verdict,
)
from stoop.testing import alert_of
from stoop.testing_node import NOW_NS
from tests.responding import (
    balanced,
    bench_of,
    rule,
    step,
)


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


class TestRepeats:
    def test_a_refusal_does_not_spare_its_target_from_the_next_alert_and_is_told_once(self) -> None:
        careful = MatchForm(rules=("Shell",), entries=((Condition("k8s.ns.name", True, ("kube-system",)),),))
        bench = bench_of(rule(step("done"), match=careful))
        bench.host.add_in_container(40, "c" * 64)
        for number in range(3):
            bench.accept(alert_of(proc_pid=40, container_id="c" * 12, k8s_ns_name=None, evt_num=number))
        refused = bench.ledger.records[0]
        assert refused.verdict is Verdict.REFUSED
        assert bench.told[1:] == [("rule", "skipped", f"duplicate of {refused.act}")]
        bench.accept(alert_of(proc_pid=40, container_id="c" * 12, k8s_ns_name="shop", evt_num=3))
        assert bench.told[2:] == [("rule", "done", "")]
        assert balanced(bench)

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
