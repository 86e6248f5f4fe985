"""A process held by a pidfd (pidfd_open(2)): its number can't come to mean another process while it is held."""

from __future__ import annotations

import errno
import os
import select
import signal
from types import TracebackType

import trio

from agent.node.procfs import Procfs
from stoop.errors import ActFailed, TargetGone, TargetRefused
from stoop.node import ProcessFacts


class LinuxHeld:
    """The HeldProcess of Linux. Owns the pidfd: `close` it, or use it as a context manager."""

    __slots__ = ("_facts", "_fd", "_procfs")

    def __init__(self, fd: int, facts: ProcessFacts, procfs: Procfs) -> None:
        self._fd = fd
        self._facts = facts
        self._procfs = procfs

    @property
    def facts(self) -> ProcessFacts:
        """What was read when it was taken hold of."""
        return self._facts

    def signal(self, signo: int) -> bool:
        """Send a signal through the pidfd; False when it has exited already. Raises ActFailed when not permitted."""
        if self.has_exited():
            return False  # a zombie would take the signal and say nothing
        try:
            signal.pidfd_send_signal(self._fd, signo)
        except ProcessLookupError:
            return False
        except OSError as error:
            name = f"signal {signo} to pid {self._facts.pid}"
            hint = " (CAP_KILL is needed)" if isinstance(error, PermissionError) else ""
            raise ActFailed(f"{name}: {error.strerror}{hint}") from error
        return True

    def has_exited(self) -> bool:
        """Whether the whole thread group has exited. A first thread that ended before the others is not an end."""
        return pidfd_ready(self._fd)

    async def wait_exited(self) -> None:
        """Return once the whole thread group has exited. One task at a time may wait."""
        await trio.lowlevel.wait_readable(self._fd)

    def state(self) -> str:
        """The state letter of now (`Procfs.state`); `X` when it has exited, reaped or not."""
        if self.has_exited():
            return "X"
        try:
            letter = self._procfs.state(self._facts.pid)
        except (FileNotFoundError, ProcessLookupError):
            return "X"
        # Read by number: true only if the number still was this process's afterwards.
        return "X" if self.has_exited() else letter

    def close(self) -> None:
        """Let go. Idempotent; nothing else may be called after it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LinuxHeld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
