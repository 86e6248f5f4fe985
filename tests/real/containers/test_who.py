"""Who it is, on a real node: names from the files of containerd and the kubelet, namespaces, and who lies of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.node.host import LinuxHost
from stoop.errors import TargetGone, TargetRefused
from stoop.pods import PodFacts, Source, Told
from stoop.skew import Skew
from stoop.subject import Seen, Subject
from stoop.testing import HOST_FACTS, alert_of
from tests.real.conftest import Spawn, await_that, line, spawn
from tests.real.containers.image import IMAGE
from tests.real.containers.node import Node
from tests.real.containers.pod import Container

__all__ = ["spawn"]

pytestmark = [pytest.mark.root, pytest.mark.real]


@pytest.fixture
def host(the_node: Node) -> Iterator[LinuxHost]:
    """The agent's view of the test node."""
    made = LinuxHost(root=str(the_node.root), reference_pid=the_node.pid)
    yield made
    made.close()


def pod_of(host: LinuxHost, pid: int) -> PodFacts:
    with host.hold(pid) as held:
        return host.pod_of(held.facts.container_id, held.facts.pod_uid)


def told(value: str) -> Told:
    return Told(value, Source.BUNDLE)


def test_a_process_s_pod_is_read_from_the_runtime_s_files(the_node: Node, host: LinuxHost) -> None:
    pod = the_node.pod("web-1", "shop")
    container = pod.container("sleep", "1000", name="app")
    for pid in (container.init_pid, container.exec("sleep", "2000")):
        assert pod_of(host, pid) == PodFacts(
            container.id,
            namespace=told("shop"),
            name=told("web-1"),
            uid=Told(pod.uid, Source.CGROUP),
            container=told("app"),
            image=told(IMAGE),
            sandbox_id=pod.sandbox.id,
            in_pod=True,
        )
    sandbox = pod_of(host, pod.sandbox.init_pid)
    assert (sandbox.namespace, sandbox.container, sandbox.sandbox_id) == (told("shop"), Told(), pod.sandbox.id)


def test_its_upper_directory_is_as_the_runtime_mounted_it(the_node: Node, host: LinuxHost) -> None:
    """Whatever the container mounts: only the node's own table and the root-only bundle are asked."""
    pod = the_node.pod("web-1", "shop")
    one, two = pod.container("sleep", "1000", name="app"), pod.container("sleep", "1000", name="side")
    for container in (one, two):
        container.run("sh", "-c", "echo here > /tmp/mark")
        upper = host.upper_of(host.find_container(container.id))
        assert (upper.directory, upper.why) == (f"{the_node.root}{container.upper}", "")
        assert Path(upper.directory, "tmp/mark").read_text() == "here\n"
        device = os.stat(f"/proc/{container.init_pid}/root/").st_dev
        assert upper.device == f"{os.major(device)}:{os.minor(device)}"


def test_without_the_runtime_s_files_the_kubelet_s_directories_tell_it(the_node: Node, tmp_path: Path) -> None:
    pod = the_node.pod("web-1", "shop")
    container = pod.container("sleep", "1000", name="app")
    (tmp_path / "var").mkdir()
    (tmp_path / "var/log").symlink_to(the_node.path("/var/log"))
    host = LinuxHost(root=str(tmp_path))
    try:
        facts = pod_of(host, container.init_pid)
    finally:
        host.close()
    weak = [Told(value, Source.KUBELET) for value in ("shop", "web-1", "app")]
    assert [facts.namespace, facts.name, facts.container] == weak
    assert facts.uid == Told(pod.uid, Source.CGROUP)


def test_a_bundle_whose_first_process_is_elsewhere_tells_nothing(the_node: Node, host: LinuxHost) -> None:
    container = the_node.pod().container("sleep", "1000")
    other = the_node.pod().container("sleep", "1000")
    (container.bundle / "init.pid").write_text(str(other.init_pid))
    facts = pod_of(host, container.init_pid)
    assert "is not in container" in facts.why
    assert facts.namespace.source is Source.KUBELET


def test_the_index_follows_containers(the_node: Node, host: LinuxHost) -> None:
    pod = the_node.pod()
    first = pod.container("sleep", "1000", name="a")
    assert host.find_container(first.id[:12]).init_pid == first.init_pid
    second = pod.container("sleep", "1000", name="b")
    found = host.find_container(second.id[:12])
    assert (found.container_id, found.pod_uid, found.cgroup_v2) == (second.id, pod.uid, str(second.v2))
    first.remove()
    with pytest.raises(TargetGone):
        host.find_container(first.id[:12])


FROM_A_POD = """
import sys
from agent.node.host import LinuxHost
host = LinuxHost(root=sys.argv[1])
with host.hold(int(sys.argv[2])) as held:
    facts = held.facts
print(*(path for names, path in facts.cgroups if names in ("", "freezer")), flush=True)
for _ in "known", "searched":
    found = host.find_container(facts.container_id)
    pod = host.pod_of(found.container_id, found.pod_uid)
    print(found.container_id, found.cgroup_v2, found.init_pid, pod.name.value)
    host._containers._seen.clear()
print(host._containers.index._true, flush=True)
host.close()
"""
"""What an agent sees that is in a pod itself. Its arguments: the node's root, a pid."""


