"""The facts of one process, read once. The hot path: each file that is not read spares some 20 µs on an idle node.

The short way takes half the time: taskstats tells the start in µs, and the inode of a pidfd tells one process from
every other of this boot (Linux 6.9 and newer, pidfs). It serves only a machine that was never suspended, because
taskstats counts the age without that time.

Paths, not a directory's descriptor: the caller holds a pidfd, and looks after the reading that the process is still
there, so the number can't have come to mean another one in between.
"""

from __future__ import annotations

import os

import msgspec

from agent.node.held import has_pidfs
from agent.node.procfs import (
    PF_KTHREAD,
    TICK_NS,
    Procfs,
    Stat,
    cgroups_of,
    file_identity,
    namespace_inode,
    read_file,
    realtime_minus_boottime_ns,
    suspended_ns,
    text,
)
from agent.node.taskstats import Taskstats
from stoop.errors import TargetGone
from stoop.node import ProcessFacts

EXITED = "already exited"


class Facts:
    """Reads facts: the short way where the kernel offers it, else from /proc alone. The same facts, but for `birth`."""

    def __init__(self, procfs: Procfs, taskstats: Taskstats) -> None:
        self._procfs = procfs
        self._taskstats = taskstats
        self._pidfs = has_pidfs()

    def read(self, pid: int, pidfd: int) -> ProcessFacts:
        """What the node says of a process that is held; what `more` tells is left out.

        Raises TargetGone (a zombie), TargetRefused (two container ids), and OSError as the files do: FileNotFoundError
        or ProcessLookupError when it ended meanwhile, PermissionError without CAP_SYS_PTRACE.
        """
        if self._pidfs and suspended_ns() < TICK_NS:
            short = self._read_short(pid, pidfd)
            if short is not None:
                return short
        return self._read_whole(pid, pidfd)

    def _read_short(self, pid: int, pidfd: int) -> ProcessFacts | None:
        """By taskstats and the pidfd's inode: no stat file. None for what is not an ordinary living process."""
        born = self._taskstats.born(pid)
        if born is None:
            return None
        at = f"{self._procfs.root}/{pid}/"
        try:
            exe = os.readlink(at + "exe")
        except FileNotFoundError:  # a kernel thread, or a first thread that has ended
            return None
        cgroups, container_id, pod_uid = cgroups_of(read_file(at + "cgroup"))
        mnt_ns = namespace_inode(at + "ns/mnt")
        return ProcessFacts(
            pid=pid,
            birth=os.fstat(pidfd).st_ino,
            start_ns=born.start_ns,
            start_slack_ns=born.slack_ns,
            boot_id=self._procfs.boot_id,
            ppid=born.ppid,
            comm=text(born.comm),
            exe=exe if exe.isascii() else text(os.fsencode(exe)),
            uid=born.uid,
            kernel_thread=False,
            mnt_ns=mnt_ns,
            cgroups=cgroups,
            container_id=container_id,
            pod_uid=pod_uid,
            pid_ns=self._pid_ns(at, container_id, mnt_ns),
        )

    def _read_whole(self, pid: int, pidfd: int) -> ProcessFacts:
        procfs = self._procfs
        at = f"{procfs.root}/{pid}/"
        stat = procfs.stat(pid)
        if stat.ended:
            # A first thread that has ended has no other facts, a living one has.
            at = f"{at}task/{_live_thread(procfs, pid, stat)}/"
        cgroups, container_id, pod_uid = cgroups_of(read_file(at + "cgroup"))
        mnt_ns = namespace_inode(at + "ns/mnt")
        return ProcessFacts(
            pid=pid,
            birth=os.fstat(pidfd).st_ino if self._pidfs else stat.start_ticks,
            start_ns=stat.start_ticks * TICK_NS + realtime_minus_boottime_ns(),
            start_slack_ns=TICK_NS,
            boot_id=procfs.boot_id,
            ppid=stat.ppid,
            comm=stat.comm,
            exe=_executable(at + "exe"),
            uid=procfs.status(pid).uid,
            kernel_thread=bool(stat.flags & PF_KTHREAD),
            mnt_ns=mnt_ns,
            cgroups=cgroups,
            container_id=container_id,
            pod_uid=pod_uid,
            pid_ns=self._pid_ns(at, container_id, mnt_ns),
        )

    def _pid_ns(self, at: str, container_id: str, mnt_ns: int) -> int:
        """Only this tells a container's process that left its cgroup from a service with mounts of its own."""
        return namespace_inode(at + "ns/pid") if not container_id and mnt_ns != self._procfs.mnt_ns else 0

    def more(self, facts: ProcessFacts) -> ProcessFacts:
        """The same with `ns_pids`, `exe_dev`, `exe_ino` and `pid_ns`. Raises as `read` does."""
        at = f"{self._procfs.root}/{facts.pid}/"
        stat = self._procfs.stat(facts.pid)
        if stat.ended:
            at += f"task/{_live_thread(self._procfs, facts.pid, stat)}/"
        device, inode = file_identity(at + "exe")
        return msgspec.structs.replace(
            facts,
            ns_pids=self._procfs.status(facts.pid).ns_pids,
            exe_dev=device,
            exe_ino=inode,
            pid_ns=namespace_inode(at + "ns/pid"),
        )


def _live_thread(procfs: Procfs, pid: int, leader: Stat) -> int:
    """The number of a living thread. Raises TargetGone where there is none."""
    found = procfs.live_thread(pid) if leader.threads > 1 else None
    if found is None:
        raise TargetGone(EXITED)
    return found[0]


def _executable(link: str) -> str:
    """The path of what the process runs, as its own mount namespace names it; a kernel thread runs no file."""
    try:
        return text(os.readlink(os.fsencode(link)))
    except FileNotFoundError:
        return ""
