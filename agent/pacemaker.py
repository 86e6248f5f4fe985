"""The reflex's end of the pacemaker: starts `agent.pacing`, hears what it does, starts it again when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import trio

from agent.link import LIVED_SECONDS, RESTART_SECONDS
from agent.pacing import REPORT, STAY_AWAKE
from stoop.config import Pacemaker
from stoop.metrics import Metrics

DOWN, RUNNING, RESTING, OFF = "down", "running", "resting", "off"
"""Its states: a label of the heartbeat's lag."""

REST_LAG_NS = 5_000_000
"""A heartbeat that took longer while the pacemaker rested shows that Falco's reader did sleep: a third of an idle
node's median, and several times what a busy reader needs (reference/falco.md)."""


class Pacer:
    """One pacemaker process at a time. `started` is called with its pid, and with 0 when it has ended."""

    def __init__(
        self, settings: Pacemaker, metrics: Metrics, say: Callable[..., None], started: Callable[[int], None]
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._say = say
        self._started = started
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._one = trio.CapacityLimiter(1)
        self.pid = 0
        self.restarts = 0
        self.trouble = ""
        self.rests = False
        self.rate = 0
        self.cpu = 0.0

    def pace(self) -> str:
        """Its state of now."""
        return (RESTING if self.rests else RUNNING) if self.pid else DOWN

    def felt(self, pace: str, lag_ns: int) -> None:
        """A heartbeat took so long in that state. A rest that costs latency ends, and none begins for a while."""
        if pace == RESTING and lag_ns > REST_LAG_NS and self._socket is not None:
            try:
                self._socket.send(STAY_AWAKE)
            except OSError:  # it has just ended, or reads nothing: the next heartbeat will tell again
                return

    async def serve(self) -> None:
        """Keep one running until cancelled."""
        pauses = iter(RESTART_SECONDS)
        while True:
            begun = trio.current_time()
            await self._live()
            if trio.current_time() - begun > LIVED_SECONDS:
                pauses = iter(RESTART_SECONDS)
            pause = next(pauses, RESTART_SECONDS[-1])
            self.restarts += 1
            self._metrics.inc("pacemaker_restarts_total")
            self._say("warning", "the pacemaker ended and is started again", after_s=pause, problem=self.trouble)
            await trio.sleep(pause)

    async def _live(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:  # no descriptor to be had now (socketpair(2)): tried again after the pause
            self.trouble = str(error)
            return
        ours.setblocking(False)
        with ours:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hold, theirs)
                self._socket = ours
                try:
                    await self._read(ours)
                finally:
                    self._socket = None
                    self._end()

    async def _hold(self, theirs: socket.socket) -> None:
        """Its thread waits for its end: PR_SET_PDEATHSIG is about the thread that forked, which so lives as long."""
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(self._child, theirs, limiter=self._one)
                self.trouble = ""
            except (OSError, RuntimeError) as error:  # no process, thread or memory to be had now (fork(2))
                self.trouble = str(error)
            finally:
                theirs.close()  # also when there was no thread: the reader waits for its end

    def _child(self, theirs: socket.socket) -> None:
        with theirs:
            process = _spawn(theirs.fileno(), self._settings)
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        trio.from_thread.run_sync(self._begun, process.pid, pidfd)
        process.wait()
        trio.from_thread.run_sync(self._ended)

    def _begun(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd
        self.rests, self.rate, self.cpu = False, 0, 0.0
        self._started(pid)
        if self._socket is None:  # told to end meanwhile
            self._end()

    def _end(self) -> None:
        """It keeps nothing that it would have to put in order, and may have been stopped."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):  # its thread has reaped it just now
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        os.close(self._pidfd)
        self.pid, self._pidfd, self.rate, self.cpu = 0, -1, 0, 0.0
        self._started(0)

    async def _read(self, ours: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                data = ours.recv(REPORT.size + 1)
            except BlockingIOError:
                continue
            except OSError:
                return
            if len(data) != REPORT.size:
                return  # it ended; or it is not our pacemaker any more, which the closed socket ends
            rests, self.rate, millionths = REPORT.unpack(data)
            self.rests, self.cpu = bool(rests), millionths / 1e6

    # ------------------------------------------------------------ saying

    def count(self) -> None:
        """The gauges of now."""
        metrics = self._metrics
        metrics.set("pacemaker_up", (), 1 if self.pid else 0)
        metrics.set("pacemaker_rate", (), self.rate)
        metrics.set("pacemaker_cpu_ratio", (), self.cpu)

    def status(self) -> dict[str, Any]:
        """For `stoop status`. `rate`: calls a second, `cpu`: share of one processor, both of the last report."""
        return {
            "pid": self.pid,
            "state": self.pace(),
            "rate": self.rate,
            "wanted": self._settings.rate,
            "cpu": self.cpu,
            "restarts": self.restarts,
            "trouble": self.trouble,
        }


def _spawn(fd: int, settings: Pacemaker) -> subprocess.Popen[bytes]:
    """`-P`: nothing of the working directory is run as root."""
    words = [str(fd), str(settings.rate), str(int(settings.adaptive))]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent.pacing", *words],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
