"""Processes to be killed, and how long that takes as seen by whoever waits on their pidfd."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

VICTIM = ("/bin/sleep", "600")

EXIT_SECONDS = 5.0
"""A victim that lives longer was not killed: the bench stops."""


class Victim:
    """A child of the bench. `end` reaps it, whatever became of it."""

    def __init__(self) -> None:
        self.pid = os.posix_spawn(VICTIM[0], VICTIM, {}, file_actions=[])
        self.pidfd = os.pidfd_open(self.pid)

    def exited_after(self, act: Callable[[], object]) -> float:
        """Seconds from before `act` until this process was seen to have exited."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        begun = time.perf_counter()
        act()
        if not poller.poll(EXIT_SECONDS * 1000):
            raise RuntimeError(f"victim {self.pid} lives")
        return time.perf_counter() - begun

    def signal(self) -> None:
        """The floor: whoever waits sends the signal itself."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Make sure that it is gone, and reap it. Idempotent."""
        if self.pidfd < 0:
            return
        self.signal()
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        self.pidfd = -1


def idle(seconds: float) -> None:
    """Let every process fall asleep."""
    select.select([], [], [], seconds)
