"""The facts of one process, read once. The hot path: about 60 µs, most of it the kernel writing its files."""

from __future__ import annotations

import os

from agent.node.container_id import container_of
from agent.node.procfs import (
    PF_KTHREAD,
    TICK_NS,
    Procfs,
    Stat,
    file_identity,
    namespace_inode,
    parse_cgroups,
    parse_stat,
    parse_status,
    read_at,
    realtime_minus_boottime_ns,
    text,
)
from stoop.errors import TargetGone
from stoop.spec import ProcessFacts

EXITED = "already exited"


def read_facts(procfs: Procfs, pid: int) -> ProcessFacts:
    """What the node says of a process whose pidfd the caller holds.

    Raises TargetGone (a zombie), TargetRefused (two container ids), and OSError as the files do: FileNotFoundError or
    ProcessLookupError when it ended meanwhile, PermissionError without CAP_SYS_PTRACE.
    """
    directory = procfs.open(pid)
    try:
        stat = parse_stat(read_at(directory, "stat"))
        # Where the other facts are read: a first thread that has ended has none of them, a living one has.
        at, state = _live_thread(procfs, pid, stat) if stat.ended else ("", stat.state)
        status = parse_status(read_at(directory, "status"))
        cgroups = parse_cgroups(read_at(directory, at + "cgroup"))
        container_id, pod_uid = container_of(cgroups)
        exe, device, inode = _executable(directory, at + "exe")
        return ProcessFacts(
            pid=pid,
            start_ticks=stat.start_ticks,
            start_ns=stat.start_ticks * TICK_NS + realtime_minus_boottime_ns(),
            start_slack_ns=TICK_NS,
            boot_id=procfs.boot_id,
            ppid=stat.ppid,
            pgid=stat.pgid,
            sid=stat.sid,
            state=state,
            comm=stat.comm,
            exe=exe,
            exe_dev=device,
            exe_ino=inode,
            uid=status.uid,
            ns_pids=status.ns_pids,
            threads=stat.threads,
            kernel_thread=bool(stat.flags & PF_KTHREAD),
            mnt_ns=namespace_inode(directory, at + "ns/mnt"),
            pid_ns=namespace_inode(directory, at + "ns/pid"),
            cgroups=cgroups,
            container_id=container_id,
            pod_uid=pod_uid,
        )
    finally:
        os.close(directory)


def _live_thread(procfs: Procfs, pid: int, leader: Stat) -> tuple[str, str]:
    """(path of a living thread below the process's directory, its state)."""
    found = procfs.live_thread(pid) if leader.threads > 1 else None
    if found is None:
        raise TargetGone(EXITED)
    return f"task/{found[0]}/", found[1].state


def _executable(directory: int, name: str) -> tuple[str, int, int]:
    """(path, device, inode) of what the process runs; a kernel thread runs no file."""
    try:
        path = os.readlink(name.encode(), dir_fd=directory)
    except FileNotFoundError:
        return "", 0, 0
    return text(path), *file_identity(directory, name)
