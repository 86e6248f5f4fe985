"""Whom an alert is about, by the API's word: what rules see of a pod, what refuses an act, what is recorded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stoop.podmeta import Owner, PodMeta
from stoop.pods import PodFacts, Source, Told
from stoop.rules import ActionForm, Condition, MatchForm, RuleForm
from stoop.testing import Workbench, alert_of
from tests.test_subject import ACTIONS, ID, UID, bench_of, on_each, pod, told

APP, TIER, NOTE = "k8s.pod.label[app]", "k8s.pod.label[tier]", "k8s.pod.annotation[note]"
META = PodMeta(UID, "shop", "web-1", labels={"app": "web"}, owner=Owner("StatefulSet", "web", "apps/v1"))
UNNAMED = PodFacts(ID, uid=Told(UID, Source.CGROUP), in_pod=True, why="the runtime's files are not seen")


def ask(*conditions: Condition, actionner: str = "process", facts: PodFacts | None = None) -> Workbench:
    bench = bench_of(actionner, *conditions)
    bench.host.pods[ID] = pod().joined(META) if facts is None else facts
    return bench


def undecided(bench: Workbench) -> dict[str, int]:
    return bench.metrics.by("alerts_undecided_total", 0)


# ---------------------------------------------------------------- what rules see


@on_each
@pytest.mark.parametrize(
    ("field", "negated", "value", "acts"),
    [
        (APP, False, "web", 1),
        (APP, False, "db", 0),
        (APP, True, "db", 1),
        (APP, True, "web", 0),
        (TIER, False, "front", 0),
        (TIER, True, "front", 1),
        (NOTE, True, "spare", 1),
        ("k8s.pod.owner.kind", False, "StatefulSet", 1),
        ("k8s.pod.owner.name", False, "web", 1),
        ("k8s.deployment.name", True, "web", 1),
    ],
)
def test_metadata_decides_for_what_the_alert_lacks(
    field: str, negated: bool, value: str, acts: int, actionner: str
) -> None:
    bench = ask(Condition(field, negated, (value,)), actionner=actionner)
    bench.accept(alert_of(proc_pid=40))
    assert told(bench) == [("done", "")] * acts
    assert undecided(bench) == {}


def test_the_alert_s_own_value_counts_first() -> None:
    bench = ask(Condition(APP, False, ("db",)))
    alert = alert_of(proc_pid=40)
    alert.fields[APP] = "db"
    bench.accept(alert)
    assert told(bench) == [("done", "")]


@on_each
@pytest.mark.parametrize("facts", [pod(), UNNAMED, pod().joined(msgspec.structs.replace(META, labels={}, cut=True))])
def test_what_is_not_known_matches_nothing_and_exempts_nothing(facts: PodFacts, actionner: str) -> None:
    bench = ask(Condition(APP, False, ("web",)), actionner=actionner, facts=facts)
    bench.accept(alert_of(proc_pid=40))
    assert (told(bench), undecided(bench)) == ([], {"rule": 1})
    assert bench.recorder.take_undecided() == {"rule": (1, frozenset({APP}))}
    assert bench.recorder.take_undecided() == {}
    bench = ask(Condition(APP, True, ("db",)), actionner=actionner, facts=facts)
    bench.accept(alert_of(proc_pid=40))
    reason = f"{APP} can't be resolved here, and the rule exempts a value of it"
    assert (told(bench), undecided(bench)) == ([("refused", reason)], {})


def test_only_a_candidate_is_looked_up() -> None:
    bench = ask(Condition(APP, False, ("web",)), Condition("proc.name", False, ("sh",)))
    bench.accept(alert_of("Another", proc_pid=40, proc_name="sh"), alert_of(proc_pid=40, proc_name="ls"))
    assert (told(bench), bench.host.held) == ([], [])
    bench.accept(alert_of(proc_pid=40, proc_name="sh"))
    assert (told(bench), bench.host.held) == ([("done", "")], [40])


def test_what_fails_by_another_condition_is_not_said_to_be_undecided() -> None:
    bench = ask(Condition(APP, False, ("web",)), Condition("k8s.ns.name", False, ("dev",)), facts=pod())
    bench.accept(alert_of(proc_pid=40))
    assert (told(bench), undecided(bench)) == ([], {})


def test_a_container_of_no_pod_and_a_process_of_the_host_have_no_labels() -> None:
    for facts, pid in ((PodFacts(ID, in_pod=False), 40), (None, 41)):
        form = RuleForm(
            "rule",
            MatchForm(rules=("Shell",), entries=((Condition(APP, True, ("db",)),),)),
            (ActionForm("do it", "process", continue_=True),),
            allow_host=True,
        )
        bench = Workbench(ACTIONS, [form])
        bench.host.add_in_container(40, ID)
        bench.host.add(41)
        if facts is not None:
            bench.host.pods[ID] = facts
        bench.accept(alert_of(proc_pid=pid, container_id="host" if pid == 41 else ID[:12]))
        assert told(bench) == [("done", "")]


def test_the_api_names_a_pod_whose_cgroup_alone_is_known() -> None:
    bench = ask(Condition("k8s.ns.name", False, ("shop",)), facts=UNNAMED.joined(META))
    bench.accept(alert_of(proc_pid=40))
    assert told(bench) == [("done", "")]
    (record,) = bench.ledger.records
    assert record.target["told_by"] == {"pod_uid": "cgroup", "namespace": "api", "pod": "api", "owner": "api"}


# ---------------------------------------------------------------- what refuses


@on_each
@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"name": "web-2"}, "the node (bundle) says k8s.pod.name 'web-1', the API 'web-2'"),
        ({"namespace": "dev"}, "the node (bundle) says k8s.ns.name 'shop', the API 'dev'"),
    ],
)
def test_a_node_and_an_api_that_disagree_about_who_it_is(meta: dict[str, str], reason: str, actionner: str) -> None:
    facts = pod().joined(msgspec.structs.replace(META, **meta))
    bench = ask(Condition(APP, False, ("web",)), actionner=actionner, facts=facts)
    bench.accept(alert_of(proc_pid=40))
    assert told(bench) == [("refused", reason)]


@on_each
@pytest.mark.parametrize(
    ("claimed", "reason"),
    [
        ({"k8s_ns_name": "dev"}, "the alert says k8s.ns.name 'dev', the API 'shop'"),
        ({"k8s_pod_name": "web-2"}, "the alert says k8s.pod.name 'web-2', the API 'web-1'"),
        ({"k8s_pod_uid": "u"}, f"the alert says k8s.pod.uid 'u', the node (cgroup) '{UID}'"),
    ],
)
def test_an_alert_and_an_api_that_disagree(claimed: dict[str, Any], reason: str, actionner: str) -> None:
    bench = ask(actionner=actionner, facts=UNNAMED.joined(META))
    bench.accept(alert_of(proc_pid=40, container_id=ID[:12], **claimed))
    assert told(bench) == [("refused", reason)]


@on_each
def test_a_namespace_is_protected_by_the_api_s_word(actionner: str) -> None:
    meta = msgspec.structs.replace(META, namespace="kube-system")
    bench = ask(actionner=actionner, facts=UNNAMED.joined(meta))
    bench.accept(alert_of(proc_pid=40))
    reason = "namespace kube-system is protected (guard.protected_namespaces); so says the API"
    assert told(bench) == [("refused", reason)]


def test_the_api_counts_more_than_a_word_that_can_be_forged() -> None:
    forged = pod("kube-system", "spare-me", source=Source.KUBELET)
    bench = ask(Condition(APP, False, ("web",)), facts=forged.joined(META))
    bench.accept(alert_of(proc_pid=40, k8s_ns_name="shop"))
    assert told(bench) == [("done", "")]
    (record,) = bench.ledger.records
    assert (record.target["namespace"], record.target["pod"]) == ("shop", "web-1")


# ---------------------------------------------------------------- what is recorded


def test_the_record_says_what_was_asked_and_by_whose_word() -> None:
    bench = ask(Condition(APP, False, ("web",)), Condition(TIER, True, ("x",)))
    bench.accept(alert_of(proc_pid=40))
    (record,) = bench.ledger.records
    assert record.target["metadata"] == {APP: "web"}
    assert record.target["owner"] == "StatefulSet/web"
    assert record.target["told_by"] == {
        "namespace": "bundle",
        "pod": "bundle",
        "pod_uid": "cgroup",
        "container": "bundle",
        "image": "bundle",
        "owner": "api",
        "metadata": "api",
    }
    assert "api_age_s" not in record.target


def test_a_record_is_bounded_and_says_how_old_a_stale_word_is() -> None:
    labels = {f"l{number:02}": "x" * 999 for number in range(40)}
    conditions = [Condition(f"k8s.pod.label[{key}]", False, (value,)) for key, value in labels.items()]
    facts = pod().joined(msgspec.structs.replace(META, labels=labels))
    bench = ask(*conditions, facts=msgspec.structs.replace(facts, stale_s=200))
    bench.accept(alert_of(proc_pid=40))
    (record,) = bench.ledger.records
    metadata = record.target["metadata"]
    assert isinstance(metadata, dict)
    assert (len(metadata), {len(value) for value in metadata.values()}) == (16, {253})
    assert record.target["api_age_s"] == 200
