"""A kill beside what is slow: 1 GiB of another process's memory goes to a slow disk, and a worker hangs on FUSE.

The disk: ext4, mounted `sync`, on a loop device that cgroup v1's blkio controller throttles (blkio-controller.rst of
the kernel; of the root cgroup, for the kernel itself writes for a loop device). It holds the evidence store alone,
as a disk of its own would. The FUSE mount lies where the kubelet has the logs of containers, and its server takes every
request and answers none: the reader that looks for a log hangs in the kernel. All of it is in a mount namespace of the
bench's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.agent import RULE, Agent, alert_line, running
from bench.containers import Container, v2_mount
from bench.kills import IDLE_SECONDS, ROUNDS, over_unix
from bench.table import Row, ms, percentile
from bench.victims import Victim, idle

PER_ROUND = 110
"""With ROUNDS of 5 some more than 500 samples each."""

BYTES_PER_SECOND = 20 * 2**20
"""Of the slow disk: 1 GiB takes 51 s, and a round of kills 2."""

DISK_BYTES = 3 * 2**30
CAPTURED = 2**30
PATIENCE_S = 120.0
GOAL = 2.0

LOGS = Path("/var/log/pods")
BLKIO = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")

RULES = (
    RULE
    + """
- rule: Keep the memory
  match: {rules: [Capture]}
  allow_host: true
  actions: [{action: Keep it, actionner: "evidence:memory", parameters: {regions: [anonymous], max_bytes: 1GiB}}]
- rule: Keep the container
  match: {rules: [Snapshot]}
  actions: [{action: Keep it, actionner: "evidence:snapshot", parameters: {scope: container}}]
"""
)

_HOLD = """
import os, signal, sys
held = b"".join(os.urandom(2**20) for _ in range(int(sys.argv[1]) >> 20))
print("held", flush=True)
signal.pause()
"""

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def unfit() -> str:
    """Why it can't be measured here, "" when it can."""
    if os.geteuid() or v2_mount() is None:
        return "needs root and cgroup v2"
    if not BLKIO.exists() or not os.path.exists("/dev/loop-control"):
        return "needs cgroup v1's blkio controller and loop devices"
    return "" if os.path.exists("/dev/fuse") else "needs FUSE"


# ---------------------------------------------------------------- what is slow


@contextlib.contextmanager
def mounts_of_our_own() -> Iterator[None]:
    """A mount namespace, and in it /run and /var/log of a node without pods."""
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    here = os.getcwd()
    try:
        _call("unshare", CLONE_NEWNS)
        _call("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
        for place in (b"/run", b"/var/log"):
            _call("mount", b"tmpfs", place, b"tmpfs", 0, b"mode=755")
        LOGS.mkdir()
        yield
    finally:
        _call("setns", before, CLONE_NEWNS)
        os.close(before)
        os.chdir(here)


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def slow_disk(at: Path) -> Iterator[None]:
    """A slow disk mounted there, for root alone."""
    with tempfile.TemporaryDirectory(prefix="stoop-bench-disk-") as name:
        image, top = Path(name, "image"), Path(name, "top")
        top.mkdir()
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        _output("mkfs.ext4", "-q", "-F", str(image))
        device = _output("losetup", "--find", "--show", str(image))
        number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
        try:
            _output("mount", "-o", "sync", device, str(top))
            BLKIO.write_text(f"{number} {BYTES_PER_SECOND}")
            (top / "store").mkdir(mode=0o700)
            at.mkdir(mode=0o700, parents=True)
            _call("mount", str(top / "store").encode(), str(at).encode(), None, 0x1000, None)  # MS_BIND
            yield
        finally:
            BLKIO.write_text(f"{number} 0")
            for mounted in (at, top):
                _libc.umount2(str(mounted).encode(), MNT_DETACH)
            _output("losetup", "--detach", device)


@contextlib.contextmanager
def never_answering(at: Path) -> Iterator[None]:
    """A FUSE mount there. Only the kernel's greeting (linux/fuse.h: FUSE_INIT is 26) is answered.

    The other requests must be taken, for whoever waits for one that was not can be killed.
    """
    taker = 0
    fuse = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
        _call("mount", b"never", str(at).encode(), b"fuse", 0, options)
        _, opcode, unique = struct.unpack_from("<IIQ", os.read(fuse, 1 << 17))
        if opcode != 26:
            raise RuntimeError(f"FUSE began with {opcode}")
        greeting = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0).ljust(64, b"\0")
        os.write(fuse, struct.pack("<IiQ", 16 + len(greeting), 0, unique) + greeting)
        taker = os.fork()
        if not taker:
            with contextlib.suppress(BaseException):
                while os.read(fuse, 1 << 17):
                    pass
            os._exit(0)
        yield
    finally:
        _libc.umount2(str(at).encode(), MNT_DETACH)
        if taker:
            os.kill(taker, signal.SIGKILL)
            os.waitpid(taker, 0)
        os.close(fuse)  # whoever waits for it gets an error now


