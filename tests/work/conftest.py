"""A real nursery with real workers, targets for them, and what a hostile target would make."""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.jobs import MemoryJob, SnapshotJob, Whom
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.evidence.manifest import Manifest, Origin, Part
from stoop.evidence.store import Limits, Store
from tests.real.conftest import PATIENCE_S, Process, Spawn, line, v2_mount
from tests.real.conftest import host as host
from tests.real.conftest import make_box as make_box
from tests.real.conftest import make_namespaced as make_namespaced
from tests.real.conftest import respawn as respawn
from tests.real.conftest import spawn as spawn

ROOT = Path(__file__).parents[2]
ORIGIN = Origin(node="node-1", run="ab" * 16, rule="A rule", actionner="evidence:snapshot")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here what can't be done here: a skip inside an async test loses its reason on the way through trio."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs root: it makes cgroups, namespaces and mounts, or looks into other users' processes")
    fixtures = set(getattr(item, "fixturenames", ()))
    if {"make_box", "container"} & fixtures and v2_mount() is None:
        pytest.skip("this machine has no cgroups of the layout v2")
    if {"stuck", "behind_fuse"} & fixtures and "fuse" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("this kernel has no FUSE (modprobe fuse)")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nursery starts in safe path mode (`-P`), so the checkout is named."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class Bench:
    """Workers that are served, and a store for what they keep."""

    def __init__(self, directory: Path) -> None:
        self.workers = Workers(started=self._started, warn=lambda event, **fields: self.warned.append((event, fields)))
        self.directory = str(directory / "evidence")
        self.warned: list[tuple[str, dict[str, Any]]] = []
        self.lives: list[int] = []
        self._changed = trio.lowlevel.ParkingLot()

    def _started(self, pid: int) -> None:
        self.lives.append(pid)

    def common(self, processes: tuple[Whom, ...], key: str = "a") -> dict[str, Any]:
        """What every job has. Each is a run of its own, unless it is changed to be of one."""
        limits = Limits(min_free_bytes=0)
        origin = msgspec.structs.replace(ORIGIN, run=secrets.token_hex(16))
        return {"key": key, "origin": origin, "store": self.directory, "limits": limits, "processes": processes}

    def snapshot(self, *processes: Whom, key: str = "a", **changes: Any) -> SnapshotJob:
        """A job for these."""
        job = SnapshotJob(**self.common(processes, key), executable_bytes=16 * 2**20, list_upper=False)
        return msgspec.structs.replace(job, **changes)

    def memory(self, *processes: Whom, key: str = "a", **changes: Any) -> MemoryJob:
        """A job for these."""
        job = MemoryJob(**self.common(processes, key), regions=("heap", "anonymous"), bytes=2**30)
        return msgspec.structs.replace(job, **changes)

    def kept(self) -> list[tuple[Manifest, dict[str, bytes]]]:
        """Every bundle: its manifest and parts, verified."""
        found = []
        with Store(self.directory) as store:
            for bundle in store.bundles():
                contents: dict[str, list[bytes]] = {}

                def sink(part: Part, data: bytes, into: dict[str, list[bytes]] = contents) -> None:
                    into.setdefault(part.name, []).append(data)

                with store.reading(bundle) as reader:
                    assert reader.check(sink) == []
                    found.append((reader.manifest, {name: b"".join(data) for name, data in contents.items()}))
        return found

    def only(self) -> tuple[Manifest, dict[str, bytes]]:
        """The one bundle there is."""
        (one,) = self.kept()
        return one

    def leftovers(self) -> list[str]:
        """What is in the store beside bundles, head and lock."""
        return [name for name in os.listdir(self.directory) if name.startswith(".writing")]

    async def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for what nobody tells of."""
        with trio.move_on_after(2 * PATIENCE_S):
            while not true():  # noqa: ASYNC110 - counts and files have no event
                await trio.sleep(0.001)
            return
        raise AssertionError(f"not seen within {PATIENCE_S:g} s: {what}: {self.workers.status()}")

    async def running(self, count: int = 1) -> list[int]:
        """Pids of workers, once so many run."""

        def pids() -> list[int]:
            return [each["pid"] for each in self.workers.status()["running"] if each["pid"]]

        await self.until(lambda: len(pids()) >= count, f"{count} workers")
        return pids()

    async def idle(self) -> None:
        """Wait until no job has a place."""
        await self.until(lambda: not self.workers.status()["running"], "no worker runs")


@pytest.fixture
async def bench(tmp_path: Path, nursery: trio.Nursery) -> Bench:
    """Workers, ready."""
    made = Bench(tmp_path)
    with trio.fail_after(PATIENCE_S):
        await nursery.start(made.workers.serve)
    return made


def whom(pid: int, host: LinuxHost) -> Whom:
    """A process as the reflex would name it."""
    with host.hold(pid) as held:
        return Whom(pid, held.facts.birth)


def child_of(pid: int) -> int:
    """The only child of a worker: its reader."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def await_exit(pidfd: int) -> None:
    """Wait until a process has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000), "it lives"
    os.close(pidfd)


# A process with so many MiB of memory that can't be compressed.
BIG = """
import os, sys
kept = [os.urandom(1 << 20) for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def big(spawn: Spawn) -> Callable[[int], Process]:
    """Start a process with so many MiB of memory: reading it takes a while."""

    def start(mib: int) -> Process:
        process = spawn(sys.executable, "-c", BIG, str(mib))
        assert line(process) == "ready"
        return process

    return start


# A FUSE mount (fuse(4), include/uapi/linux/fuse.h) in a mount namespace of its own. It takes every request: who waits
# for the answer of one that was taken can't be killed. `silent` answers FUSE_INIT only; `file` says that every name is
# a file, lets it be opened, and answers no read of it; `program` gives /bin/sleep.
STUCK = """
import ctypes, os, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args):
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
call("unshare", 0x20000)
call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)
device = "/dev/fuse"
if not os.path.exists(device):
    device = sys.argv[1] + ".device"
    os.mknod(device, 0o20600, os.makedev(10, 229))
fuse = os.open(device, os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fuse
call("mount", b"stuck", sys.argv[1].encode(), b"fuse", 0, options)
content = open("/bin/sleep", "rb").read() if sys.argv[2] == "program" else bytes(1 << 20)
def attributes(inode, mode):
    return struct.pack("<6Q10I", inode, len(content), 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def answer(opcode, node, request):
    if opcode == 26:  # FUSE_INIT
        return struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0).ljust(64, b"\\0")
    if sys.argv[2] == "silent":
        return None
    if opcode == 1:  # FUSE_LOOKUP
        return struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes(2, 0o100755)
    if opcode == 3:  # FUSE_GETATTR
        return struct.pack("<Q2I", 3600, 0, 0) + attributes(node, 0o100755 if node == 2 else 0o40755)
    if opcode == 14:  # FUSE_OPEN
        return struct.pack("<QIi", 1, 0, 0)
    if opcode == 15 and sys.argv[2] == "program":  # FUSE_READ
        offset, size = struct.unpack_from("<QI", request, 48)
        return content[offset : offset + size]
    return None
child = None
while True:
    request = os.read(fuse, 1 << 17)
    _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
    body = answer(opcode, node, request)
    if body is None and sys.argv[2] == "program":
        os.write(fuse, struct.pack("<IiQ", 16, -38, unique))  # ENOSYS
    elif body is not None:
        os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
    if opcode == 26 and sys.argv[2] == "silent":
        print("ready", flush=True)
    elif opcode == 26:
        file = sys.argv[1] + "/file"
        hide = [sys.executable, "-c", sys.argv[3], file, "x" * 20000]
        become = "import os, sys; print(os.getpid(), flush=True); os.execl(sys.argv[1], 'x', '600')"
        run = [sys.executable, "-c", become, file]
        child = subprocess.Popen(run if sys.argv[2] == "program" else hide)
"""

# Maps a page of a file over a page of its own arguments, which it never touches again (proc(5): arg_start).
HIDE = """
import ctypes, mmap, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.prctl(1, signal.SIGKILL, 0, 0, 0)
begin = int(open("/proc/self/stat").read().rpartition(") ")[2].split()[45])
file = os.open(sys.argv[1], os.O_RDONLY)
page = (begin // 4096 + 2) * 4096
assert libc.mmap(page, 4096, 1, 0x02 | 0x10, file, 0) == page
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def stuck(spawn: Spawn, tmp_path: Path) -> Iterator[tuple[str, Process]]:
    """A directory in a FUSE mount that never answers, as seen from outside, and its server."""
    point = tmp_path / "stuck"
    point.mkdir()
    server = spawn(sys.executable, "-c", STUCK, str(point), "silent")
    assert line(server) == "ready"
    yield f"/proc/{server.pid}/root{point}", server
    server.send_signal(signal.SIGKILL)  # its mount ends with it, and whoever waits for an answer has an error
    server.wait(PATIENCE_S)


@pytest.fixture
def behind_fuse(spawn: Spawn, tmp_path: Path) -> Callable[[str], int]:
    """Start a process that needs a FUSE mount: `file` maps what never answers over its arguments, `program` runs it."""
    point = tmp_path / "stuck"
    point.mkdir()

    def start(kind: str) -> int:
        return int(line(spawn(sys.executable, "-c", STUCK, str(point), kind, HIDE)))

    return start
