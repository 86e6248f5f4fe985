"""The guard: facts against claims. Pure, so everything here is values."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from stoop import guard
from stoop.alert import Alert, decode
from stoop.errors import TargetRefused
from stoop.node import ContainerFacts, HostFacts, ProcessFacts
from stoop.skew import ESTABLISHED, Skew
from tests.test_skew import skewed

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
HOST_MNT, HOST_PID = 4026531832, 4026531836
CONTAINER = "a" * 64


def alert_of(**fields: Any) -> Alert:
    return decode(json.dumps({"rule": "R", "output_fields": fields}).encode())


def facts(**changes: Any) -> ProcessFacts:
    base = ProcessFacts(
        pid=4321,
        birth=100,
        start_ns=NOW - SECOND,
        start_slack_ns=10_000_000,
        boot_id="0123456789abcdef",
        ppid=4000,
        comm="sh",
        exe="/bin/sh",
        uid=0,
        kernel_thread=False,
        mnt_ns=HOST_MNT,
        pid_ns=HOST_PID,
        cgroups=(("", "/"),),
    )
    return msgspec.structs.replace(base, **changes)


HOST = HostFacts(
    boot_id="0123456789abcdef",
    pid_ns=HOST_PID,
    mnt_ns=HOST_MNT,
    pid_ns_is_root=True,
    own_pids=frozenset({900, 901}),
    own_cgroups=frozenset({"/agent"}),
    falco_pids=frozenset({700}),
    falco_cgroups=frozenset({"/system.slice/falco.service"}),
)

POLICY = guard.Policy(
    protected_namespaces=frozenset({"kube-system"}),
    protected_executables=guard.executables(["kubelet", "containerd-shim-*", "/opt/vault/bin/vault"]),
    max_alert_age_ns=60 * SECOND,
    max_targets=5,
    max_targets_total=8,
    any_pid_namespace=False,
)


class TestTargetPid:
    @pytest.mark.parametrize("pid", [2, 1298, guard.PID_LIMIT - 1])
    def test_a_pid_above_one_is_taken(self, pid: int) -> None:
        assert guard.target_pid(alert_of(**{"proc.pid": pid})) == pid

    @pytest.mark.parametrize(
        "pid", [-1, 0, 1, guard.PID_LIMIT, 2**63, 10**30, "4321", True, 4321.0, None, [4321], {"pid": 4321}]
    )
    def test_everything_else_is_refused(self, pid: object) -> None:
        with pytest.raises(TargetRefused):
            guard.target_pid(alert_of(**{"proc.pid": pid}))

    def test_a_missing_one_is_refused_with_the_way_to_mend_it(self) -> None:
        with pytest.raises(TargetRefused, match="falco-config"):
            guard.target_pid(alert_of())


FINE = 5_000
TICK = 10_000_000


class TestProve:
    @pytest.mark.parametrize(
        ("start_ns", "slack_ns", "proof"),
        [
            (NOW - SECOND, TICK, guard.Proof.MEANT),
            (NOW - TICK, TICK, guard.Proof.MEANT),
            (NOW + SECOND, TICK, guard.Proof.ANOTHER),
            (NOW - 3_000_000, TICK, guard.Proof.TOO_CLOSE),
            (NOW - 3_000_000, FINE, guard.Proof.MEANT),
            (NOW - 1_000, FINE, guard.Proof.MEANT),
            (NOW + 20_000, FINE, guard.Proof.TOO_CLOSE),
            (NOW + 150_000, FINE, guard.Proof.ANOTHER),
            (NOW + 3_000_000, FINE, guard.Proof.ANOTHER),
        ],
    )
    def test_a_start_before_the_event_proves_and_one_after_it_refutes(
        self, start_ns: int, slack_ns: int, proof: guard.Proof
    ) -> None:
        assert guard.prove(start_ns, slack_ns, NOW, Skew()) is proof

    def test_a_clock_that_runs_behind_is_allowed_for_once_it_is_known(self) -> None:
        behind = skewed(*[2 * SECOND] * ESTABLISHED)
        assert guard.prove(NOW + SECOND, FINE, NOW, behind) is guard.Proof.TOO_CLOSE
        assert guard.prove(NOW + SECOND, FINE, NOW, skewed(2 * SECOND)) is guard.Proof.ANOTHER

    def test_a_clock_that_runs_ahead_does_not_let_a_newcomer_pass(self) -> None:
        ahead = skewed(-SECOND)
        assert guard.prove(NOW - SECOND // 2, FINE, NOW, ahead) is guard.Proof.ANOTHER
        assert guard.prove(NOW - 2 * SECOND, TICK, NOW, ahead) is guard.Proof.MEANT


class TestPidTs:
    @pytest.mark.parametrize(
        ("seen_ns", "is_another"),
        [(NOW - 2 * SECOND, True), (NOW - SECOND - 20_000_000, False), (NOW, False), (0, False)],
    )
    def test_what_began_after_falco_saw_the_thread_begin_is_another(self, seen_ns: int, is_another: bool) -> None:
        said = guard.claims(alert_of(**{"proc.pid": 4321, "proc.pid.ts": seen_ns}))
        assert guard.after_falco_saw_it(said, NOW - SECOND, Skew()) is is_another


class TestOneMoreMatch:
    process = facts(ns_pids=(4321, 7), container_id=CONTAINER, exe_ino=77)

    @pytest.mark.parametrize(
        ("fields", "by"),
        [
            ({"proc.vpid": 7}, "proc.vpid"),
            ({"proc.ppid": 4000}, "proc.ppid"),
            ({"proc.exe_ino": 77}, "proc.exe_ino"),
            ({"container.id": CONTAINER[:12]}, "container.id"),
            ({}, ""),
            ({"proc.vpid": 8, "proc.ppid": 1, "proc.exe_ino": 1, "container.id": "b" * 12}, ""),
            ({"container.id": "host"}, ""),
        ],
    )
    def test_one_claim_that_the_node_confirms_is_enough(self, fields: dict[str, Any], by: str) -> None:
        assert guard.one_more_match(guard.claims(alert_of(**{"proc.pid": 4321, **fields})), self.process) == by

    def test_a_vpid_of_the_host_is_no_evidence(self) -> None:
        said = guard.claims(alert_of(**{"proc.pid": 4321, "proc.vpid": 4321}))
        assert guard.one_more_match(said, facts(ns_pids=(4321,))) == ""


class TestProtects:
    @pytest.mark.parametrize(
        ("process", "why"),
        [
            (facts(pid=1), "init"),
            (facts(kernel_thread=True), "kernel thread"),
            (facts(pid=901), "agent itself"),
            (facts(pid=700), "Falco"),
            (facts(cgroups=(("", "/system.slice/falco.service"),)), "Falco's cgroup"),
            (facts(exe="/usr/bin/kubelet"), "protected executable"),
            (facts(exe="/usr/bin/kubelet (deleted)"), "protected executable"),
            (facts(comm="containerd-shim-runc-v2"), "protected executable"),
            (facts(exe="/opt/vault/bin/vault"), "protected executable"),
        ],
    )
    def test_what_must_never_be_touched(self, process: ProcessFacts, why: str) -> None:
        assert why in guard.protects(process, HOST, POLICY)

    @pytest.mark.parametrize(
        "process",
        [
            facts(),
            facts(exe="/usr/bin/kubelet", comm="kubelet", container_id=CONTAINER, mnt_ns=1),
            facts(exe="/usr/bin/kubelet", comm="kubelet", container_id=CONTAINER),
            facts(comm="kubelet", mnt_ns=1),
            facts(exe="/opt/other/vault"),
            facts(comm="/opt/vault/bin/vault"),
        ],
    )
    def test_a_name_protects_only_on_the_host(self, process: ProcessFacts) -> None:
        assert guard.protects(process, HOST, POLICY) == ""


class TestJudge:
    def judge(
        self,
        process: ProcessFacts,
        fields: dict[str, Any] | None = None,
        *,
        allow_host: bool = False,
        host: HostFacts = HOST,
    ) -> str:
        said = guard.claims(alert_of(**{"proc.pid": process.pid, **(fields or {})}))
        return guard.judge(said, process, host, POLICY, allow_host=allow_host)

    def test_a_container_process_may_be_acted_on(self) -> None:
        assert self.judge(facts(container_id=CONTAINER, mnt_ns=1, pid_ns=2)) == ""

    def test_a_host_process_needs_the_rules_leave(self) -> None:
        assert "allow_host" in self.judge(facts())
        assert self.judge(facts(), allow_host=True) == ""

    def test_the_alerts_word_alone_makes_no_container(self) -> None:
        assert "allow_host" in self.judge(facts(), {"container.id": CONTAINER[:12]})

    def test_moving_out_of_its_cgroup_does_not_save_a_container_process(self) -> None:
        moved = facts(mnt_ns=1, pid_ns=2)
        assert self.judge(moved, {"container.id": CONTAINER[:12]}) == ""

    @pytest.mark.parametrize("field", ["k8s.ns.name", "ka.target.namespace"])
    def test_a_protected_namespace_is_protected(self, field: str) -> None:
        process = facts(container_id=CONTAINER, mnt_ns=1)
        assert "kube-system" in self.judge(process, {field: "kube-system"})

    def test_another_pid_namespace_is_refused_unless_configured(self) -> None:
        nested = msgspec.structs.replace(HOST, pid_ns_is_root=False)
        process = facts(container_id=CONTAINER, mnt_ns=1)
        assert "hostPID" in self.judge(process, host=nested)
        policy = msgspec.structs.replace(POLICY, any_pid_namespace=True)
        said = guard.claims(alert_of(**{"proc.pid": 4321}))
        assert guard.judge(said, process, nested, policy, allow_host=False) == ""


class TestJudgeContainer:
    container = ContainerFacts(
        container_id=CONTAINER,
        pod_uid="",
        boot_id="0123456789abcdef",
        cgroup_v2="/sys/fs/cgroup/x",
        cgroup_freezer="",
        init_pid=4321,
        members=(4321, 4322),
    )

    def judge(self, **changes: Any) -> str:
        said = guard.claims(alert_of(**{"container.id": CONTAINER[:12], **changes.pop("fields", {})}))
        return guard.judge_container(said, msgspec.structs.replace(self.container, **changes), HOST, POLICY)

    def test_a_container_may_be_acted_on(self) -> None:
        assert self.judge() == ""

    def test_own_falcos_empty_and_protected_ones_may_not(self) -> None:
        assert "agent's own" in self.judge(members=(900,))
        assert "Falco" in self.judge(cgroup_v2="/sys/fs/cgroup/system.slice/falco.service")
        assert "Falco" in self.judge(members=(700, 5))
        assert "no process" in self.judge(members=())
        assert "kube-system" in self.judge(fields={"k8s.ns.name": "kube-system"})


class TestAge:
    def test_old_alerts_expire_and_zero_means_never(self) -> None:
        assert guard.too_old(NOW - 59 * SECOND, NOW, POLICY) == ""
        assert "61.0 s old" in guard.too_old(NOW - 61 * SECOND, NOW, POLICY)
        assert guard.too_old(0, NOW, POLICY) == ""
        forever = msgspec.structs.replace(POLICY, max_alert_age_ns=0)
        assert guard.too_old(NOW - 10**6 * SECOND, NOW, forever) == ""

    def test_an_alert_of_a_time_to_come_is_not_acted_on(self) -> None:
        assert guard.too_old(NOW + 2 * SECOND, NOW, POLICY) == ""
        assert "3600.0 s ahead" in guard.too_old(NOW + 3600 * SECOND, NOW, POLICY)


class TestLimits:
    def test_a_rule_above_its_limit_is_disarmed_until_it_is_armed(self) -> None:
        limits = guard.Limits(POLICY, {})
        for number in range(5):
            assert limits.admit("R", f"t{number}", 0) == ""
        assert limits.admit("R", "t4", 0) == "", "the same target again is no new one"
        assert "more than 5" in limits.admit("R", "t5", 0)
        assert "more than 5" in limits.is_disarmed("R")
        assert limits.is_disarmed("S") == ""
        assert limits.arm("R")
        assert limits.is_disarmed("R") == ""
        assert limits.admit("R", "t5", 0) == ""

    def test_a_minute_later_there_is_room_again(self) -> None:
        limits = guard.Limits(POLICY, {})
        for number in range(5):
            limits.admit("R", f"t{number}", 0)
        assert limits.admit("R", "t5", guard.MINUTE_NS + 1) == ""

    def test_all_rules_together_have_a_limit(self) -> None:
        limits = guard.Limits(POLICY, {})
        for number in range(8):
            assert limits.admit(f"R{number}", f"t{number}", 0) == ""
        assert "all rules" in limits.admit("R9", "t9", 0)
        assert limits.is_disarmed("anything")

    def test_observing_disarms_nothing(self) -> None:
        limits = guard.Limits(POLICY, {})
        for number in range(5):
            limits.admit("R", f"t{number}", 0)
        assert limits.admit("R", "t5", 0, disarm=False)
        assert limits.disarmed == {}

    def test_zero_is_no_limit(self) -> None:
        limits = guard.Limits(msgspec.structs.replace(POLICY, max_targets=0, max_targets_total=0), {})
        assert all(limits.admit("R", f"t{number}", 0) == "" for number in range(100))

    def test_a_rule_of_which_nothing_is_counted_does_not_push_out_what_is(self) -> None:
        limits = guard.Limits(msgspec.structs.replace(POLICY, max_targets_total=0), {})
        for number in range(5):
            limits.admit("R", f"t{number}", 0)
        for number in range(guard.MAX_LIMIT_KEYS):
            limits.admit(f"R{number % 3000}", f"t{number}", 1)
        assert "more than 5" in limits.admit("R", "t5", 2)
