"""Real victims and real cgroups, named as on a node. What a test makes is gone after it, also when it fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from agent.node.host import LinuxHost

CGROUP_ROOT = Path("/sys/fs/cgroup")
PATIENCE_S = 10.0
"""How long a test waits for what it started; then it fails."""

SLOWEST = 6
"""How much longer that may become where each look takes long, on a busy machine."""

SYS_EXIT = {"x86_64": 60, "aarch64": 93}
"""The number of exit(2), which ends one thread only."""

ZOMBIE_LEADER = """
import ctypes, sys, threading
def stay():
    print("ready", flush=True)
    threading.Event().wait()
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
"""
"""Its first thread ends, another lives on. Its argument: the number of exit(2)."""

_numbers = itertools.count()

Process = subprocess.Popen[str]
Spawn = Callable[..., Process]


def v2_mount() -> Path | None:
    """Where cgroup v2 is mounted: alone, or beside v1."""
    return next(
        (path for path in (CGROUP_ROOT, CGROUP_ROOT / "unified") if (path / "cgroup.controllers").exists()), None
    )


def v1_mount(controller: str) -> Path | None:
    path = CGROUP_ROOT / controller
    return path if (path / "cgroup.procs").exists() and not (path / "cgroup.controllers").exists() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here what can't be done here: a skip inside an async test loses its reason on the way through trio."""
    if item.get_closest_marker("root") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes cgroups and namespaces, or acts on other users' processes")
    kind = getattr(item, "callspec", None) and item.callspec.params.get("kind")  # type: ignore[attr-defined]
    missing = (kind != "v1" and v2_mount() is None) or (kind in ("v1", "hybrid") and v1_mount("freezer") is None)
    if missing:
        pytest.skip(f"this machine has no cgroups of the layout {kind or 'v2'}")


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    """The node as it is."""
    made = LinuxHost()
    yield made
    made.close()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a program; `line(process)` reads what it says, `say` tells it to go on. It is killed after the test, and
    with it whatever it started and left behind (unless it was given an environment)."""
    started: list[Process] = []
    mark = f"STARTED_BY_STOOPS_TESTS={uuid.uuid4()}"

    def start(*argv: str, **options: object) -> Process:
        marked = {"env": os.environ | dict([mark.split("=")])}
        process: Process = subprocess.Popen(  # type: ignore[call-overload]
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **(marked | options)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait(PATIENCE_S)
    if started:
        _kill_all_with(mark.encode())


def _kill_all_with(mark: bytes) -> None:
    """SIGKILL to whoever has this in its environment."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if name.isdigit() and mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                os.kill(int(name), signal.SIGKILL)


def line(process: Process) -> str:
    """The next line that a program writes. Byte by byte: what a buffer holds can't be waited for."""
    assert process.stdout is not None
    told = b""
    while not told.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        assert ready, f"pid {process.pid} says nothing more than {told!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"pid {process.pid} ended after {told!r}"
        told += byte
    return told.decode().strip()


