"""A process held by a pidfd (pidfd_open(2)): its number can't come to mean another process while it is held."""

from __future__ import annotations

import os
import signal
from types import TracebackType

import trio

from agent.node.pidfd import has_pidfs, hint, open_pidfd, pidfd_ready
from agent.node.procfs import Procfs
from stoop.errors import ActFailed, TargetRefused
from stoop.node import ProcessFacts

__all__ = ["LinuxHeld", "has_pidfs", "hint", "open_pidfd", "pidfd_ready"]


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

    def fileno(self) -> int:
        """The pidfd, which stays ours: for handing it to a worker."""
        return self._fd

    def again(self) -> LinuxHeld:
        """The same process with the same facts, held once more. Raises TargetRefused without a free descriptor."""
        try:
            return LinuxHeld(os.dup(self._fd), self._facts, self._procfs)
        except OSError as error:
            raise TargetRefused(f"pid {self._facts.pid} can't be held: {error.strerror}{hint(error)}") from error

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
