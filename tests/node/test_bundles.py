"""What runtimes write of a container, in directory trees of their form; which files are believed."""

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
from agent.node.procfs import Procfs
from tests.node.runtimes import ALL, CONTAINERD, CRIO, DOCKER, ID, LABELS, ME, PID, SANDBOX, UID, Node


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
        lambda node: node.containerd(CONTAINERD, "/var/snap/microk8s/common/run/containerd"),
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
    node.storage({"io.container.manager": "libpod"}, "/var/lib")
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
