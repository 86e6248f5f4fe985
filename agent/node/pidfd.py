"""pidfds (pidfd_open(2)) without a loop: for the reflex and for workers."""

from __future__ import annotations

import errno
import os
import select

from stoop.errors import TargetGone, TargetRefused


def pidfd_ready(fd: int) -> bool:
    """Whether the process behind a pidfd has exited: it is readable then (pidfd_open(2))."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def has_pidfs() -> bool:
    """Whether the inode of a pidfd is its process's own (pidfs, Linux 6.9): before that all share one.

    Two different processes are compared: this one and its parent (itself, where there is none).
    """
    try:
        ours, parents = os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid())
    except OSError:
        return False
    try:
        return os.fstat(ours).st_ino != os.fstat(parents).st_ino
    finally:
        os.close(ours)
        os.close(parents)


def open_pidfd(pid: int) -> int:
    """A new pidfd, the caller's to close. Raises TargetGone (no such process), TargetRefused (a thread, EMFILE)."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise TargetGone("no process has that pid any more") from None
    except OSError as error:
        # The kernel takes first threads only (EINVAL; ENOENT since 6.9).
        if error.errno in (errno.EINVAL, errno.ENOENT):
            raise TargetRefused(f"{pid} is the number of a thread, not of a process") from error
        raise TargetRefused(f"pid {pid} can't be held: {error.strerror}{hint(error)}") from error


def hint(error: OSError) -> str:
    """What a person can do about it, in brackets; "" where we know nothing."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return " (raise the limit of open files, RLIMIT_NOFILE)"
    if isinstance(error, PermissionError):
        return " (CAP_SYS_PTRACE is needed)"
    return ""