def test_seen_from_a_cgroup_namespace_of_one_s_own(the_node: Node, spawn: Spawn) -> None:
    """As the agent's own container has one on v2: the paths of others begin with `/..` then."""
    victim = the_node.pod("web-1", "shop").container("sleep", "1000")
    agents = the_node.pod("stoop-1", "stoop").container("sleep", "1000")

    def enter() -> None:
        for directory in agents.directories:
            (directory / "cgroup.procs").write_text(str(os.getpid()))

    argv = (sys.executable, "-c", FROM_A_POD, str(the_node.root), str(victim.init_pid))
    agent = spawn("unshare", "--cgroup", *argv, preexec_fn=enter)
    assert all(path.startswith("/../") for path in line(agent).split())
    expected = f"{victim.id} {victim.v2} {victim.init_pid} web-1"
    assert [line(agent), line(agent), line(agent)] == [expected, expected, "True"]


# ---------------------------------------------------------------- who lies


def test_a_pod_that_writes_the_kubelet_s_directories_changes_the_weaker_word_only(
    the_node: Node, host: LinuxHost, tmp_path: Path
) -> None:
    pod = the_node.pod("web-1", "shop")
    logs = f"type=bind,src={the_node.directory}/log,dst=/var/log,options=rbind:rw"
    liar = pod.container("sleep", "1000", name="app", mounts=[logs])
    liar.run("mv", f"/var/log/pods/shop_web-1_{pod.uid}", f"/var/log/pods/kube-system_dns_{pod.uid}")
    liar.run("sh", "-c", f"cd /var/log/containers; rm *{liar.id}.log; ln -s x dns_kube-system_dns-{liar.id}.log")
    assert pod_of(host, liar.init_pid).namespace == told("shop")
    (tmp_path / "var").mkdir()
    (tmp_path / "var/log").symlink_to(the_node.path("/var/log"))
    without_bundles = LinuxHost(root=str(tmp_path))
    try:
        facts = pod_of(without_bundles, liar.init_pid)
    finally:
        without_bundles.close()
    assert facts.namespace == Told("kube-system", Source.KUBELET)
    assert facts.contradicts({"k8s.ns.name": "shop"}) == ""
    liar.run("mv", f"/var/log/pods/kube-system_dns_{pod.uid}", f"/var/log/pods/shop_web-1_{pod.uid}")


def subject(host: LinuxHost, pid: int, **claims: str) -> Subject:
    now_ns = time.time_ns()
    return Subject(alert_of(time_ns=now_ns, proc_pid=pid, **claims), host, Seen(HOST_FACTS, Skew(), now_ns))


def test_a_process_that_steps_into_another_pod_s_cgroups_stays_who_it_was(the_node: Node, host: LinuxHost) -> None:
    """With the host's cgroups mounted: it wants to be one of kube-system, or two containers at once."""
    system = the_node.pod("dns", "kube-system").container("sleep", "1000", name="dns")
    liar = the_node.pod("web-1", "shop").container(
        *("sleep", "1000"),
        mounts=["type=bind,src=/sys/fs/cgroup,dst=/cgroups,options=rbind:rw"],
        options=["--privileged", "--with-ns", f"pid:/proc/{the_node.pid}/ns/pid"],
    )
    pid = liar.exec("sleep", "2000")
    below = f"/cgroups/{liar.v2.relative_to('/sys/fs/cgroup')}/kubepods/pod{system.pod.uid}/{system.id}"
    liar.run("mkdir", "-p", below)
    assert host.find_container(system.id[:12]).cgroup_v2 == str(system.v2)
    places = [f"/cgroups/{path.relative_to('/sys/fs/cgroup')}/cgroup.procs" for path in system.directories]
    liar.run("sh", "-ec", f"echo {pid} >/cgroups/{system.v2.relative_to('/sys/fs/cgroup')}/cgroup.procs")
    if len(places) > 1:
        with pytest.raises(TargetRefused, match="two container ids"):
            host.hold(pid)
    liar.run("sh", "-ec", f"for place in {' '.join(places)}; do echo {pid} >$place; done")
    moved = subject(host, pid, container_id=liar.id[:12], k8s_ns_name="shop", k8s_pod_name="web-1")
    facts = moved.process().facts
    pod = moved.pod()
    refusal = moved.refusal(frozenset({"kube-system"}))
    moved.release()
    assert facts.container_id == system.id
    assert pod is not None
    assert (pod.container_id, pod.namespace) == (liar.id, told("shop"))
    assert refusal == ""
    rightly = subject(host, system.init_pid, container_id=system.id[:12])
    rightly.process()
    assert "kube-system is protected" in rightly.refusal(frozenset({"kube-system"}))
    rightly.release()
    os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- namespaces


