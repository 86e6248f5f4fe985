"""Whom an alert is about, by the node's word: what rules see, what refuses an act, what the record says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stoop.pods import PodFacts, Source, Told
from stoop.rules import ActionForm, Condition, MatchForm, RuleForm
from stoop.spec import (
    Action,
    ActionSpec,
    Outcome,
    Reach,
    Scope,
    TargetKind,
    Verdict,
)
from stoop.testing import POLICY, Workbench, alert_of

ID, OTHER = "c" * 64, "d" * 64
UID = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"


def action(name: str, target: TargetKind) -> Action:
    spec = ActionSpec(
        name=name, description="", target=target, scope=Scope.NODE, reach=Reach.PROCESS, continue_default=True
    )
    return Action(spec, begin=lambda ctx: Outcome(Verdict.DONE))


ACTIONS = (action("process", TargetKind.PROCESS), action("container", TargetKind.CONTAINER))
on_each = pytest.mark.parametrize("actionner", ["process", "container"])


def pod(namespace: str = "shop", name: str = "web-1", source: Source = Source.BUNDLE, **changes: Any) -> PodFacts:
    facts = PodFacts(
        ID,
        namespace=Told(namespace, source),
        name=Told(name, source),
        uid=Told(UID, Source.CGROUP),
        container=Told("app", source),
        image=Told("web:1", source),
        in_pod=True,
    )
    return msgspec.structs.replace(facts, **changes)


def bench_of(actionner: str = "process", *entry: Condition) -> Workbench:
    match = MatchForm(rules=("Shell",), entries=(entry,) if entry else ())
    form = RuleForm("rule", match, (ActionForm("do it", actionner, continue_=True),))
    policy = msgspec.structs.replace(POLICY, protected_namespaces=frozenset({"kube-system"}))
    bench = Workbench(ACTIONS, [form], policy=policy)
    bench.host.add_in_container(40, ID, pod_uid=UID)
    return bench


def told(bench: Workbench) -> list[tuple[str, str]]:
    assert not bench.host.open_holds
    return [(verdict, reason) for _, verdict, reason in bench.told]


def differs(value: str) -> Condition:
    return Condition("k8s.ns.name", True, (value,))


# ---------------------------------------------------------------- what rules see


@on_each
def test_a_field_that_the_alert_lacks_has_the_node_s_value(actionner: str) -> None:
    for field, value in (
        ("k8s.ns.name", "shop"),
        ("k8s.pod.name", "web-1"),
        ("k8s.pod.uid", UID),
        ("k8s.pod.id", UID),
        ("container.name", "app"),
    ):
        for asked, times in ((value, 1), ("other", 0)):
            bench = bench_of(actionner, Condition(field, False, (asked,)))
            bench.host.pods[ID] = pod()
            bench.accept(alert_of(proc_pid=40, k8s_ns_name=None))
            assert told(bench) == [("done", "")] * times


@on_each
def test_what_had_to_differ_is_proven_by_the_node(actionner: str) -> None:
    bench = bench_of(actionner, differs("dev"))
    bench.accept(alert_of(proc_pid=40))
    bench.memory.forget_targets()
    bench.host.pods[ID] = pod()
    bench.accept(alert_of(proc_pid=40, evt_num=2))
    bench.host.pods[ID] = pod("dev")
    bench.accept(alert_of(proc_pid=40, evt_num=3))
    assert told(bench) == [
        ("refused", "k8s.ns.name can't be resolved here, and the rule exempts a value of it"),
        ("done", ""),
    ]


def test_a_container_of_no_pod_differs_from_every_namespace() -> None:
    bench = bench_of("process", differs("dev"))
    bench.host.pods[ID] = PodFacts(ID, in_pod=False)
    bench.accept(alert_of(proc_pid=40))
    assert told(bench) == [("done", "")]


def test_the_kubelet_s_word_counts_for_rules_too() -> None:
    bench = bench_of("process", Condition("k8s.ns.name", False, ("shop",)))
    bench.host.pods[ID] = pod(source=Source.KUBELET)
    bench.accept(alert_of(proc_pid=40))
    assert told(bench) == [("done", "")]


def test_a_container_is_resolved_when_the_process_of_the_alert_has_ended() -> None:
    bench = bench_of(
        "container", Condition("k8s.ns.name", False, ("shop",)), Condition("container.id", False, (ID[:12],))
    )
    bench.host.pods[ID] = pod()
    bench.accept(alert_of(proc_pid=41, container_full__id=ID))
    assert told(bench) == [("done", "")]


def test_a_pid_given_anew_resolves_nothing() -> None:
    bench = bench_of("container", Condition("k8s.ns.name", False, ("shop",)))
    bench.host.pods[ID] = pod()
    bench.host.add_in_container(41, ID, start_ns=bench.clock.now)
    bench.accept(alert_of(proc_pid=41, container_id=ID[:12]))
    assert told(bench) == []


# ---------------------------------------------------------------- what refuses


@on_each
@pytest.mark.parametrize(
    ("claimed", "reason"),
    [
        ({"k8s_ns_name": "dev"}, "the alert says k8s.ns.name 'dev', the node (bundle) 'shop'"),
        ({"k8s_pod_name": "web-2"}, "the alert says k8s.pod.name 'web-2', the node (bundle) 'web-1'"),
        ({"k8s_pod_uid": "u"}, f"the alert says k8s.pod.uid 'u', the node (cgroup) '{UID}'"),
    ],
)
def test_an_alert_that_disagrees_about_who_it_is(claimed: dict[str, Any], reason: str, actionner: str) -> None:
    bench = bench_of(actionner)
    bench.host.pods[ID] = pod()
    bench.accept(alert_of(proc_pid=40, container_id=ID[:12], **claimed))
    assert told(bench) == [("refused", reason)]
    (record,) = bench.ledger.records
    assert record.target["namespace"] == "shop"


@on_each
def test_the_weaker_word_refuses_nothing(actionner: str) -> None:
    bench = bench_of(actionner)
    bench.host.pods[ID] = pod(source=Source.KUBELET)
    bench.accept(alert_of(proc_pid=40, k8s_ns_name="dev", k8s_pod_name="x"))
    assert told(bench) == [("done", "")]


@on_each
@pytest.mark.parametrize("source", [Source.BUNDLE, Source.KUBELET])
def test_a_namespace_is_protected_by_the_node_s_word_where_the_alert_has_none(source: Source, actionner: str) -> None:
    bench = bench_of(actionner)
    bench.host.pods[ID] = pod("kube-system", source=source)
    bench.accept(alert_of(proc_pid=40))
    reason = f"namespace kube-system is protected (guard.protected_namespaces); so says the node ({source})"
    assert told(bench) == [("refused", reason)]


@on_each
def test_a_namespace_is_protected_by_the_alert_s_word_too(actionner: str) -> None:
    bench = bench_of(actionner)
    bench.host.pods[ID] = pod(source=Source.KUBELET)
    bench.accept(alert_of(proc_pid=40, k8s_ns_name="kube-system"))
    assert told(bench) == [("refused", "namespace kube-system is protected (guard.protected_namespaces)")]


def test_a_process_that_moved_into_another_pod_s_cgroup_does_not_get_its_protection() -> None:
    """Falco still names the container it came from; what its cgroup says of the pod counts for nothing then."""
    bench = bench_of()
    bench.host.add_in_container(41, OTHER, pod_uid="other")
    bench.host.pods[OTHER] = pod("kube-system", container_id=OTHER)
    bench.host.pods[ID] = pod()
    bench.accept(alert_of(proc_pid=41, container_id=ID[:12], k8s_ns_name="shop"))
    assert told(bench) == [("done", "")]
    (record,) = bench.ledger.records
    assert record.target["namespace"] == "shop"
    assert (record.target["container_id"], record.target["claimed_container_id"]) == (OTHER, ID[:12])


def test_one_that_moved_out_of_every_container_keeps_its_pod() -> None:
    bench = bench_of("process", Condition("k8s.ns.name", False, ("shop",)))
    bench.host.pods[ID] = pod()
    bench.host.add(41, mnt_ns=77, pid_ns=78)
    bench.accept(alert_of(proc_pid=41, container_id=ID[:12]))
    assert told(bench) == [("done", "")]


# ---------------------------------------------------------------- what is recorded


def test_the_record_says_each_value_and_where_it_was_read() -> None:
    bench = bench_of()
    bench.host.pods[ID] = pod(container=Told("app", Source.KUBELET), image=Told())
    bench.accept(alert_of(proc_pid=40, container_id=ID[:12], k8s_ns_name="shop", container_name="x"))
    (record,) = bench.ledger.records
    told = {key: record.target[key] for key in ("namespace", "pod", "pod_uid", "container", "told_by")}
    assert told == {
        "namespace": "shop",
        "pod": "web-1",
        "pod_uid": UID,
        "container": "app",
        "told_by": {"namespace": "bundle", "pod": "bundle", "pod_uid": "cgroup", "container": "kubelet"},
    }


def test_where_the_node_tells_nothing_the_alert_s_word_is_marked_as_such() -> None:
    bench = bench_of()
    bench.host.add_in_container(41, OTHER)
    bench.accept(
        alert_of(proc_pid=41, k8s_ns_name="shop", k8s_pod_name="x" * 999, k8s_pod_uid=7, container_name="<NA>")
    )
    (record,) = bench.ledger.records
    assert record.target["told_by"] == {"namespace": "alert", "pod": "alert"}
    assert record.target["pod"] == "x" * 253
    assert "pod_uid" not in record.target


def test_a_process_of_the_host_has_no_pod() -> None:
    form = RuleForm(
        "rule", MatchForm(rules=("Shell",)), (ActionForm("do it", "process", continue_=True),), allow_host=True
    )
    bench = Workbench(ACTIONS, [form])
    bench.host.add(41)
    bench.accept(alert_of(proc_pid=41, container_id="host"))
    (record,) = bench.ledger.records
    assert record.verdict is Verdict.DONE
    assert "told_by" not in record.target


def test_an_act_that_ended_before_the_pod_was_asked_for_has_the_cgroup_s_word() -> None:
    bench = bench_of()
    bench.host.pods[ID] = pod()
    bench.accept(alert_of(proc_pid=40, k8s_pod_uid=UID), alert_of(proc_pid=40, k8s_pod_uid="other"))
    first, repeat = (record.target for record in bench.ledger.records)
    assert first["told_by"]["namespace"] == "bundle"
    assert (repeat["pod_uid"], repeat["told_by"]) == (UID, {"pod_uid": "cgroup"})