def say(process: Process, text: str = "") -> None:
    """A line into a program's standard input."""
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def comm(pid: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def state(pid: int) -> str:
    """The state letter of a process's first thread, X when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return state(pid) not in "ZX"


def await_that(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Wait for something of the machine's that can't be waited on."""
    pause = select.poll()
    until = time.monotonic() + SLOWEST * seconds  # a look may take long itself
    for _ in range(int(seconds * 1000)):
        if condition():
            return
        if time.monotonic() > until:
            break
        pause.poll(1)
    raise AssertionError(f"not seen within {seconds:g} s: {what}")


def wait_descendants(pid: int, host: LinuxHost, count: int) -> tuple[int, ...]:
    """Descendants of a process, once there are so many."""
    await_that(lambda: len(host.descendants(pid)) >= count, f"{count} descendants of {pid}")
    return host.descendants(pid)


@dataclass
class Box:
    """Cgroups that look like one container's, in one or both hierarchies."""

    container_id: str
    pod_uid: str
    v2: Path | None
    freezer: Path | None

    @property
    def directories(self) -> list[Path]:
        return [path for path in (self.v2, self.freezer) if path is not None]

    def add(self, pid: int) -> None:
        """Move a process in."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def enter(self) -> None:
        """Move the calling process in: a `preexec_fn`."""
        self.add(os.getpid())

    def freeze(self) -> None:
        """As `docker pause` does."""
        for directory in self.directories:
            if (directory / "cgroup.freeze").exists():
                (directory / "cgroup.freeze").write_text("1")
            if (directory / "freezer.state").exists():
                (directory / "freezer.state").write_text("FROZEN")

    def is_frozen(self) -> bool:
        """Whether any of its freezers is on."""
        files = [path / name for path in self.directories for name in ("cgroup.freeze", "freezer.state")]
        return any(file.read_text().strip() not in ("0", "THAWED") for file in files if file.exists())

    def pids(self) -> set[int]:
        """Who is in it now, directly."""
        return {int(pid) for path in self.directories for pid in (path / "cgroup.procs").read_text().split()}


def _remove(root: Path) -> None:
    """End all that is in a tree of cgroups, then remove it."""
    directories = [Path(path) for path, _, _ in os.walk(root)]
    for directory in directories:
        if (directory / "freezer.state").exists():
            (directory / "freezer.state").write_text("THAWED")
        if (directory / "cgroup.freeze").exists():
            (directory / "cgroup.freeze").write_text("0")

    def empty() -> bool:
        pids = [int(pid) for directory in directories for pid in (directory / "cgroup.procs").read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    await_that(empty, f"{root} empty")
    for directory in reversed(directories):
        await_that(partial(_rmdir, directory), f"{directory} removed")


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True


MakeBox = Callable[..., Box]


@pytest.fixture
def make_box() -> Iterator[MakeBox]:
    """Make the cgroups of a container: `make_box("v2" | "v1" | "hybrid")`, or `name=` for others than a pod's.

    For tests marked `root` only.
    """
    roots: list[Path] = []

    def make(kind: str = "v2", name: str | None = None) -> Box:
        v2 = v2_mount() if kind in ("v2", "hybrid") else None
        v1 = v1_mount("freezer") if kind in ("v1", "hybrid") else None
        container_id = uuid.uuid4().hex + uuid.uuid4().hex
        pod_uid = str(uuid.uuid4())
        top = f"stoop-test-{os.getpid()}-{next(_numbers)}"
        path = name if name is not None else f"kubepods/burstable/pod{pod_uid}/{container_id}"
        box = Box(container_id, pod_uid, v2 and v2 / top / path, v1 and v1 / top / path)
        for mount in (v2, v1):
            if mount is not None:
                roots.append(mount / top)
                (mount / top / path).mkdir(parents=True)
        return box

    yield make
    for root in reversed(roots):
        _remove(root)


@dataclass
class Namespaced:
    """A container with a pid namespace of its own: `outer` is the program that made it, `init` its pid 1."""

    box: Box
    outer: Process
    init: int


MakeNamespaced = Callable[..., Namespaced]


def only_child(pid: int) -> int:
    """The one child of a process, once there is one."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    await_that(lambda: bool(path.read_text().split()), f"pid {pid} has a child")
    return int(path.read_text().split()[0])


@pytest.fixture
def make_namespaced(make_box: MakeBox, spawn: Spawn) -> MakeNamespaced:
    """A container whose init runs this shell script, after it was put into its cgroups. It says `ready` first."""

    def make(script: str, kind: str = "v2") -> Namespaced:
        box = make_box(kind)
        outer = spawn(
            *("unshare", "--fork", "--kill-child", "--pid", "--mount-proc"),
            *("sh", "-c", f"read go; echo ready; {script}"),
        )
        init = only_child(outer.pid)
        box.add(init)
        say(outer)
        assert line(outer) == "ready"
        return Namespaced(box, outer, init)

    return make


MakeExec = Callable[[Namespaced, str], tuple[Process, int]]


@pytest.fixture
def make_exec(spawn: Spawn) -> MakeExec:
    """What `kubectl exec` does: a shell script in a container's namespaces and cgroups, in a session of its own.

    Gives the program outside, and the entry's pid. The script's first line is read from it with `line`.
    """

    def make(inside: Namespaced, script: str) -> tuple[Process, int]:
        outer = spawn(
            *("nsenter", "--target", str(inside.init), "--pid", "--mount", "setsid"),
            *("sh", "-c", f"read go; {script}"),
        )
        entry = only_child(outer.pid)
        inside.box.add(entry)
        say(outer)
        return outer, entry

    return make


# Starts `sleep` under the pid that a line of its input names (clone3(2), set_tid).
RESPAWN = """
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
child = 0
for line in sys.stdin:
    wanted = int(line)
    tids = ctypes.c_int(wanted)
    args = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    child = libc.syscall(435, args, len(args))
    if child == 0:
        os.execlp("sleep", "sleep", "1000")
    print(child if child > 0 else -ctypes.get_errno(), flush=True)
if child > 0:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.fixture
def respawn(spawn: Spawn) -> Iterator[Callable[[int], None]]:
    """Start `sleep` under a pid that has just become free."""
    program = spawn(sys.executable, "-c", RESPAWN)
    assert line(program) == "ready"

    def start(pid: int) -> None:
        say(program, str(pid))
        assert int(line(program)) == pid  # else: the error's number, negative

    yield start
    assert program.stdin is not None
    program.stdin.close()
    program.wait(PATIENCE_S)
