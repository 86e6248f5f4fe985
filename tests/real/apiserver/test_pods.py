"""Labels, annotations and owners of a node's pods, from a real API server and from a kubelet's stand-in: one suite."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio

from agent.pods.api import connected
from agent.pods.source import METADATA
from stoop.podmeta import Owner
from stoop.wire import PodsKey
from tests.real.apiserver.cluster import SECRET, Cluster
from tests.real.apiserver.sources import Rig

pytestmark = pytest.mark.real

_numbers = itertools.count(1)


@pytest.fixture(params=["watch", "kubelet"])
def rig(request: pytest.FixtureRequest, the_cluster: Cluster, tmp_path: Path) -> Rig:
    return Rig(request.param, the_cluster, f"node-{next(_numbers)}", tmp_path)


@pytest.fixture
def watching(the_cluster: Cluster, tmp_path: Path) -> Rig:
    return Rig("watch", the_cluster, f"node-{next(_numbers)}", tmp_path)


def owner(kind: str, name: str, version: str, *, controller: bool) -> dict[str, object]:
    uid = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"
    return {"kind": kind, "name": name, "apiVersion": version, "uid": uid, "controller": controller}


async def test_what_is_known_of_the_node_s_pods(rig: Rig) -> None:
    made = rig.cluster.pod(
        rig.namespace,
        "web-5f7-x2x",
        node=rig.node,
        labels={"app": "web", "pod-template-hash": "5f7"},
        annotations={"team/page": "who", "long": "x" * 2000},
        ownerReferences=[
            owner("Thing", "other", "example.org/v1", controller=False),
            owner("ReplicaSet", "web-5f7", "apps/v1", controller=True),
        ],
    )
    elsewhere = rig.cluster.pod(rig.namespace, "web-2", node="another-node", labels={"app": "web"})
    async with rig.asking():
        await rig.listed()
        pod = rig.known(made["metadata"]["uid"])
        assert pod is not None
        assert (pod.namespace, pod.name, pod.owner) == (
            rig.namespace,
            "web-5f7-x2x",
            Owner("ReplicaSet", "web-5f7", "apps/v1"),
        )
        asked = ("k8s.pod.label[app]", "k8s.pod.annotation[team/page]", "k8s.deployment.name", "k8s.pod.label[tier]")
        assert pod.fields((*asked, "k8s.pod.annotation[long]")) == {
            "k8s.pod.label[app]": "web",
            "k8s.pod.annotation[team/page]": "who",
            "k8s.deployment.name": "web",
            # None: it has no such label is not known, for something was left out; neither is the long one.
        }
        assert pod.cut
        assert rig.known(elsewhere["metadata"]["uid"]) is None
        assert len(rig.names.book) == 1


async def test_changes_are_seen(rig: Rig) -> None:
    first = rig.cluster.pod(rig.namespace, "first", node=rig.node, labels={"app": "a", "tier": "front"})
    uid = first["metadata"]["uid"]
    async with rig.asking():
        await rig.listed()
        rig.cluster.patch(rig.namespace, "first", {"labels": {"app": "b", "tier": None}})
        await rig.until(
            lambda: (pod := rig.known(uid)) is not None and pod.labels == {"app": "b"}, "a changed and a removed label"
        )
        second = rig.cluster.pod(rig.namespace, "second", node=rig.node, labels={"app": "c"})["metadata"]["uid"]
        await rig.until(lambda: rig.known(second) is not None, "a new pod")
        rig.cluster.delete(rig.namespace, "first")
        await rig.until(lambda: len(rig.names.book) == 1, "a deleted pod")
        assert rig.known(uid) is not None  # an alert about it may still be on its way
        assert rig.names.status()["error"] == ""


async def test_who_can_t_prove_that_he_is_the_server_gets_no_token(rig: Rig) -> None:
    rig.ca_file.write_bytes(rig.cluster.certificate(f"{rig.node}-other", "DNS:other")[0].read_bytes())
    async with rig.asking() as way:
        await rig.until(lambda: "CERTIFICATE_VERIFY_FAILED" in rig.names.error, "the certificate is refused")
        await rig.until(lambda: way.connections > 1, "it is tried again")
        assert not rig.names.book.is_listed
        rig.ca_file.write_bytes(rig.cluster.ca.read_bytes())
        await rig.listed()
        await rig.until(lambda: rig.names.error == "", "the trouble is over")


async def test_a_certificate_of_another_name_is_refused(rig: Rig) -> None:
    rig.server_name = "another-node"
    async with rig.asking():
        await rig.until(lambda: "another-node" in rig.names.error, "the name is refused")
        assert not rig.names.book.is_listed


async def test_a_token_is_read_again_when_it_was_refused(rig: Rig) -> None:
    good = rig.token_file.read_text()
    rig.token_file.write_text("a.bad.token")
    async with rig.asking():
        await rig.until(lambda: "it answers 401" in rig.names.error, "the token is refused")
        rig.token_file.unlink()
        await rig.until(lambda: "No such file" in rig.names.error, "there is no token")
        rig.token_file.write_text(good + "\n")
        await rig.listed()
        await rig.until(lambda: rig.names.error == "", "the trouble is over")
    assert good not in str(rig.said)


async def test_a_right_that_is_missing_is_told_in_the_server_s_words(rig: Rig) -> None:
    rig.token_file.write_text(rig.cluster.account(rig.namespace, "nobody", []))
    async with rig.asking():
        await rig.until(lambda: "it answers 403" in rig.names.error, "the right is missing")
        assert f"system:serviceaccount:{rig.namespace}:nobody" in rig.names.error


async def test_a_server_that_was_away_is_asked_again_and_nothing_known_is_lost(rig: Rig) -> None:
    uid = rig.cluster.pod(rig.namespace, "web-1", node=rig.node, labels={"app": "a"})["metadata"]["uid"]
    async with rig.asking() as way:
        await rig.listed()
        way.cut()
        await rig.until(lambda: rig.names.error != "", "the cut")
        rig.cluster.patch(rig.namespace, "web-1", {"labels": {"app": "b"}})
        pod = rig.known(uid)
        assert pod is not None
        assert pod.labels == {"app": "a"}
        age_ns = rig.names.book.age_ns
        assert age_ns > 0
        way.mend()
        await rig.until(lambda: (pod := rig.known(uid)) is not None and pod.labels == {"app": "b"}, "what changed")
        await rig.until(lambda: rig.names.error == "", "the trouble is over")
        lists = rig.names.book.lists
        assert lists == 1 or rig.kind == "kubelet"  # a watch goes on from where it was


# ---------------------------------------------------------------- the watch alone


async def test_a_watch_that_is_too_old_begins_anew_with_a_list(watching: Rig) -> None:
    async with watching.asking() as way:
        await watching.listed()
        way.cut()
        await watching.until(lambda: watching.names.error != "", "the cut")
        made = watching.cluster.pod(watching.namespace, "web-1", node=watching.node, labels={"app": "a"})
        # A server that was started anew knows no event of before its start (410 Gone).
        watching.cluster.restart()
        way.mend()
        await watching.until(lambda: watching.known(made["metadata"]["uid"]) is not None, "the pod of meanwhile")
        await watching.until(lambda: watching.names.error == "", "the trouble is over")
        assert watching.names.book.lists == 2


async def test_a_new_connection_shows_the_token_of_then(watching: Rig) -> None:
    async with watching.asking() as way:
        await watching.listed()
        watching.token_file.write_text(watching.cluster.account_token(watching.namespace, "agent"))
        way.cut()
        await watching.until(lambda: watching.names.error != "", "the cut")
        way.mend()
        await watching.until(lambda: watching.names.error == "", "the next watch")
    shown = [event["user"]["extra"] for event in watching.cluster.asked_by(watching.namespace, "agent")]
    assert len({str(extra["authentication.kubernetes.io/credential-id"]) for extra in shown}) == 2


async def test_it_asks_for_its_node_s_pods_alone_and_needs_no_other_right(watching: Rig) -> None:
    async with watching.asking():
        await watching.listed()
        made = watching.cluster.pod(watching.namespace, "late", node=watching.node)
        await watching.until(lambda: watching.known(made["metadata"]["uid"]) is not None, "a new pod")
    asked = watching.cluster.asked_by(watching.namespace, "agent")
    assert {(event["verb"], event["objectRef"]["resource"]) for event in asked} == {("list", "pods"), ("watch", "pods")}
    assert all(f"fieldSelector=spec.nodeName%3D{watching.node}" in event["requestURI"] for event in asked)


async def test_only_metadata_crosses_the_wire(watching: Rig) -> None:
    watching.cluster.pod(watching.namespace, "web-1", node=watching.node)
    key = PodsKey(watching.token_file.read_bytes(), watching.cluster.ca.read_bytes())
    async with connected(watching.cluster.server, "", key) as api:
        for accept, found in ((METADATA.format("List"), False), ("application/json", True)):
            data = await api.get("/api/v1/pods", {"fieldSelector": f"spec.nodeName={watching.node}"}, accept)
            assert (SECRET["value"].encode() in data) is found
            assert b"web-1" in data


# ---------------------------------------------------------------- the kubelet alone


async def test_an_alert_about_a_pod_that_is_not_known_has_the_kubelet_asked_at_once(
    the_cluster: Cluster, tmp_path: Path
) -> None:
    rig = Rig("kubelet", the_cluster, f"node-{next(_numbers)}", tmp_path)
    rig.interval_ns = 300 * 10**9
    async with rig.asking():
        await rig.listed()
        uid = rig.cluster.pod(rig.namespace, "late", node=rig.node)["metadata"]["uid"]
        began = trio.current_time()
        await rig.until(lambda: rig.known(uid) is not None, "the pod")
        assert trio.current_time() - began < 200
