"""What runtimes and the kubelet write of a container, in directory trees of their form; who may be believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node import rootfile
from agent.node.bundles import MAX_CONFIG, Bundle, Bundles, Names, of_annotations
from agent.node.kubelet import KubeletLogs
from agent.node.pods import WEAK_NS, Pods
from agent.node.procfs import Procfs
from stoop.pods import PodFacts, Source, Told

ID = "3f1c" * 16
SANDBOX = "5a5a" * 16
UID = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"
PID = 4242
ME = os.geteuid()
ALL = Names("shop", "web-1", UID, "app", "registry.test/web:1", SANDBOX)

CONTAINERD = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.sandbox-uid": UID,
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.image-name": "registry.test/web:1",
    "io.kubernetes.cri.sandbox-id": SANDBOX,
}
LABELS = {
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.pod.uid": UID,
    "io.kubernetes.container.name": "app",
}
CRIO = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.Labels": json.dumps(LABELS),
    "io.kubernetes.cri-o.SandboxID": SANDBOX,
    "io.kubernetes.cri-o.ImageName": "registry.test/web:1",
}
DOCKER = {
    "Config": {"Labels": {**LABELS, "io.kubernetes.sandbox.id": SANDBOX}, "Image": "registry.test/web:1", "Env": []},
    "State": {"Pid": PID, "Running": True},
    "Name": f"/k8s_app_web-1_shop_{UID}_0",
}


class Node:
    """A node's files below a directory: runtimes' bundles, log directories, and a /proc with one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        boot = root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("0123\n")
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/mnt").symlink_to("mnt:[1]")
        self.in_cgroup(f"/kubepods/burstable/pod{UID}/{ID}")

    def in_cgroup(self, path: str) -> None:
        self.write(f"proc/{PID}/cgroup", f"0::{path}\n")

    def write(self, path: str, content: object) -> Path:
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(content if isinstance(content, str) else json.dumps(content))
        at.chmod(0o600)
        return at

    def containerd(self, annotations: dict[str, str], state: str = "/run/containerd", space: str = "k8s.io") -> Path:
        bundle = f"{state}/io.containerd.runtime.v2.task/{space}/{ID}"
        self.write(f"{bundle}/init.pid", str(PID))
        return self.write(f"{bundle}/config.json", {"ociVersion": "1.0.2", "annotations": annotations, "hooks": {}})

    def storage(self, annotations: dict[str, str]) -> Path:
        userdata = f"/run/containers/storage/overlay-containers/{ID}/userdata"
        self.write(f"{userdata}/pidfile", f"{PID}\n")
        return self.write(f"{userdata}/config.json", {"annotations": annotations})

    def docker(self, config: object) -> Path:
        return self.write(f"/var/lib/docker/containers/{ID}/config.v2.json", config)

    def logs(self, directory: str = f"shop_web-1_{UID}", link: str = f"web-1_shop_app-{ID}.log") -> None:
        if directory:
            (self.root / "var/log/pods" / directory).mkdir(parents=True, exist_ok=True)
        links = self.root / "var/log/containers"
        links.mkdir(parents=True, exist_ok=True)
        if link:
            (links / link).symlink_to("/var/log/pods/nowhere")

    def bundles(self) -> Bundles:
        return Bundles(Procfs(str(self.root / "proc")), str(self.root), ME)

    def kubelet(self) -> KubeletLogs:
        return KubeletLogs(str(self.root), ME)

    def pods(self, mono_ns: Callable[[], int] = lambda: 1) -> Pods:
        return Pods(self.bundles(), self.kubelet(), mono_ns)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# ---------------------------------------------------------------- annotations


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        (CONTAINERD, ALL),
        (CRIO, ALL),
        ({"io.kubernetes.cri.container-type": "sandbox"}, Names()),
        (
            {**CONTAINERD, "io.kubernetes.cri.container-name": "", "io.kubernetes.cri.image-name": ""},
            ALL._replace(container="", image=""),
        ),
        # containerd before 1.6.
        ({key: value for key, value in CONTAINERD.items() if not key.endswith("uid")}, ALL._replace(uid="")),
        # CRI-O's sandbox is named POD, and its image is nobody's business.
        (
            {
                **CRIO,
                "io.kubernetes.cri-o.ContainerType": "sandbox",
                "io.kubernetes.cri-o.Labels": json.dumps({**LABELS, "io.kubernetes.container.name": "POD"}),
            },
            ALL._replace(container="", image=""),
        ),
        # A pod's own annotations lie beside CRI-O's.
        ({**CRIO, "io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.cri.sandbox-name": "x"}, ALL),
        ({**CRIO, "io.kubernetes.cri-o.Labels": "{"}, Names()),
        ({"io.podman.annotations.autoremove": "FALSE"}, Names()),
        ({}, Names()),
    ],
)
def test_the_annotations_of_each_runtime(annotations: dict[str, str], names: Names) -> None:
    assert of_annotations(annotations) == names


