"""What a pod's metadata answers: labels, annotations, owners; what it does not have, and what is not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.podmeta import Owner, PodMeta, is_metadata

REPLICAS = Owner("ReplicaSet", "web-5f7", "apps/v1")
POD = PodMeta(
    "uid",
    "shop",
    "web-5f7-x2x",
    labels={"app": "web", "app.kubernetes.io/name": "shop", "pod-template-hash": "5f7", "empty": ""},
    annotations={"team/page": "who"},
    owner=REPLICAS,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k8s.pod.label[app]", "web"),
        ("k8s.pod.label.app", "web"),
        ("k8s.pod.label[app.kubernetes.io/name]", "shop"),
        ("k8s.pod.label.app.kubernetes.io/name", "shop"),
        ("k8s.pod.label[empty]", ""),
        ("k8s.pod.label[tier]", None),
        ("k8s.pod.label[team/page]", None),
        ("k8s.pod.annotation[team/page]", "who"),
        ("k8s.pod.annotation.app", None),
        ("k8s.rs.name", "web-5f7"),
        ("k8s.rc.name", None),
        ("k8s.deployment.name", "web"),
        ("k8s.pod.owner.kind", "ReplicaSet"),
        ("k8s.pod.owner.name", "web-5f7"),
    ],
)
def test_a_field_and_its_value(field: str, value: str | None) -> None:
    assert is_metadata(field)
    assert POD.fields([field]) == {field: value}


@pytest.mark.parametrize(
    "field",
    [
        *("k8s.ns.name", "k8s.pod.name", "proc.name", "k8s.pod.labels", "k8s.pod.label", "k8s.pod.label.", ""),
        *("k8s.pod.label[]", "k8s.pod.label[app", "k8s.pod.label]app", "k8s.pod.labelx", "k8s.pod.annotation[]"),
        *("k8s.ns.label[app]", "k8s.pod.owner", "K8S.POD.LABEL[APP]"),
    ],
)
def test_other_fields_are_not_answered(field: str) -> None:
    assert not is_metadata(field)
    assert POD.fields([field]) == {}


@pytest.mark.parametrize(
    ("owner", "labels", "deployment"),
    [
        (REPLICAS, {"pod-template-hash": "5f7"}, "web"),
        (REPLICAS, {"pod-template-hash": "other"}, None),
        (REPLICAS, {"pod-template-hash": ""}, None),
        (REPLICAS, {}, None),
        (Owner("ReplicaSet", "-5f7", "apps/v1"), {"pod-template-hash": "5f7"}, None),
        (Owner("ReplicaSet", "web-5f7", "example.org/v1"), {"pod-template-hash": "5f7"}, None),
        (Owner("DaemonSet", "web-5f7", "apps/v1"), {"pod-template-hash": "5f7"}, None),
        (None, {"pod-template-hash": "5f7"}, None),
    ],
)
def test_a_deployment_is_told_by_its_replica_set_s_name(
    owner: Owner | None, labels: dict[str, str], deployment: str | None
) -> None:
    pod = PodMeta("uid", "shop", "web", labels=labels, owner=owner)
    assert pod.fields(["k8s.deployment.name"]) == {"k8s.deployment.name": deployment}


def test_without_an_owner() -> None:
    fields = ("k8s.rs.name", "k8s.rc.name", "k8s.deployment.name", "k8s.pod.owner.kind", "k8s.pod.owner.name")
    assert PodMeta("uid", "shop", "bare").fields(fields) == dict.fromkeys(fields)


def test_what_was_left_out_is_not_known_and_what_is_there_is() -> None:
    pod = PodMeta("uid", "shop", "web-5f7-x2x", labels={"app": "web"}, owner=REPLICAS, cut=True)
    asked = ("k8s.pod.label[app]", "k8s.pod.label[tier]", "k8s.pod.annotation.a", "k8s.deployment.name", "k8s.rs.name")
    assert pod.fields(asked) == {"k8s.pod.label[app]": "web", "k8s.rs.name": "web-5f7"}


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
def test_a_field_is_answered_exactly_if_it_is_metadata(tail: str, values: dict[str, str]) -> None:
    pod = PodMeta("uid", "shop", "web", labels=values, annotations=values)
    for field in (f"k8s.pod.label{tail}", f"k8s.pod.annotation{tail}", tail):
        assert (field in pod.fields([field])) is is_metadata(field)
