"""What the node says of a pod: as fields of an alert, as a contradiction to one, as words of a record."""

from __future__ import annotations

import msgspec
import pytest

from stoop.pods import NamespaceFacts, PodFacts, Source, Told

ID = "a" * 64
UID = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"
STRONG = PodFacts(
    ID,
    namespace=Told("shop", Source.BUNDLE),
    name=Told("web-1", Source.BUNDLE),
    uid=Told(UID, Source.CGROUP),
    container=Told("app", Source.BUNDLE),
    image=Told("shop/web:1", Source.BUNDLE),
    in_pod=True,
)
WEAK = msgspec.structs.replace(
    STRONG, namespace=Told("shop", Source.KUBELET), name=Told("web-1", Source.KUBELET), why="not seen"
)
IN_NONE = PodFacts(ID, container=Told("db", Source.BUNDLE), in_pod=False)


def test_the_fields_that_a_rule_can_ask_for() -> None:
    assert STRONG.fields() == {
        "k8s.ns.name": "shop",
        "k8s.pod.name": "web-1",
        "k8s.pod.uid": UID,
        "k8s.pod.id": UID,
        "container.name": "app",
    }


def test_what_is_known_to_have_no_pod_and_what_is_not_known() -> None:
    assert IN_NONE.fields() == {
        **dict.fromkeys(("k8s.ns.name", "k8s.pod.name", "k8s.pod.uid", "k8s.pod.id")),
        "container.name": "db",
    }
    assert PodFacts(ID, why="not seen").fields() == {}


@pytest.mark.parametrize(
    ("pod", "claimed", "said"),
    [
        (STRONG, {}, ""),
        (STRONG, {"k8s.ns.name": "shop", "k8s.pod.name": "web-1", "k8s.pod.uid": UID, "k8s.pod.id": UID}, ""),
        (STRONG, {"k8s.ns.name": None, "k8s.pod.name": "<NA>", "k8s.pod.uid": ""}, ""),
        (STRONG, {"container.name": "other"}, ""),
        (STRONG, {"k8s.ns.name": 7}, ""),
        (STRONG, {"k8s.ns.name": "kube-system"}, "the alert says k8s.ns.name 'kube-system', the node (bundle) 'shop'"),
        (STRONG, {"k8s.pod.name": "web-2"}, "the alert says k8s.pod.name 'web-2', the node (bundle) 'web-1'"),
        (STRONG, {"k8s.pod.uid": "u"}, f"the alert says k8s.pod.uid 'u', the node (cgroup) '{UID}'"),
        (STRONG, {"k8s.pod.id": "u"}, f"the alert says k8s.pod.id 'u', the node (cgroup) '{UID}'"),
        (STRONG, {"k8s.ns.name": "shop "}, "the alert says k8s.ns.name 'shop ', the node (bundle) 'shop'"),
        (WEAK, {"k8s.ns.name": "kube-system"}, ""),
        (WEAK, {"k8s.pod.uid": "u"}, f"the alert says k8s.pod.uid 'u', the node (cgroup) '{UID}'"),
        (
            IN_NONE,
            {"k8s.ns.name": "shop"},
            "the alert says k8s.ns.name 'shop', the node that the container is in no pod",
        ),
        (PodFacts(ID, why="not seen"), {"k8s.ns.name": "shop"}, ""),
    ],
)
def test_only_what_can_t_be_forged_contradicts(pod: PodFacts, claimed: dict[str, object], said: str) -> None:
    assert pod.contradicts(claimed) == said


def test_a_long_claim_with_control_characters_is_shown_short_and_on_one_line() -> None:
    said = STRONG.contradicts({"k8s.pod.name": "x\n" * 500})
    assert "\n" not in said
    assert len(said) < 200


def test_the_record_says_what_was_read_where() -> None:
    assert STRONG.describe() == {
        "namespace": "shop",
        "pod": "web-1",
        "pod_uid": UID,
        "container": "app",
        "image": "shop/web:1",
    }
    assert WEAK.sources() == {
        "namespace": "kubelet",
        "pod": "kubelet",
        "pod_uid": "cgroup",
        "container": "bundle",
        "image": "bundle",
    }
    assert PodFacts(ID).describe() == PodFacts(ID).sources() == {}


@pytest.mark.parametrize(("net", "told"), [(1, True), (2, False)])
def test_a_pod_on_the_host_s_network(net: int, told: bool) -> None:
    facts = NamespaceFacts(ID, 5, 5, "", net=9, pid=9, mnt=9, pod_net=net, host_net=1, host_pid=1, host_mnt=1)
    assert facts.on_host_network is told
