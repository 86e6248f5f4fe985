"""Whether an act may begin: modes, age, limits, what is declared only, what can't be proven. No act is waited for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stoop.errors import TargetGone, TargetRefused
from stoop.rules import ActionForm, Condition, MatchForm, RuleForm
from stoop.spec import (
    Action,
    ActionSpec,
    Mode,
    Outcome,
    Reach,
    Scope,
    TargetKind,
    Verdict,
)
from stoop.testing import POLICY, Workbench, alert_of
from stoop.testing_node import NOW_NS, SECOND_NS

CONTAINER = "c" * 64
NOT_SYSTEM = MatchForm(rules=("Shell",), entries=((Condition("k8s.ns.name", True, ("kube-system",)),),))


def action(name: str, target: TargetKind, *, declared_only: bool = False) -> Action:
    spec = ActionSpec(
        name=name, description="", target=target, scope=Scope.NODE, reach=Reach.PROCESS, continue_default=True
    )
    return Action(spec, begin=None if declared_only else lambda ctx: Outcome(Verdict.DONE))


ACTIONS = (
    action("process", TargetKind.PROCESS),
    action("container", TargetKind.CONTAINER),
    action("later", TargetKind.PROCESS, declared_only=True),
)


def rule(actionner: str = "process", **changes: Any) -> RuleForm:
    form = RuleForm("rule", MatchForm(rules=("Shell",)), (ActionForm("do it", actionner, continue_=True),))
    return msgspec.structs.replace(form, **changes)


def bench_of(*rules: RuleForm, **limits: int) -> Workbench:
    bench = Workbench(ACTIONS, rules, policy=msgspec.structs.replace(POLICY, **limits))
    bench.host.add_in_container(40, CONTAINER)
    return bench


def only(bench: Workbench) -> tuple[str, str]:
    """Verdict and reason of the one record there is. Nothing is held any more."""
    ((_, verdict, reason),) = bench.told
    assert not bench.host.open_holds
    assert bench.ledger.accepted_alerts == bench.ledger.settled_alerts
    return verdict, reason


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "told", "held"),
        [
            (Mode.ENFORCE, ("done", ""), [40]),
            (Mode.OBSERVE, ("would", "observe mode"), [40]),
            (Mode.OFF, ("skipped", "the agent is off (`stoop mode`)"), []),
        ],
    )
    def test_each(self, mode: Mode, told: tuple[str, str], held: list[int]) -> None:
        bench = bench_of(rule())
        bench.mode = mode
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == told
        assert bench.ledger.records[0].mode is mode
        assert bench.host.held == held
        assert bool(bench.ledger.intents) is (mode is Mode.ENFORCE)

    def test_what_was_only_watched_is_no_repeat_once_the_mode_is_switched(self) -> None:
        bench = bench_of(rule())
        bench.mode = Mode.OBSERVE
        bench.accept(alert_of(proc_pid=40, evt_num=1))
        bench.mode = Mode.ENFORCE
        bench.memory.forget_targets()
        bench.accept(alert_of(proc_pid=40, evt_num=2))
        assert [verdict for _, verdict, _ in bench.told] == ["would", "done"]

    def test_what_the_guard_refuses_is_refused_in_observe_mode_and_in_a_dry_run_too(self) -> None:
        bench = bench_of(rule(dry_run=True))
        bench.mode = Mode.OBSERVE
        bench.host.add(41)
        bench.accept(alert_of(proc_pid=41))
        assert only(bench) == ("refused", "the process is in no container (the rule needs `allow_host: true`)")


class TestAge:
    @pytest.mark.parametrize(
        ("age_s", "verdict", "reason"),
        [
            (60, "done", ""),
            (61, "expired", "the alert is 61.0 s old (guard.max_alert_age is 60 s)"),
            (-10, "expired", "the alert is stamped 10.0 s ahead of this node's clock"),
        ],
    )
    def test_too_old_or_of_a_time_to_come(self, age_s: int, verdict: str, reason: str) -> None:
        bench = bench_of(rule())
        bench.accept(alert_of(time_ns=NOW_NS - age_s * SECOND_NS, proc_pid=40))
        assert only(bench) == (verdict, reason)

    def test_without_a_time_nothing_is_proven(self) -> None:
        bench = bench_of(rule())
        bench.accept(alert_of(time_ns=0, proc_pid=40))
        verdict, reason = only(bench)
        assert verdict == "refused"
        assert "no time" in reason


class TestLimits:
    def touch(self, bench: Workbench, *pids: int) -> list[str]:
        for pid in pids:
            bench.host.add_in_container(pid, f"{pid:064d}")
            bench.accept(alert_of(proc_pid=pid))
        return [verdict for _, verdict, _ in bench.told]

    def test_one_target_too_many_disarms_the_rule_until_it_is_armed(self) -> None:
        bench = bench_of(rule(), max_targets=2)
        assert self.touch(bench, 101, 102, 103, 104) == ["done", "done", "would", "would"]
        reason = "this rule would touch more than 2 distinct targets in a minute"
        assert bench.told[2][2] == f"the rule is disarmed now: {reason} (`stoop arm`)"
        assert bench.told[3][2] == f"the rule is disarmed: {reason} (`stoop arm`)"
        assert bench.disarmed == [("rule", reason)]
        assert bench.limits.arm("rule")
        assert self.touch(bench, 105)[4:] == ["done"]

    def test_the_limit_over_all_rules_disarms_all(self) -> None:
        other = rule(rule="other", match=MatchForm(rules=("Other",)))
        bench = bench_of(rule(), other, max_targets_total=1)
        bench.host.add_in_container(50, "5" * 64)
        bench.accept(alert_of(proc_pid=40))
        bench.accept(alert_of("Other", proc_pid=50))
        bench.accept(alert_of(proc_pid=50))
        assert [verdict for _, verdict, _ in bench.told] == ["done", "would", "would"]
        assert [name for name, _ in bench.disarmed] == ["*"]

    def test_one_target_often_is_one_target(self) -> None:
        bench = bench_of(rule(), max_targets=1)
        for pid in (41, 42, 43):
            bench.host.add_in_container(pid, CONTAINER)
            bench.accept(alert_of(proc_pid=pid))
        assert [verdict for _, verdict, _ in bench.told] == ["done"] * 3

    def test_after_a_minute_others_may_be_touched(self) -> None:
        bench = bench_of(rule(), max_targets=1)
        self.touch(bench, 101)
        bench.clock.mono += 61 * SECOND_NS
        assert self.touch(bench, 102) == ["done", "done"]

    @pytest.mark.parametrize("way", ["observe", "dry run"])
    def test_nothing_is_disarmed_where_nothing_is_done(self, way: str) -> None:
        bench = bench_of(rule(dry_run=way == "dry run"), max_targets=1)
        if way == "observe":
            bench.mode = Mode.OBSERVE
        assert self.touch(bench, 101, 102) == ["would", "would"]
        assert not bench.disarmed
        assert not bench.limits.disarmed
        assert bench.ledger.records[0].details == {}
        limit = "this rule would touch more than 1 distinct targets in a minute"
        assert bench.ledger.records[1].details == {"limit": limit}

    def test_what_is_refused_counts_against_no_limit(self) -> None:
        bench = bench_of(rule(), max_targets=1)
        bench.host.add(41)
        bench.accept(alert_of(proc_pid=41))
        bench.accept(alert_of(proc_pid=40))
        assert [verdict for _, verdict, _ in bench.told] == ["refused", "done"]

    def test_a_rule_that_was_disarmed_in_an_earlier_life(self) -> None:
        bench = bench_of(rule())
        bench.limits.disarmed["rule"] = "too many"
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == ("would", "the rule is disarmed: too many (`stoop arm`)")


class TestTargets:
    def test_an_action_that_is_only_declared(self) -> None:
        bench = bench_of(rule("later"))
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == ("refused", "later is not in this version")
        assert not bench.host.held

    @pytest.mark.parametrize(
        ("failure", "told"),
        [
            (TargetGone("no process 40"), ("skipped", "no process 40")),
            (TargetRefused("it can't be held"), ("refused", "it can't be held")),
        ],
    )
    def test_a_hold_that_fails(self, failure: TargetGone | TargetRefused, told: tuple[str, str]) -> None:
        bench = bench_of(rule())
        bench.host.refusals[40] = failure
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == told
        assert bench.ledger.records[0].target == {"claimed_pid": 40, "claimed_container_id": ""}

    def test_a_hold_that_fails_is_not_tried_again_for_each_rule(self) -> None:
        bench = bench_of(rule(), rule(rule="other"))
        bench.host.refusals[40] = TargetRefused("it can't be held")
        bench.accept(alert_of(proc_pid=40))
        assert bench.host.held == [40]
        assert [name for name, _, _ in bench.told] == ["rule", "other"]

    @pytest.mark.parametrize("pid", [0, -1, 1, 2**63, "40", None, True, 40.5])
    def test_a_pid_that_is_none_is_never_held(self, pid: object) -> None:
        bench = bench_of(rule())
        bench.accept(alert_of(proc_pid=pid))
        assert only(bench)[0] == "refused"
        assert not bench.host.held

    def test_a_pid_given_anew_is_let_go_at_once(self) -> None:
        bench = bench_of(rule())
        bench.host.add_in_container(40, CONTAINER, start_ns=NOW_NS + SECOND_NS)
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == ("refused", "pid 40 was given anew: its process began after the event")

    @pytest.mark.parametrize(("start_early_ns", "verdict"), [(2_000_000, "done"), (-2_000_000, "refused")])
    def test_a_start_too_near_to_tell_is_asked_for_more_exactly(self, start_early_ns: int, verdict: str) -> None:
        bench = bench_of(rule())
        event_ns = NOW_NS - SECOND_NS
        process = bench.host.add_in_container(40, CONTAINER, start_ns=event_ns - 5_000_000)
        process.precise = (event_ns - start_early_ns, 1000)
        bench.accept(alert_of(time_ns=event_ns, proc_pid=40))
        assert only(bench)[0] == verdict

    @pytest.mark.parametrize(("ppid", "verdict"), [(1, "done"), (2, "refused")])
    def test_where_no_start_tells_one_more_match_is_asked(self, ppid: int, verdict: str) -> None:
        bench = bench_of(rule())
        event_ns = NOW_NS - SECOND_NS
        bench.host.add_in_container(40, CONTAINER, start_ns=event_ns - 5_000_000)
        bench.accept(alert_of(time_ns=event_ns, proc_pid=40, proc_ppid=ppid))
        assert only(bench)[0] == verdict
        if verdict == "done":
            assert bench.ledger.records[0].target["proven_by"] == "proc.ppid"

    def test_a_protected_namespace(self) -> None:
        bench = bench_of(rule())
        bench.accept(alert_of(proc_pid=40, k8s_ns_name="kube-system"))
        assert only(bench) == ("refused", "namespace kube-system is protected (guard.protected_namespaces)")

    def test_the_agent_itself(self) -> None:
        bench = bench_of(rule(allow_host=True))
        bench.host.add(900)
        bench.accept(alert_of(proc_pid=900))
        assert only(bench) == ("refused", "it is the agent itself or a parent of it")


class TestContainers:
    def test_that_of_the_process(self) -> None:
        bench = bench_of(rule("container"))
        bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
        assert only(bench) == ("done", "")
        assert bench.ledger.records[0].target["container_id"] == CONTAINER
        assert bench.ledger.intents[0].target.endswith(CONTAINER)

    def test_the_one_named_when_its_process_has_ended(self) -> None:
        bench = bench_of(rule("container"))
        bench.accept(alert_of(proc_pid=77, container_id=CONTAINER[:12]))
        assert only(bench) == ("done", "")

    def test_another_than_that_of_the_process(self) -> None:
        bench = bench_of(rule("container"))
        bench.host.add_in_container(41, "d" * 64)
        bench.accept(alert_of(proc_pid=40, container_id="d" * 12))
        assert only(bench)[0] == "refused"

    def test_of_a_pid_given_anew_nothing_is_touched(self) -> None:
        bench = bench_of(rule("container"))
        bench.host.add_in_container(40, CONTAINER, start_ns=NOW_NS + SECOND_NS)
        bench.accept(alert_of(proc_pid=40, container_id=CONTAINER[:12]))
        assert only(bench)[0] == "refused"

    def test_none_at_all(self) -> None:
        bench = bench_of(rule("container", allow_host=True))
        bench.host.add(41)
        bench.accept(alert_of(proc_pid=41))
        assert only(bench) == ("refused", "the alert names no container, and its process is in none")

    def test_one_that_is_gone(self) -> None:
        bench = bench_of(rule("container"))
        bench.accept(alert_of(proc_pid=77, container_id="e" * 12))
        assert only(bench) == ("skipped", f"no container {'e' * 12}")


class TestUnknownFields:
    """The rule says `k8s.ns.name!=kube-system`, and the alert does not say which namespace it was."""

    @pytest.mark.parametrize("sent", [{}, {"k8s_ns_name": None}, {"k8s_ns_name": ""}, {"k8s_ns_name": "<NA>"}])
    def test_a_process_of_the_host_is_in_no_namespace(self, sent: dict[str, Any]) -> None:
        bench = bench_of(rule(match=NOT_SYSTEM, allow_host=True))
        bench.host.add(41)
        bench.accept(alert_of(proc_pid=41, **sent))
        assert only(bench) == ("done", "")

    def test_a_process_of_a_container_may_be_in_that_one(self) -> None:
        bench = bench_of(rule(match=NOT_SYSTEM))
        bench.accept(alert_of(proc_pid=40))
        assert only(bench) == ("refused", "k8s.ns.name can't be resolved here, and the rule exempts a value of it")
        assert bench.host.held == [40]

    def test_a_process_that_moved_out_of_its_container_s_cgroup_is_no_process_of_the_host(self) -> None:
        bench = bench_of(rule(match=NOT_SYSTEM, allow_host=True))
        bench.host.add(41, pid_ns=2, mnt_ns=2)
        bench.accept(alert_of(proc_pid=41, container_id=CONTAINER[:12]))
        assert only(bench) == ("refused", "k8s.ns.name can't be resolved here, and the rule exempts a value of it")

    def test_a_process_that_can_t_be_held_says_nothing(self) -> None:
        bench = bench_of(rule(match=NOT_SYSTEM))
        bench.host.refusals[40] = TargetRefused("it can't be held")
        bench.accept(alert_of(proc_pid=40))
        assert only(bench)[0] == "refused"

    def test_a_field_that_the_node_knows(self) -> None:
        one_pod = MatchForm(rules=("Shell",), entries=((Condition("k8s.pod.uid", False, ("pod-1",)),),))
        bench = bench_of(rule(match=one_pod))
        bench.host.add_in_container(41, "d" * 64, pod_uid="pod-1")
        bench.accept(alert_of(proc_pid=40))
        assert not bench.told
        assert not bench.host.open_holds
        bench.accept(alert_of(proc_pid=41))
        assert only(bench) == ("done", "")
