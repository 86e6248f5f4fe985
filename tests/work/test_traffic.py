"""A capture in a pod's network namespace: real namespaces, real packets, the real tcpdump."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from agent.jobs import TrafficJob, Whom
from agent.node.host import LinuxHost
from agent.node.procfs import namespace_inode
from agent.work import recording, traffic
from tests.real.conftest import PATIENCE_S, Process, Spawn, comm, line, state
from tests.work.conftest import Bench, child_of, whom

TCPDUMP = shutil.which("tcpdump", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not TCPDUMP, reason="needs tcpdump(8) (apt-get install tcpdump)"),
]

# In a network namespace of its own: sends a word to itself over and over until it is ended, or so often as it is told.
SENDER = """
import ctypes, fcntl, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000):
    sys.exit(os.strerror(ctypes.get_errno()))
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(one, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x8 | 0x40))  # SIOCSIFFLAGS: up, loopback, running
two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
two.bind(("127.0.0.1", 0))
print("ready", flush=True)
while True:
    one.sendto(b"evidence" * int(sys.argv[1]), two.getsockname())
    two.recv(65536)
    time.sleep(float(sys.argv[2]))
"""

MAGIC = 0xA1B2C3D4


def packets(capture: bytes) -> list[tuple[int, bytes]]:
    """The packets of a capture (pcap-savefile(5)): (length on the wire, bytes kept); one that is cut is left out."""
    magic, *_ = struct.unpack_from("<I", capture)
    assert magic == MAGIC
    found, at = [], 24
    while at + 16 <= len(capture):
        _, _, kept, length = struct.unpack_from("<4I", capture, at)
        if at + 16 + kept <= len(capture):
            found.append((length, capture[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def job(bench: Bench, target: Whom, **changes: object) -> TrafficJob:
    """A capture of this process's namespace."""
    inode = namespace_inode(f"/proc/{target.pid}/ns/net")
    made = TrafficJob(**bench.common((target,)), program=TCPDUMP, network=inode, duration_s=0.7)
    return msgspec.structs.replace(made, **changes)


def sender(spawn: Spawn, times: int = 1, pause_s: float = 0.002) -> Process:
    """Start one."""
    made = spawn(sys.executable, "-c", SENDER, str(times), str(pause_s))
    assert line(made) == "ready"
    return made


def tcpdump_of(worker: int) -> int:
    """The tcpdump that a worker's reader started; 0 as long as it is not there."""
    try:
        pid = child_of(child_of(worker))
        return pid if comm(pid) == "tcpdump" else 0
    except (IndexError, OSError):
        return 0


