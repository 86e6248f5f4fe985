"""What /proc tells of a process (proc(5)), read fast and without ever waiting for a foreign file system.

Sizes and layouts: fs/proc/array.c of the kernel. `cmdline`, `environ` and `maps` are left alone on purpose: reading
them takes the target's memory lock, and a target that pages from FUSE can hold that for ever.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from agent.node.container_id import container_of

PF_KTHREAD = 0x00200000
"""Flag in field 9 of stat: a kernel thread (include/linux/sched.h)."""

MAX_THREADS = 4096
"""Threads of one process that are looked at; beyond that the first ones stand for all."""

CACHED_CGROUPS = 1024
"""Contents of /proc/PID/cgroup whose meaning is remembered: one a container and service, about 1 KiB each."""

PARSED_CGROUPS = 64
"""Contents of /proc/PID/cgroup whose lines are remembered: the agent's own is asked for at each act on a container."""

_LINKS_OF_ONE = 3

_CHUNK = 16384
# One read takes a whole stat or status; cgroup on a machine with long names takes more than one.

_STATES = "DRSIPKWtTZXx"
# The most telling state first: one thread in D is what keeps a killed process from ending.

_NS_PER_S = 1_000_000_000
TICK_NS = _NS_PER_S // os.sysconf("SC_CLK_TCK")
"""What start times are counted in, in nanoseconds: 10 ms nearly everywhere."""

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO = 0x100


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that are used here."""

    comm: str
    state: str
    ppid: int
    pgid: int
    sid: int
    flags: int
    threads: int
    start_ticks: int

    @property
    def ended(self) -> bool:
        """Whether this thread runs no more (zombie or dead)."""
        return self.state in "ZXx"


class Status(NamedTuple):
    """The lines of /proc/PID/status that are used here. `ns_pids`: its pid in each pid namespace, ours first."""

    tgid: int
    uid: int
    ns_pids: tuple[int, ...]


def text(raw: bytes) -> str:
    """Bytes that anybody may have chosen, as text that can be printed, stored and sent."""
    return raw.decode("utf-8", "backslashreplace")


def parse_stat(data: bytes) -> Stat:
    """Parse /proc/PID/stat. The name may hold blanks and brackets: it ends at the last `)`."""
    begin, end = data.index(b"("), data.rindex(b")")
    fields = data[end + 2 :].split(b" ", 20)
    return Stat(
        comm=text(data[begin + 1 : end]),
        state=fields[0].decode(),
        ppid=int(fields[1]),
        pgid=int(fields[2]),
        sid=int(fields[3]),
        flags=int(fields[6]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
    )


def parse_status(data: bytes) -> Status:
    """Parse /proc/PID/status. The name in its first line is escaped by the kernel, so it can't imitate a line."""
    ns_pids = _line(data, b"\nNSpid:\t")
    tgid = _line(data, b"\nTgid:\t")
    return Status(
        tgid=int(tgid),
        uid=int(_line(data, b"\nUid:\t").split(None, 1)[0]),
        ns_pids=tuple(map(int, ns_pids.split())) or (int(tgid),),
    )


def _line(data: bytes, mark: bytes) -> bytes:
    begin = data.find(mark)
    if begin < 0:
        return b""
    begin += len(mark)
    return data[begin : data.find(b"\n", begin)]


@lru_cache(maxsize=PARSED_CGROUPS)
def parse_cgroups(data: bytes) -> tuple[tuple[str, str], ...]:
    """Parse /proc/PID/cgroup into (controllers, path); the controllers of v2 are ""."""
    lines = (line.split(":", 2) for line in text(data).splitlines())
    return tuple((line[1], line[2]) for line in lines if len(line) == 3)


@lru_cache(maxsize=CACHED_CGROUPS)
def cgroups_of(data: bytes) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """/proc/PID/cgroup as (cgroups, container id, pod uid). Raises TargetRefused when it names two containers."""
    cgroups = parse_cgroups(data)
    return cgroups, *container_of(cgroups)


def read_file(path: str) -> bytes:
    """A whole small file. Raises FileNotFoundError or ProcessLookupError when the process has gone."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(file, _CHUNK)
        if len(data) < _CHUNK:
            return data
        parts = [data]
        while part := os.read(file, _CHUNK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def read_list(path: str) -> list[int]:
    """A file of whole numbers (cgroup.procs, children). It may come in pieces: the end is an empty read."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(file, _CHUNK):
            parts.append(part)
        return list(map(int, b"".join(parts).split()))
    finally:
        os.close(file)


