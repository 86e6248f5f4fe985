"""A process as a worker holds it: by its pidfd, and by the directory /proc/PID opened while it was surely its own.

A descriptor of /proc/PID belongs to that process, not to the number: once it has ended, reading through it fails with
ESRCH, whoever has the number then (proc(5)). So what is read through it is never another's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from agent.jobs import MAX_PROCESSES, AnyJob, Box, Whom
from agent.node.container_id import locate
from agent.node.pidfd import has_pidfs, open_pidfd, pidfd_ready
from agent.node.procfs import parse_cgroups, parse_stat, read_list
from agent.work.files import read_at
from agent.work.telling import Teller
from stoop.errors import TargetError, TargetGone, TargetRefused

MAX_NESTED = 256
"""Cgroups inside one container that are looked into."""

SMALL = 64 * 1024
"""Bytes of stat, status, cgroup: the kernel's own words, a few hundred usually."""


AT_ONCE = frozenset({"stat", "status", "cgroup", "limits"})
"""Files that the kernel writes whole into a buffer of its own (single_open of seq_file)."""


class Process:
    """One held process. `close` it."""

    __slots__ = ("cgroup", "directory", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, directory: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.directory = directory
        self.cgroup = b""  # /proc/PID/cgroup, where it was read to prove whose the process is

    def read(self, name: str, limit: int = SMALL) -> tuple[bytes, bool]:
        """A file below /proc/PID, and whether it was cut. Raises OSError; ProcessLookupError when it has ended."""
        return read_at(self.directory, name, limit, at_once=name in AT_ONCE)

    def link(self, name: str) -> bytes:
        """Where a link below /proc/PID leads, as the kernel says it; nothing is followed. Raises OSError."""
        return os.readlink(name.encode("ascii"), dir_fd=self.directory)

    def ended(self) -> bool:
        """Whether it has exited."""
        return pidfd_ready(self.pidfd)

    def close(self) -> None:
        """Idempotent."""
        for fd in (self.pidfd, self.directory):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.directory = -1


@functools.cache
def _pidfs() -> bool:
    return has_pidfs()


def hold(pid: int, birth: int = 0, pidfd: int = -1) -> Process:
    """Hold this very process. `birth` 0: whoever has the number now (the caller proves it otherwise).

    `pidfd` is duplicated; without one a new one is opened and `birth` compared. Raises TargetGone, TargetRefused.
    """
    held = Process(pid, os.dup(pidfd) if pidfd >= 0 else open_pidfd(pid), -1)
    try:
        held.directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if birth and _birth(held) != birth:
            raise TargetRefused(f"pid {pid} was given anew")
        # Not exited now: so the number was its own when the directory was opened.
        if held.ended():
            raise TargetGone(f"pid {pid} has exited")
    except TargetError:
        held.close()
        raise
    except (FileNotFoundError, ProcessLookupError):
        held.close()
        raise TargetGone(f"pid {pid} has exited") from None
    except OSError as error:
        held.close()
        raise TargetRefused(f"pid {pid} can't be read: {error.strerror}") from error
    return held


def _birth(held: Process) -> int:
    """As `ProcessFacts.birth`."""
    if _pidfs():
        return os.fstat(held.pidfd).st_ino
    return parse_stat(held.read("stat")[0]).start_ticks


def hold_all(teller: Teller, job: AnyJob, fds: tuple[int, ...]) -> list[Process]:
    """The job's processes: those named, and the container's members of now. Named ones that have gone are told."""
    found: dict[int, Process] = {}
    for number, whom in enumerate(job.processes[:MAX_PROCESSES]):
        pidfd = fds[number] if number < len(fds) else -1
        _add(teller, found, whom, pidfd)
    if job.container is not None:
        for pid in _members(job.container):
            if len(found) >= MAX_PROCESSES:
                teller.lacks("processes", f"more than {MAX_PROCESSES}")
                break
            if pid not in found:
                _add_member(teller, found, pid, job.container)
    return list(found.values())


def _add(teller: Teller, found: dict[int, Process], whom: Whom, pidfd: int) -> None:
    try:
        found[whom.pid] = hold(whom.pid, whom.birth, pidfd)
    except TargetError as error:
        teller.lacks(f"process {whom.pid}", error.reason)


def _add_member(teller: Teller, found: dict[int, Process], pid: int, box: Box) -> None:
    try:
        held = hold(pid)
    except TargetGone:
        return  # since it was listed
    except TargetError as error:
        teller.lacks(f"process {pid}", error.reason)
        return
    try:
        held.cgroup = held.read("cgroup")[0]
        mine = box.container_id in _containers(held.cgroup)
    except OSError:
        mine = False
    if mine:
        found[pid] = held
    else:
        held.close()  # the number was given anew since it was listed, or it has left


@functools.lru_cache(maxsize=64)  # the processes of a container say the same
def _containers(cgroup: bytes) -> frozenset[str]:
    """The containers that /proc/PID/cgroup names."""
    return frozenset(locate(path).container_id for _, path in parse_cgroups(cgroup))


def _members(box: Box) -> list[int]:
    """Pids in the container's cgroups, its init first."""
    pids = {pid for top in (box.cgroup_v2, box.cgroup_freezer) if top for pid in _below(top)}
    return sorted(pids, key=lambda pid: (pid != box.init_pid, pid))


def _below(top: str) -> Iterator[int]:
    waiting = [top]
    for directory in waiting:  # grows while it is walked
        try:
            yield from (pid for pid in read_list(f"{directory}/cgroup.procs") if pid > 0)
            if len(waiting) < MAX_NESTED and os.stat(directory).st_nlink > 2:
                with os.scandir(directory) as entries:
                    waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # removed meanwhile, or threaded: its domain above lists its processes
