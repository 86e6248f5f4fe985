"""The test node itself: it lays things out as a kubelet's node does, and leaves the machine as it was."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from agent.node.procfs import parse_cgroups
from tests.real.conftest import Spawn, alive, await_that, line
from tests.real.containers import cgroups, image, machine
from tests.real.containers.node import Node, host_programs, missing, node
from tests.real.containers.pod import Container

pytestmark = [pytest.mark.root, pytest.mark.real]


@pytest.fixture
def fit() -> None:
    """For tests that make a node of their own."""
    reason = missing()
    if reason:
        pytest.skip(reason)


def cgroup_paths(pid: int) -> set[str]:
    return {path for _, path in parse_cgroups(Path(f"/proc/{pid}/cgroup").read_bytes())}


def test_a_container_lies_where_the_kubelet_and_the_cri_put_it(the_node: Node) -> None:
    pod = the_node.pod("web-1", "shop")
    container = pod.container("sh", "-c", "echo hello; echo twice; exec sleep 1000", name="app")
    assert cgroup_paths(container.init_pid) == {
        f"/{the_node.cgroups.name}/kubepods/burstable/pod{pod.uid}/{container.id}"
    }
    assert all(str(container.init_pid) in (path / "cgroup.procs").read_text() for path in container.directories)
    assert container.v2 in container.directories
    assert (container.bundle / "init.pid").read_text() == str(container.init_pid)
    annotations = container.config()["annotations"]
    assert isinstance(annotations, dict)
    told = {key.removeprefix("io.kubernetes.cri."): value for key, value in annotations.items()}
    assert told["sandbox-namespace"] == "shop"
    assert (told["sandbox-name"], told["sandbox-uid"]) == ("web-1", pod.uid)
    assert (told["container-name"], told["container-type"]) == ("app", "container")
    assert told["sandbox-id"] == pod.sandbox.id
    log = the_node.path(container.log)
    await_that(lambda: len(log.read_text().splitlines()) == 2, "two lines in its log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{9}Z stdout F hello", log.read_text().splitlines()[0])
    link = the_node.path(f"/var/log/containers/web-1_shop_app-{container.id}.log")
    assert os.readlink(link) == f"/var/log/pods/shop_web-1_{pod.uid}/app/0.log" == container.log


def test_the_containers_of_a_pod_share_its_network_and_no_other(the_node: Node) -> None:
    one, other = the_node.pod("one"), the_node.pod("other")
    first, second = one.container("sleep", "1000", name="a"), one.container("sleep", "1000", name="b")
    assert first.namespace("net") == second.namespace("net") == one.sandbox.namespace("net")
    assert first.namespace("pid") != second.namespace("pid")
    assert first.namespace("mnt") != second.namespace("mnt")
    assert one.sandbox.namespace("net") not in (other.sandbox.namespace("net"), os.stat(the_node.host_netns).st_ino)
    whole = the_node.pod("whole", host_network=True)
    assert whole.container("sleep", "1000").namespace("net") == os.stat(the_node.host_netns).st_ino
    assert os.stat(the_node.host_netns).st_ino != os.stat("/proc/self/ns/net").st_ino


def test_pods_reach_each_other_and_the_node(the_node: Node) -> None:
    one, other = the_node.pod("one"), the_node.pod("other")
    inside = one.container("sleep", "1000")
    assert "1 packets received" in inside.run("ping", "-c", "1", other.ip)
    assert "1 packets received" in inside.run("ping6", "-c", "1", other.ip6)
    assert "1 packets received" in the_node.run("busybox", "ping", "-c", "1", one.ip)
    assert f"{one.host_link}@" in the_node.run("ip", "-o", "link")


def test_an_exec_is_the_shims_child_in_the_container(the_node: Node) -> None:
    container = the_node.pod().container("sleep", "1000")
    entry = container.exec("sleep", "2000")
    assert cgroup_paths(entry) == cgroup_paths(container.init_pid)
    assert parent(entry) == parent(container.init_pid)
    assert container.pids() == {container.init_pid, entry}
    assert container.run("hostname") != ""


@pytest.mark.usefixtures("fit")
def test_programs_that_need_no_libraries() -> None:
    assert image.is_static(shutil.which("busybox") or "")
    assert not image.is_static("/bin/sh")
    assert not image.is_static(__file__)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_capabilities_mounts_and_the_upper_layer(the_node: Node, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("from outside")
    container = the_node.pod().container(
        *("sh", "-c", "cat /data/here >/tmp/copy; exec sleep 1000"),
        capabilities=["CAP_NET_ADMIN"],
        mounts=[f"type=bind,src={tmp_path},dst=/data,options=rbind:ro", *host_programs()],
    )
    copy = container.upper / "tmp/copy"
    await_that(lambda: copy.exists() and copy.read_text() == "from outside", "the copy in the upper layer")
    assert "GNU coreutils" in container.run("/usr/bin/env", "--version")
    status = Path(f"/proc/{container.init_pid}/status").read_text()
    effective = int(status.partition("CapEff:\t")[2].split()[0], 16)
    assert effective & 1 << 12  # CAP_NET_ADMIN (capability.h)
    assert not effective & 1 << 21  # CAP_SYS_ADMIN
    container.remove()
    assert not container.v2.exists()
    assert not container.bundle.exists()


def freeze(container: Container) -> None:
    for directory in container.directories:
        for file, word in (("cgroup.freeze", "1"), ("freezer.state", "FROZEN")):
            if (directory / file).exists():
                (directory / file).write_text(word)


def test_cleared_it_has_no_pods_whatever_became_of_them(the_node: Node) -> None:
    before = the_node.cgroups.pids()
    pod = the_node.pod()
    frozen, removed, ended = (pod.container("sleep", "1000", name=name) for name in ("frozen", "removed", "ended"))
    freeze(frozen)
    removed.remove()
    os.kill(ended.init_pid, signal.SIGKILL)
    the_node.clear()
    assert the_node.cgroups.pids() == before
    assert not any((root.parent / pod.cgroup[1:]).exists() for root in the_node.cgroups.directories)
    for path in ("/var/log/pods", "/var/log/containers", "/run/containerd/io.containerd.runtime.v2.task/k8s.io"):
        assert os.listdir(the_node.path(path)) == []
    assert the_node.ctr("containers", "list", "--quiet") == ""
    assert the_node.pod().container("sleep", "1000").pids()


@pytest.mark.usefixtures("fit")
def test_a_node_leaves_the_machine_as_it_was_also_when_its_body_fails() -> None:
    before = machine.look()
    during: list[str] = []

    def fail() -> None:
        with node() as made:
            freeze(made.pod().container("sh", "-c", "sleep 1000 & exec sleep 1000"))
            made.start("sleep", "3000", name="daemon")
            during.extend(before.differences(machine.look()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for part in ("processes: new", "cgroups: new", "directories: new"):
        assert any(one.startswith(part) for one in during), part
    assert not any(one.startswith(("mounts", "network")) for one in during)
    assert before.differences(machine.look()) == []


KILLED = """
from tests.real.containers.node import node
with node() as made:
    made.pod().container("sleep", "1000")
    print(made.cgroups.name, made.directory, flush=True)
    input()
"""


@pytest.mark.usefixtures("fit")
def test_what_a_killed_program_left_goes_when_the_next_node_starts(spawn: Spawn) -> None:
    program = spawn(sys.executable, "-c", KILLED)
    name, directory = line(program).split()
    program.send_signal(signal.SIGKILL)
    program.wait()
    left = cgroups.CgroupRoot(name)
    pids = left.pids()
    assert pids
    cgroups.sweep()
    assert not any(alive(pid) for pid in pids)
    assert not any(path.exists() for path in left.directories)
    assert not Path(directory).exists()