def realtime_minus_boottime_ns() -> int:
    """What to add to a time since boot to have it in CLOCK_REALTIME of now, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def suspended_ns() -> int:
    """How long this machine was suspended since it booted, in nanoseconds (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


def namespace_inode(path: str) -> int:
    """The inode that names a namespace: `ns/mnt` is a link to `mnt:[4026531841]` (namespaces(7))."""
    link = os.readlink(path)
    return int(link[link.index("[") + 1 : -1])


class _Statx(ctypes.Structure):
    """struct statx (statx(2)), as far as it is used; the rest is room."""

    _fields_ = (
        ("head", ctypes.c_uint32 * 8),
        ("ino", ctypes.c_uint64),
        ("middle", ctypes.c_uint64 * 11),
        ("rdev", ctypes.c_uint32 * 2),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("tail", ctypes.c_uint64 * 16),
    )


_statx = getattr(ctypes.CDLL(None), "statx", None)


def file_identity(path: str) -> tuple[int, int]:
    """(device, inode) of the file that a link leads to, also of a deleted one; (0, 0) when it can't be told.

    Not os.stat: that asks the file system, and a FUSE mount in a container can leave the question open for ever.
    AT_STATX_DONT_SYNC takes what the kernel has (statx(2)).
    """
    if _statx is None:
        return 0, 0
    found = _Statx()
    if _statx(_AT_FDCWD, path.encode(), _AT_STATX_DONT_SYNC, _STATX_INO, ctypes.byref(found)):
        return 0, 0
    return os.makedev(found.dev_major, found.dev_minor), found.ino


class Procfs:
    """A mounted proc file system. Methods raise FileNotFoundError or ProcessLookupError for a process that has gone."""

    def __init__(self, root: str) -> None:
        self.root = root
        with open(f"{root}/sys/kernel/random/boot_id", encoding="ascii") as file:
            self.boot_id = file.read().strip()
        self.mnt_ns = namespace_inode(f"{root}/self/ns/mnt")  # ours, which usually is the host's

    def stat(self, pid: int) -> Stat:
        """Of the process's first thread."""
        return parse_stat(read_file(f"{self.root}/{pid}/stat"))

    def status(self, pid: int) -> Status:
        """Of the process's first thread."""
        return parse_status(read_file(f"{self.root}/{pid}/status"))

    def cgroups(self, pid: int) -> tuple[tuple[str, str], ...]:
        """As /proc/PID/cgroup tells them."""
        return parse_cgroups(read_file(f"{self.root}/{pid}/cgroup"))

    def threads(self, pid: int) -> list[int]:
        """Thread ids, at most MAX_THREADS."""
        task = f"{self.root}/{pid}/task"
        # It has 2 links and one more a thread: most processes have one thread, and need not be listed.
        if os.stat(task).st_nlink == _LINKS_OF_ONE:
            return [pid]
        return [int(name) for name in os.listdir(task)[:MAX_THREADS]]

    def thread_stats(self, pid: int) -> Iterator[tuple[int, Stat]]:
        """(thread id, stat) of each thread that is still there."""
        for tid in self.threads(pid):
            try:
                yield tid, parse_stat(read_file(f"{self.root}/{pid}/task/{tid}/stat"))
            except (FileNotFoundError, ProcessLookupError):
                continue

    def state(self, pid: int) -> str:
        """The state letter of the process: that of its only thread, else the most telling one of all its threads.

        So it is `T` only when every living thread is stopped, and `D` when one of them hangs in the kernel.
        """
        leader = self.stat(pid)
        if leader.threads <= 1:
            return leader.state
        letters = {stat.state for _, stat in self.thread_stats(pid)}
        return min(letters, key=_rank, default=leader.state)

    def live_thread(self, pid: int) -> tuple[int, Stat] | None:
        """A thread that has not ended, when the first one has."""
        return next(((tid, stat) for tid, stat in self.thread_stats(pid) if not stat.ended), None)

    def children(self, pid: int) -> list[int]:
        """Children of now, of every thread (CONFIG_PROC_CHILDREN; without it: a look at every process)."""
        found: list[int] = []
        for tid in self.threads(pid):
            try:
                found += read_list(f"{self.root}/{pid}/task/{tid}/children")
            except ProcessLookupError:
                continue
            except FileNotFoundError:
                if os.path.exists(f"{self.root}/{pid}/task/{tid}"):
                    return self._children_by_scan(pid)
        return found

    def _children_by_scan(self, pid: int) -> list[int]:
        found = []
        for name in os.listdir(self.root):
            if not name.isdigit():
                continue
            try:
                if self.stat(int(name)).ppid == pid:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def descendants(self, pid: int, limit: int) -> tuple[int, ...]:
        """Every living descendant of now, parents before children, at most `limit`. () when it has gone itself."""
        found: dict[int, None] = {}
        waiting = [pid]
        for parent in waiting:  # grows while it is walked
            try:
                children = self.children(parent)
            except (FileNotFoundError, ProcessLookupError):
                continue
            for child in children:
                if child not in found and child != pid:
                    found[child] = None
                    waiting.append(child)
            if len(found) >= limit:
                break
        return tuple(found)[:limit]


def _rank(letter: str) -> int:
    return _STATES.find(letter)