@pytest.mark.parametrize("wrong", ["a\nb", "a b", "../etc", "x" * 254, "\x1b[31m", "-a", "a_", "é"])
def test_what_is_no_name_is_left_out(wrong: str) -> None:
    told = of_annotations({**CONTAINERD, "io.kubernetes.cri.sandbox-name": wrong})
    assert told == ALL._replace(pod="")
    told = of_annotations({**CONTAINERD, "io.kubernetes.cri.image-name": wrong + "\n"})
    assert told == ALL._replace(image="")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "make",
    [
        lambda node: node.containerd(CONTAINERD),
        lambda node: node.containerd(CONTAINERD, "/run/k3s/containerd"),
        lambda node: node.containerd(CONTAINERD, "/run/k0s/containerd"),
        lambda node: node.storage(CRIO),
        lambda node: node.docker(DOCKER),
    ],
)
def test_each_runtime_s_files(node: Node, make: Callable[[Node], Path]) -> None:
    make(node)
    assert node.bundles().read(ID) == Bundle(ALL, PID)


def test_containers_of_no_pod(node: Node) -> None:
    node.in_cgroup(f"/docker/{ID}")
    node.docker({"Config": {"Labels": None, "Image": "db:2"}, "State": {"Pid": PID}, "Name": "/my_db"})
    assert node.bundles().read(ID) == Bundle(Names(container="my_db", image="db:2"), PID)
    assert node.pods().of(ID, "").in_pod is False


def test_podman_and_plain_containerd(node: Node) -> None:
    node.in_cgroup(f"/machine.slice/libpod-{ID}.scope/container")
    node.storage({"io.container.manager": "libpod"})
    assert node.bundles().read(ID) == Bundle(Names(), PID)
    other = Node(node.root / "other")
    other.in_cgroup(f"/default/{ID}")
    other.containerd({}, space="default")
    assert other.bundles().read(ID) == Bundle(Names(), PID)


def test_nothing_is_there(node: Node) -> None:
    assert node.bundles().read(ID) == f"no runtime's files of container {ID[:12]} are seen here"


@pytest.mark.parametrize("where", [f"/kubepods/burstable/pod{UID}/{SANDBOX}", "/system.slice/cron.service", ""])
def test_the_first_process_must_be_in_that_very_container(node: Node, where: str) -> None:
    node.containerd(CONTAINERD)
    node.in_cgroup(where)
    why = f"the runtime's first process {PID} is not in container {ID[:12]}"
    assert node.bundles().read(ID) == why
    (node.root / f"proc/{PID}/cgroup").unlink()
    assert node.bundles().read(ID) == why


def test_a_bundle_without_a_number_or_with_another_kind_of_one(node: Node) -> None:
    config = node.containerd(CONTAINERD)
    for wrong in ("", "-1", "x", "4242 4242"):
        (config.parent / "init.pid").write_text(wrong)
        assert isinstance(node.bundles().read(ID), str)
    (config.parent / "init.pid").unlink()
    assert isinstance(node.bundles().read(ID), str)


@pytest.mark.parametrize("wrong", ["", "{", "[]", '{"annotations": 7}', '{"annotations": {"a": 1}}', "\x00", "null"])
def test_what_is_no_config(node: Node, wrong: str) -> None:
    node.containerd(CONTAINERD).write_text(wrong)
    told = node.bundles().read(ID)
    assert isinstance(told, str)
    assert "can't be read" in told


def test_a_config_nested_without_end(node: Node) -> None:
    node.containerd(CONTAINERD).write_text('{"hooks": ' + "[" * 200_000)
    told = node.bundles().read(ID)
    assert isinstance(told, str)
    assert "can't be read" in told


KEYS = st.sampled_from([*CONTAINERD, *CRIO, "x"])
VALUES = st.one_of(st.none(), st.text(max_size=20), st.integers(), st.sampled_from(list(CONTAINERD.values())))
CONFIGS = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(["annotations", "Config", "State", "Name"]),
        st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=5)),
        max_size=4,
    ).map(lambda value: json.dumps(value).encode()),
)


@given(data=CONFIGS)
def test_whatever_is_in_a_config_it_is_names_or_a_reason(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    node = Node(tmp_path_factory.mktemp("node"))
    for path in (node.containerd(CONTAINERD), node.docker(DOCKER)):
        path.write_bytes(data)
        told = node.bundles().read(ID)
        assert isinstance(told, str) or told.init_pid == PID
        path.unlink()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def symlink(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o620), "others than uid"),
        (lambda path: path.chmod(0o602), "others than uid"),
        (lambda path: path.write_bytes(b" " * (MAX_CONFIG + 1)), "bytes, more than"),
        (fifo, "not a regular file"),
        (symlink, "a symlink"),
        (directory, "not a regular file"),
    ],
)
def test_a_file_that_can_t_be_believed(node: Node, spoil: Callable[[Path], Any], why: str) -> None:
    spoil(node.containerd(CONTAINERD))
    told = node.bundles().read(ID)
    assert isinstance(told, str)
    assert why in told


def test_another_owner_is_not_believed(node: Node) -> None:
    node.containerd(CONTAINERD)
    assert isinstance(Bundles(Procfs(str(node.root / "proc")), str(node.root), ME + 1).read(ID), str)


def test_a_file_of_just_the_greatest_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert rootfile.read(str(file), 100, ME) == b"x" * 100
    with pytest.raises(rootfile.Unproven, match="100 bytes, more than 99"):
        rootfile.read(str(file), 99, ME)
    with pytest.raises(FileNotFoundError):
        rootfile.read(str(file / "below"), 99, ME)
    with pytest.raises(rootfile.Unproven, match="not a regular file"):
        rootfile.read("/dev/zero", 99, 0)


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


def test_only_so_many_are_remembered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.node.pods.MAX_REMEMBERED", 2)
    pods = node.pods()
    for number in range(5):
        pods.of(f"{number:064x}", "")
    assert len(pods._known) == 2
