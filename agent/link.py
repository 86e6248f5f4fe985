"""The reflex's end of the socket to its helper: starts it, speaks frames, starts it again when it ends.

Nothing here waits for the helper. What it does not take in time is dropped, oldest kind of loss first (log lines, whose
records are in the journal), counted, and told when it takes frames again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import trio

from stoop.wire import AnyMessage, FrameReader, WireError, encode

MAX_BACKLOG = 8 * 1024 * 1024
"""Bytes that may wait for a helper that does not read: some thousand records. What comes then is dropped."""

READ_BYTES = 16 * 1024
"""One read: about ten rules, so that taking them never holds up an alert."""

RESTART_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0)
"""Pause before the helper is started again; the last one stays. Its death costs no act, so there is no hurry."""

LIVED_SECONDS = 60.0
"""A helper that lived so long starts the pauses anew."""

HOPELESS_TRIES = 3
"""Helpers in a row that ended without a word: another one would do the same. They took some 0.6 s and their starts."""

GOODBYE_SECONDS = 2.0
"""What the helper gets to write its last lines when the agent ends."""


class Link:
    """One helper at a time. `handle` gets each message; `started` is called with its pid, and with 0 when it ended."""

    def __init__(
        self, handle: Callable[[AnyMessage], None], started: Callable[[int], None], extras: tuple[str, ...] = ()
    ) -> None:
        """`extras`: what the helper has to import for its work, beside what it always does."""
        self._handle = handle
        self._started = started
        self._extras = extras
        self._socket: socket.socket | None = None
        self._backlog: deque[bytes] = deque()
        self._waiting = 0
        self._cut = False  # the first of them is the rest of a frame
        self._writable = trio.Event()
        self.dropped = 0
        self.restarts = -1
        self.pid = 0
        self.trouble = ""  # why the last one did not come to say a word
        self._mute = 0  # how many in a row did not
        self._heard = False  # the one of now has said something
        self._hopeless = trio.Event()

    def send(self, message: AnyMessage) -> bool:
        """Send without waiting; False when it was dropped."""
        frame = encode(message)
        if self._waiting + len(frame) > MAX_BACKLOG:
            self.dropped += 1
            return False
        if self._socket is not None and not self._backlog:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:  # it has just ended: the rest waits for the next one
                sent = 0
            if sent == len(frame):
                return True
            self._cut = sent > 0
            frame = frame[sent:]
        self._backlog.append(frame)
        self._waiting += len(frame)
        self._writable.set()
        return True

    async def hopeless(self) -> str:
        """Return once no helper can be started, or one after the other ends without a word; gives the reason."""
        await self._hopeless.wait()
        return self.trouble

    async def serve(self, greet: Callable[[], None]) -> None:
        """Keep a helper running until cancelled. `greet` is called for each new one, before anything else is sent."""
        pauses = iter(RESTART_SECONDS)
        pause = 0.0
        while True:
            self.restarts += 1
            begun = trio.current_time()
            await self._live(greet)
            if trio.current_time() - begun > LIVED_SECONDS:
                pauses = iter(RESTART_SECONDS)
            pause = next(pauses, RESTART_SECONDS[-1] if pause else RESTART_SECONDS[0])
            await trio.sleep(pause)

    async def _live(self, greet: Callable[[], None]) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor to be had now (socketpair(2)): tried again after the pause
            self._in_trouble(error.strerror or str(error), HOPELESS_TRIES)
            return
        ours.setblocking(False)
        with ours:
            with theirs:
                try:
                    process = await trio.to_thread.run_sync(_spawn, theirs.fileno(), self._extras)
                except (OSError, RuntimeError) as error:  # no process, thread or memory to be had now: tried again
                    self._in_trouble(getattr(error, "strerror", None) or str(error), HOPELESS_TRIES)
                    return
            self._heard = False
            self.pid = process.pid
            self._started(process.pid)
            waiting, self._backlog = self._backlog, deque()
            bytes_waiting, self._waiting = self._waiting, 0
            self._socket = ours
            greet()
            self._backlog.extend(waiting)
            self._waiting += bytes_waiting
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, ours)
                    await self._read(ours)
                    nursery.cancel_scope.cancel()
            finally:
                self._socket = None
                self.pid = 0
                self._started(0)
                self._forget_rest()
                ours.close()
                with trio.CancelScope(shield=True):
                    try:
                        code = await trio.to_thread.run_sync(_reap, process)
                    except RuntimeError:  # no thread to be had: it is reaped with the next process that is started
                        process.kill()
                        code = -signal.SIGKILL
            if not self._heard:
                self._in_trouble(f"it ended without a word, {_ended(code)}", 1)

    def _in_trouble(self, why: str, tries: int) -> None:
        """One more did not come to say a word; `tries`: how many of HOPELESS_TRIES that counts."""
        self.trouble = why
        self._mute += tries
        if self._mute >= HOPELESS_TRIES:
            self._hopeless.set()

    def _forget_rest(self) -> None:
        """The rest of a frame means nothing to the next helper; whole frames wait for it."""
        if self._cut and self._backlog:
            self._waiting -= len(self._backlog.popleft())
            self.dropped += 1
        self._cut = False

    async def _read(self, ours: socket.socket) -> None:
        reader = FrameReader()
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                data = ours.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            try:
                for message in reader.feed(data):
                    if not self._heard:
                        self._heard, self._mute, self.trouble = True, 0, ""
                    self._handle(message)
                    await trio.lowlevel.checkpoint()
            except WireError:
                return  # not our helper any more: it is ended, and another one started

    async def _write(self, ours: socket.socket) -> None:
        while True:
            if not self._backlog:
                self._writable = trio.Event()
                await self._writable.wait()
                continue
            await trio.lowlevel.wait_writable(ours)
            frame = self._backlog[0]
            try:
                sent = ours.send(frame)
            except BlockingIOError:
                continue
            except OSError:
                return
            self._waiting -= sent
            self._cut = sent < len(frame)
            if self._cut:
                self._backlog[0] = frame[sent:]
            else:
                self._backlog.popleft()


def _spawn(fd: int, extras: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """In a thread: fork and exec take about a millisecond. `-P`: nothing of the working directory is run as root."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent.helper", str(fd), *extras],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        # Ctrl-C goes to the whole group, and the reflex decides when the helper ends.
        process_group=0,
        # One arena is enough for a program of one busy thread, and spares a MiB.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "1"},
    )


def _reap(process: subprocess.Popen[bytes]) -> int:
    """In a thread: the helper ends by itself when its socket closes; one that does not is ended. Gives its code."""
    try:
        return process.wait(GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _ended(code: int) -> str:
    """How a process ended, as Popen.returncode tells it."""
    return f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