async def test_packets(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = whom(sender(spawn).pid, host)
    other = sender(spawn, 2)  # another pod's
    begun = trio.current_time()
    result = await bench.workers.run(job(bench, target), 20.0)
    assert result.ok, result
    assert 0.7 <= trio.current_time() - begun < PATIENCE_S
    manifest, parts = bench.only()
    found = packets(parts[traffic.PART])
    assert len(found) >= 10
    assert all(kept.endswith(b"evidence") and b"evidenceevidence" not in kept for _, kept in found)
    assert manifest.missing == ()
    assert manifest.parts[0].about["network"] == namespace_inode(f"/proc/{target.pid}/ns/net")
    assert "packets captured" in manifest.parts[0].about["tcpdump"]
    assert bench.leftovers() == []
    assert other.poll() is None


async def test_snaplen_and_size(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = whom(sender(spawn, 100).pid, host)
    assert (await bench.workers.run(job(bench, target, snaplen=64), 20.0)).ok
    _, parts = bench.kept()[-1]
    found = packets(parts[traffic.PART])
    assert {len(kept) for _, kept in found} == {64}
    assert all(length > 800 for length, _ in found)
    begun = trio.current_time()
    result = await bench.workers.run(job(bench, target, bytes=10_000, duration_s=60.0), 90.0)
    assert result.ok
    assert trio.current_time() - begun < PATIENCE_S
    manifest, parts = bench.kept()[-1]
    assert len(parts[traffic.PART]) == 10_000
    assert "10000 bytes, the act's bound" in manifest.missing[0].why


async def test_a_quiet_pod(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    """No packet for longer than a silent reader may live: the capture is whole, and empty."""
    target = whom(sender(spawn, 1, 600.0).pid, host)
    result = await bench.workers.run(job(bench, target, duration_s=2.6), 20.0)
    assert result.ok, result
    manifest, parts = bench.only()
    assert packets(parts[traffic.PART]) == []
    assert manifest.missing == ()


async def test_the_nodes_network_and_another_one(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    ours = whom(spawn("sleep", "600").pid, host)
    result = await bench.workers.run(job(bench, ours), 20.0)
    assert "in the node's network" in result.reason
    assert result.refused
    target = whom(sender(spawn).pid, host)
    inode = namespace_inode(f"/proc/{target.pid}/ns/net")
    result = await bench.workers.run(job(bench, target, host_networks=(inode,)), 20.0)
    assert "in the node's network" in result.reason
    result = await bench.workers.run(job(bench, target, network=inode + 1), 20.0)
    assert "not in the pod's" in result.reason
    assert bench.kept() == []


async def test_a_program_that_does_not_capture(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = whom(sender(spawn).pid, host)
    for program, why in (("/none", "No such file"), (shutil.which("false") or "", "status 1")):
        result = await bench.workers.run(job(bench, target, program=program), 20.0)
        assert not result.ok
        assert why in result.reason
    assert bench.leftovers() == []


# Says what it may and what it has, in place of a capture.
TELL = """#!/bin/sh
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status >&2
readlink /proc/$$/ns/net >&2
ls /proc/$$/fd | tr '\\n' ' ' >&2
env | sort | tr '\\n' ' ' >&2
"""


async def test_its_rights(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    script = tmp_path / "tell"
    script.write_text(TELL)
    script.chmod(0o755)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o001:
            break
        directory.chmod(directory.stat().st_mode | 0o001)  # nobody may run it there
    target = whom(sender(spawn).pid, host)
    result = await bench.workers.run(job(bench, target, program=str(script)), 20.0)
    told = result.reason
    assert "Uid:\t65534\t65534\t65534\t65534" in told
    assert "Gid:\t65534\t65534\t65534\t65534" in told
    assert "Groups:\t \n" in told
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{kind}:\t{1 << 13:016x}\n" in told
    assert "NoNewPrivs:\t1\n" in told
    assert f"net:[{namespace_inode(f'/proc/{target.pid}/ns/net')}]" in told
    assert "LC_ALL=C" in told
    assert "PYTHON" not in told


async def test_ended_with_its_pod(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    """The namespace would live on with tcpdump in it."""
    pod = sender(spawn)
    target = whom(pod.pid, host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.workers.run, job(bench, target, duration_s=60.0), 90.0)
        (worker,) = await bench.running()
        await bench.until(lambda: bool(tcpdump_of(worker)), "tcpdump runs")
        await bench.until(lambda: told(tcpdump_of(worker)) > 1000, "packets were captured")
        pod.kill()
    (missing,) = bench.only()[0].missing
    assert missing.why.startswith(recording.EARLY["pod"])
    assert bench.leftovers() == []


def told(pid: int) -> int:
    """Bytes that it has written (proc(5), io)."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[3])


@pytest.mark.parametrize("how", ["cancelled", "worker killed"])
async def test_ended_with_its_worker(bench: Bench, spawn: Spawn, host: LinuxHost, how: str) -> None:
    target = whom(sender(spawn).pid, host)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.workers.run, job(bench, target, duration_s=60.0), 90.0)
            (worker,) = await bench.running()
            await bench.until(lambda: bool(tcpdump_of(worker)), "tcpdump runs")
            pid = tcpdump_of(worker)
            pidfd = os.pidfd_open(pid)
            if how == "cancelled":
                scope.cancel()
            else:
                os.kill(worker, signal.SIGKILL)
    with trio.fail_after(PATIENCE_S):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)
    await bench.idle()
    await bench.until(lambda: state(pid) == "X", "the nursery waits for it")
    assert bench.kept() == []
