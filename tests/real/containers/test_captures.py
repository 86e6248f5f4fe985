"""Log, file and traffic of a real pod of containerd's, taken from outside it while it goes on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

import pytest
import trio

from agent.jobs import DownloadJob, Job, LogJob, TrafficJob, Whom
from agent.node.host import LinuxHost
from agent.node.procfs import namespace_inode
from agent.orders import Orders
from stoop.captures import About, SnapshotWanted
from stoop.evidence.limits import Limits
from tests.real.conftest import await_that
from tests.real.containers.node import Node
from tests.work.conftest import Bench, whom
from tests.work.conftest import _importable as _importable
from tests.work.conftest import bench as bench
from tests.work.test_traffic import TCPDUMP, packets

pytestmark = [pytest.mark.real, pytest.mark.root]

SAYS = "echo one; echo two; head -c 20000 /dev/zero | tr '\\0' x; echo; echo end; sleep 600"


async def test_the_log(the_node: Node, bench: Bench) -> None:
    pod = the_node.pod()
    container = pod.container("sh", "-c", SAYS)
    logs = the_node.directory / "log" / "pods"
    file = the_node.directory / container.log.removeprefix("/var/")
    await_that(lambda: file.read_bytes().endswith(b" end\n"), "the container has said all")
    job = LogJob(**bench.common(()), directory=str(logs), pod=Path(pod.logs).name, containers=("app",), lines=3)
    result = await bench.workers.run(job, 20.0)
    assert result.ok, result
    _, parts = bench.only()
    assert parts["log.txt"] == b"two\n" + b"x" * 20000 + b"\nend\n"


async def test_a_file_of_each_layer_and_a_volume(the_node: Node, bench: Bench, host: LinuxHost, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("of the node's\n")
    (tmp_path / "out").symlink_to("/etc/hostname")
    volume = f"type=bind,src={tmp_path},dst=/volume,options=rbind:rw"
    container = the_node.pod().container("sleep", "600", mounts=(volume,))
    container.run("sh", "-c", "echo evil > /tmp/evil; ln -s /tmp/evil /link; ln -s /volume/kept /across; mkfifo /fifo")
    target = whom(container.init_pid, host)
    for path, content in ((b"/link", b"evil\n"), (b"/across", b"of the node's\n"), (b"/tmp/evil", b"evil\n")):
        job = DownloadJob(**bench.common((target,)), path=path, limit=2**20)
        assert (await bench.workers.run(job, 20.0)).ok
        assert bench.kept()[-1][1] == {"file.bin": content}
    job = DownloadJob(**bench.common((target,)), path=b"/bin/busybox", limit=2**24)
    assert (await bench.workers.run(job, 20.0)).ok
    busybox = shutil.which("busybox")
    assert busybox is not None
    assert bench.kept()[-1][1]["file.bin"] == await trio.Path(busybox).read_bytes()
    for path in (b"/volume/out", b"/fifo", b"/proc/1/environ", b"/dev/zero", b"/sys/kernel/uevent_seqnum"):
        job = DownloadJob(**bench.common((target,)), path=path, limit=2**20)
        assert not (await bench.workers.run(job, 20.0)).ok, path


@pytest.mark.skipif(not TCPDUMP, reason="needs tcpdump(8) (apt-get install tcpdump)")
async def test_the_traffic(the_node: Node, bench: Bench, host: LinuxHost) -> None:
    pod = the_node.pod()
    pod.container("sh", "-c", f"while :; do ping -c 1 -W 1 -p a5 {pod.ip}; ping -c 1 -W 1 -p a5 10.244.0.1; done")
    target = whom(pod.sandbox.init_pid, host)
    before = os.listdir(f"/proc/{target.pid}/root")
    job = TrafficJob(**bench.common((target,)), program=TCPDUMP, network=pod.sandbox.namespace("net"), duration_s=1.0)
    result = await bench.workers.run(job, 20.0)
    assert result.ok, result
    found = packets(bench.only()[1]["tcpdump.pcap"])
    assert any(kept.endswith(b"\xa5" * 40) for _, kept in found)
    assert os.listdir(f"/proc/{target.pid}/root") == before
    shared = the_node.pod(host_network=True)
    inside = Whom(shared.sandbox.init_pid, whom(shared.sandbox.init_pid, host).birth)
    inode = namespace_inode(shared.netns)
    job = TrafficJob(**bench.common((inside,)), program=TCPDUMP, network=inode, host_networks=(inode,))
    assert "in the node's network" in (await bench.workers.run(job, 20.0)).reason


# An overlay that the container made itself, with a directory that it would like to see listed, and a root in it.
DISGUISE = "; ".join(
    (
        "set -e",
        "mount -t tmpfs tmpfs /tmp",
        "mkdir -p /tmp/lower/bin /tmp/etc /tmp/work /tmp/root",
        "cp /bin/busybox /tmp/lower/bin/busybox",
        "ln -s busybox /tmp/lower/bin/sleep",
        "echo evil > /evil",
        "mount -t overlay -o lowerdir=/tmp/lower,upperdir=/tmp/etc,workdir=/tmp/work overlay /tmp/root",
        "touch /tmp/root/harmless",
        "exec chroot /tmp/root sleep 600",
    )
)


async def test_the_runtimes_word_on_what_changed(the_node: Node, bench: Bench) -> None:
    """A container whose mount table shows another overlay as its root: the one that the runtime mounted is listed."""
    container = the_node.pod().container("sh", "-c", DISGUISE, options=("--privileged",))
    await_that(lambda: Path(f"/proc/{container.init_pid}/root/harmless").exists(), "it has another root")
    assert "upperdir=/tmp/etc" in await trio.Path(f"/proc/{container.init_pid}/mountinfo").read_text()
    host = LinuxHost(root=str(the_node.root), reference_pid=the_node.pid)
    try:
        job = _order(bench, host, container.init_pid)
    finally:
        host.close()
    result = await bench.workers.run(job, 20.0)
    assert result.ok, result
    manifest, parts = bench.only()
    assert manifest.notes["upper_told_by"] == "runtime"
    assert manifest.notes["upper"].endswith(str(container.upper))
    assert "/evil" in {json.loads(each)["path"] for each in parts["upper.ndjson"].splitlines()}
    assert b"harmless" not in parts["upper.ndjson"]


def _order(bench: Bench, host: LinuxHost, pid: int) -> Job:
    """The job for a snapshot of a process's container, as the agent makes it."""
    with host.hold(pid) as held:
        facts = held.facts
        box = host.find_container(facts.container_id)
    orders = Orders("node-1", "boot", bench.directory, Limits(min_free_bytes=0), host)
    about = About("", secrets.token_hex(16), "", "A rule", "Keep it", "evidence:snapshot")
    wanted = SnapshotWanted(about=about, deadline_s=20.0, executable_bytes=0, log_bytes=0, changes=True)
    return orders.job(wanted, (facts,), box)
