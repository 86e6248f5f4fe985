"""Whose container it is: the kubelet's directories, and both sources together."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.node.bundles import Names
from agent.node.kubelet import KubeletLogs
from agent.node.pods import EXPECTED_NS, WEAK_NS
from stoop.pods import PodFacts, Source, Told
from tests.node.runtimes import CONTAINERD, ID, ME, PID, SANDBOX, UID, Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# ---------------------------------------------------------------- the kubelet's directories


@pytest.mark.parametrize(
    ("directory", "link", "names"),
    [
        (f"shop_web-1_{UID}", f"web-1_shop_app-{ID}.log", Names("shop", "web-1", UID, "app")),
        (f"shop_web-1_{UID}", "", Names("shop", "web-1", UID)),
        ("", f"web-1_shop_app-{ID}.log", Names("shop", "web-1", "", "app")),
        ("", "", Names()),
        # They disagree.
        (f"shop_web-1_{UID}", f"web-2_shop_app-{ID}.log", Names()),
        (f"kube-system_web-1_{UID}", f"web-1_shop_app-{ID}.log", Names()),
        # No such names.
        (f"a_b_c_{UID}", f"web_1_shop_app-{ID}.log", Names()),
        (f"sh op_web-1_{UID}", "", Names("", "web-1", UID)),
        (f"shop_web-1_x{UID}", f"web-1_shop_app-x{ID}.log", Names()),
    ],
)
def test_the_kubelet_s_directories(node: Node, directory: str, link: str, names: Names) -> None:
    node.logs(directory, link)
    assert node.kubelet().read(ID, UID) == names


def test_two_that_claim_it_are_none(node: Node) -> None:
    node.logs()
    node.logs(f"kube-system_web-1_{UID}", "")
    assert node.kubelet().read(ID, UID) == Names("shop", "web-1", "", "app")
    node.logs("", f"x_kube-system_app-{ID}.log")
    assert node.kubelet().read(ID, UID) == Names()


def test_without_the_directories_or_with_others_owners(node: Node) -> None:
    assert node.kubelet().read(ID, UID) == Names()
    node.logs()
    assert KubeletLogs(str(node.root), ME + 1).read(ID, UID) == Names()


# ---------------------------------------------------------------- both


def strong(value: str) -> Told:
    return Told(value, Source.BUNDLE)


def weak(value: str) -> Told:
    return Told(value, Source.KUBELET)


def test_the_runtime_s_word_comes_first(node: Node) -> None:
    node.containerd(CONTAINERD)
    node.logs("", f"web-1_elsewhere_app-{ID}.log")
    assert node.pods().of(ID, UID) == PodFacts(
        ID,
        namespace=strong("shop"),
        name=strong("web-1"),
        uid=Told(UID, Source.CGROUP),
        container=strong("app"),
        image=strong("registry.test/web:1"),
        sandbox_id=SANDBOX,
        in_pod=True,
        init_pid=PID,
    )


def test_the_kubelet_s_word_where_there_is_no_other(node: Node) -> None:
    node.logs()
    told = node.pods().of(ID, UID)
    assert (told.namespace, told.name, told.container) == (weak("shop"), weak("web-1"), weak("app"))
    assert told.uid == Told(UID, Source.CGROUP)
    assert told.in_pod is True
    assert "no runtime's files" in told.why


def test_a_bundle_of_another_pod_than_the_cgroup_s_is_not_believed(node: Node) -> None:
    node.containerd({**CONTAINERD, "io.kubernetes.cri.sandbox-uid": "other"})
    told = node.pods().of(ID, UID)
    assert told.why == f"the runtime says pod other, the cgroup pod {UID}"
    assert told.namespace == Told()


def test_a_pod_s_container_of_which_the_runtime_tells_no_names(node: Node) -> None:
    """cri-dockerd's, where Docker's own files are not seen."""
    node.containerd({}, space="moby")
    told = node.pods().of(ID, UID)
    assert (told.why, told.in_pod, told.name) == ("the runtime's files name no pod", True, Told())


def test_nothing_is_known_of_a_container_whose_files_are_not_seen(node: Node) -> None:
    told = node.pods().of(ID, "")
    assert told.in_pod is None
    assert told.fields() == {}


def test_the_runtime_s_word_is_read_once(node: Node) -> None:
    config = node.containerd(CONTAINERD)
    pods = node.pods()
    first = pods.of(ID, UID)
    config.unlink()
    assert pods.of(ID, UID) is first


def test_what_was_not_told_is_asked_again_after_a_while(node: Node) -> None:
    now = [1]
    pods = node.pods(lambda: now[0])
    assert pods.of(ID, UID).namespace == Told()
    node.containerd(CONTAINERD)
    assert pods.of(ID, UID).namespace == Told()
    now[0] += WEAK_NS
    assert pods.of(ID, UID).namespace == strong("shop")


def test_one_that_is_expected_is_read_before_anybody_asks(node: Node) -> None:
    config = node.containerd(CONTAINERD)
    pods = node.pods()
    pods.expect(ID, UID)
    config.unlink()
    assert pods.of(ID, UID).namespace == strong("shop")


def test_what_was_looked_for_too_soon_is_asked_again_soon(node: Node) -> None:
    now = [1]
    pods = node.pods(lambda: now[0])
    pods.expect(ID, UID)
    node.containerd(CONTAINERD)
    assert pods.of(ID, UID).namespace == Told()
    now[0] += EXPECTED_NS
    assert pods.of(ID, UID).namespace == strong("shop")


def test_only_so_many_are_remembered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.node.pods.MAX_REMEMBERED", 2)
    pods = node.pods()
    for number in range(5):
        pods.of(f"{number:064x}", "")
    assert len(pods._known) == 2


def test_by_the_runtime_alone_it_is_looked_at_anew_until_it_is_there(node: Node) -> None:
    pods = node.pods()
    node.logs()
    assert (pods.by_runtime(ID, UID).container, "no runtime's files" in pods.by_runtime(ID, UID).why) == (Told(), True)
    config = node.containerd(CONTAINERD)
    told = pods.by_runtime(ID, UID)
    assert (told.container, told.init_pid, told.why) == (strong("app"), PID, "")
    assert pods.of(ID, UID) is told
    config.unlink()
    assert pods.by_runtime(ID, UID) is told


def test_by_the_runtime_alone_another_pod_s_files_tell_nothing(node: Node) -> None:
    node.containerd({**CONTAINERD, "io.kubernetes.cri.sandbox-uid": "other"})
    told = node.pods().by_runtime(ID, UID)
    assert (told.container, told.why) == (Told(), "another pod's")