@contextlib.contextmanager
def large() -> Iterator[int]:
    """The pid of a process with 1 GiB that can't be compressed."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(CAPTURED)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], PATIENCE_S)[0]:
            raise RuntimeError(f"no {CAPTURED} bytes within {PATIENCE_S:g} s")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def named_container() -> Iterator[Container]:
    """A container of which containerd's own files tell the names, so that its log is looked for."""
    mount = v2_mount()
    assert mount is not None
    made = Container(mount, 1)
    try:
        bundle = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io", made.id)
        bundle.mkdir(parents=True)
        names = {
            "container-type": "container",
            "container-name": "app",
            "sandbox-name": "web",
            "sandbox-namespace": "shop",
        }
        names["sandbox-uid"] = made.directory.parent.name.removeprefix("pod")
        annotations = {f"io.kubernetes.cri.{key}": value for key, value in names.items()}
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
        (bundle / "init.pid").write_text(str(made.victims[0].pid))
        yield made
    finally:
        made.end()


# ---------------------------------------------------------------- the rounds


def _workers(agent: Agent) -> dict[str, Any]:
    told: dict[str, Any] = agent.status()["evidence"]["workers"]
    return told


def _until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(PATIENCE_S * 20)):
        if condition():
            return
        idle(0.05)
    raise RuntimeError(f"not within {PATIENCE_S:g} s: {what}")


def _captures(agent: Agent, store: Path) -> bool:
    """Whether a bundle is being written, and has begun to arrive on the disk."""
    writing = [path.stat().st_size for path in store.glob(".writing*")]
    return bool(_workers(agent)["running"]) and sum(writing) > 2**20


@contextlib.contextmanager
def everything_slow(agent: Agent, store: Path) -> Iterator[None]:
    """Inside a worker hangs on FUSE, and a capture goes to the slow disk from beginning to end."""
    with large() as pid, named_container() as contained, agent.connect() as sock:
        with never_answering(LOGS):
            fields = {"container.id": contained.id[:12]}
            sock.sendall(alert_line(contained.victims[0].pid, os.getpid(), fields, rule="Snapshot"))
            _until(lambda: sum(_workers(agent)["abandoned"].values()) > 0, "a worker hangs")
            sock.sendall(alert_line(pid, os.getpid(), rule="Capture"))
            _until(lambda: _captures(agent, store), "the capture is under way")
            yield
            if not _captures(agent, store) or not _workers(agent)["abandoned"]:
                raise RuntimeError("the capture, or the worker that hung, ended before the kills did")
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not _workers(agent)["running"] and not _workers(agent)["abandoned"], "all of it has ended")


def _kills(agent: Agent) -> list[float]:
    times = []
    with agent.connect() as sock:
        prepare = over_unix(sock)
        for _ in range(PER_ROUND):
            victim = Victim()
            try:
                idle(IDLE_SECONDS)
                times.append(victim.exited_after(prepare(victim)))
            finally:
                victim.end()
    return times


def beside_slow() -> Iterator[Row]:
    """Kills in turn without anything beside them, and with a slow capture and a worker that hangs."""
    what = "kill beside a 1 GiB capture to a slow disk and a worker that hangs on FUSE"
    reason = unfit()
    if reason:
        yield Row(what, "-", f"{reason}: not measured", "-", None)
        return
    alone: list[float] = []
    slow: list[float] = []
    with contextlib.ExitStack() as keep:
        keep.enter_context(mounts_of_our_own())
        directory = Path(keep.enter_context(tempfile.TemporaryDirectory(prefix="stoop-bench-")))
        store = directory / "state" / "evidence"
        keep.enter_context(slow_disk(store))
        guard = {"max_targets": 0, "max_targets_total": 0, "pid_namespace": "agent", "reference_pid": os.getpid()}
        settings = {"state_dir": str(store.parent), "guard": guard}
        agent = keep.enter_context(running(RULES, directory, **settings))
        for _ in range(ROUNDS):
            alone += _kills(agent)
            with everything_slow(agent, store):
                slow += _kills(agent)
    times = percentile(slow, 0.99) / percentile(alone, 0.99)
    yield Row(
        what,
        f"{ms(percentile(alone, 0.5))} p50, {ms(percentile(alone, 0.99))} p99 without them",
        f"{ms(percentile(slow, 0.5))} p50, {ms(percentile(slow, 0.99))} p99; {times:.2f} × p99",
        f"≤ {GOAL:g} × p99",
        times <= GOAL,
        len(slow),
    )