def test_a_container_s_namespaces_and_its_sandbox_s(the_node: Node, host: LinuxHost) -> None:
    pod, other = the_node.pod(), the_node.pod()
    container = pod.container("sleep", "1000")
    other.container("sleep", "1000")
    facts = host.namespaces_of(host.find_container(container.id))
    assert (facts.init_pid, facts.holder_pid) == (container.init_pid, pod.sandbox.init_pid)
    assert facts.sandbox_id == pod.sandbox.id
    assert [facts.net, facts.pid, facts.mnt] == [container.namespace(kind) for kind in ("net", "pid", "mnt")]
    assert facts.pod_net == pod.sandbox.namespace("net") == facts.net
    assert facts.host_net == os.stat(the_node.host_netns).st_ino
    assert not facts.on_host_network
    assert facts.shared_with == facts.elsewhere == ()
    of_the_sandbox = host.namespaces_of(host.find_container(pod.sandbox.id))
    assert of_the_sandbox.holder_pid == pod.sandbox.init_pid


def test_a_pod_on_the_host_s_network_shares_it_with_others(the_node: Node, host: LinuxHost) -> None:
    one, two = (the_node.pod(name, host_network=True) for name in ("one", "two"))
    container = one.container("sleep", "1000")
    facts = host.namespaces_of(host.find_container(container.id))
    assert facts.on_host_network
    assert two.sandbox.id in facts.shared_with
    assert container.id not in facts.shared_with
    assert one.sandbox.id not in facts.shared_with


def test_two_pods_with_one_network_namespace_are_told(the_node: Node, host: LinuxHost) -> None:
    pod, stranger = the_node.pod(), the_node.pod()
    joined = stranger.container("sleep", "1000", options=["--with-ns", f"network:{pod.netns}"])
    facts = host.namespaces_of(host.find_container(pod.sandbox.id))
    assert facts.shared_with == (joined.id,)
    theirs = host.namespaces_of(host.find_container(joined.id))
    assert theirs.net == pod.sandbox.namespace("net")
    assert theirs.pod_net == stranger.sandbox.namespace("net")


def moved(container: Container, *command: str) -> int:
    """The pid of a `sleep` in the container, after this command has put it elsewhere."""
    outer = container.exec(*command, "sleep", "3000")
    await_that(lambda: b"3000" in Path(f"/proc/{outer}/cmdline").read_bytes().split(b"\0")[1:2], "it is there")
    return outer


SETNS = """
unshare --net sleep 1000 &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
exec nsenter --target $! --net "$@"
"""


@pytest.mark.parametrize(
    ("command", "elsewhere"),
    [
        (("sh", "-c", SETNS, "sh"), ("net",)),
        (("unshare", "--net"), ("net",)),
        (("unshare", "--mount"), ("mnt",)),
        (("unshare", "--net", "--mount"), ("net", "mnt")),
        (("chroot", "/tmp/new"), ("root",)),
        (("env",), ()),
    ],
)
def test_a_process_that_went_elsewhere_is_told_and_the_sandbox_stays_the_target(
    command: tuple[str, ...], elsewhere: tuple[str, ...], the_node: Node, host: LinuxHost
) -> None:
    pod = the_node.pod()
    container = pod.container("sleep", "1000", capabilities=["CAP_SYS_ADMIN"])
    container.run("sh", "-ec", "mkdir -p /tmp/new/bin; cp /bin/busybox /tmp/new/bin/sleep")
    pid = moved(container, *command)
    with host.hold(pid) as held:
        facts = host.namespaces_of(host.find_container(container.id), held.facts)
        assert held.facts.container_id == container.id
    assert facts.elsewhere == elsewhere
    assert facts.pod_net == pod.sandbox.namespace("net")
    assert facts.holder_pid == pod.sandbox.init_pid


def test_a_container_whose_first_process_has_left_the_pod_s_network(the_node: Node, host: LinuxHost) -> None:
    pod = the_node.pod()
    container = pod.container("unshare", "--net", "sleep", "1000", capabilities=["CAP_SYS_ADMIN"])
    net = pod.sandbox.namespace("net")
    await_that(lambda: container.namespace("net") != net, "it has left")
    facts = host.namespaces_of(host.find_container(container.id))
    assert facts.pod_net == net != facts.net
    assert facts.holder_pid == pod.sandbox.init_pid


def test_a_sandbox_of_another_pod_is_refused(the_node: Node, host: LinuxHost) -> None:
    pod, other = the_node.pod(), the_node.pod()
    container = pod.container("sleep", "1000")
    config = container.bundle / "config.json"
    config.write_text(config.read_text().replace(pod.sandbox.id, other.sandbox.id))
    with pytest.raises(TargetRefused, match=f"is of pod {other.uid}, not of {pod.uid}"):
        host.namespaces_of(host.find_container(container.id))


def test_one_whose_first_process_has_ended(the_node: Node, host: LinuxHost) -> None:
    container = the_node.pod().container("sleep", "1000")
    found = host.find_container(container.id)
    container.remove()
    with pytest.raises(TargetGone, match="the first process of container"):
        host.namespaces_of(found)
