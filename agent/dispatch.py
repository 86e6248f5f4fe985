"""The reflex's end of the courier: starts it when something is to be sent, lets it go when nothing is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec
import trio

from agent.letters import MAX_LETTER, Fate, LetterError, Open, Send, Sent, Setup, encode, from_courier

IDLE_SECONDS = 20.0
"""A courier that has nothing to do so long is let go: its memory is that of a Python with TLS and a store's client."""

LIFE_SECONDS = 1800.0
"""And one that has lived so long begins nothing new: credentials are read at the start only (a pod's token is renewed
after some 50 minutes)."""

START_SECONDS = 20.0
"""From its start until it takes letters: some 0.3 s on an idle machine."""

STUCK_SECONDS = 90.0
"""Beyond the deadline of what it sends, one that does not answer is ended: a request's own limit is 60 s."""

ENDED = "the courier ended"


class Dispatch:
    """`send` from within `serve`. `own` is told the courier's pid, and 0 when it has ended."""

    def __init__(
        self,
        setup: Callable[[], Setup],
        own: Callable[[int], None],
        warn: Callable[..., None],
        idle_s: float = IDLE_SECONDS,
    ) -> None:
        self._setup = setup
        self._idle_s = idle_s
        self._own = own
        self._warn = warn
        self._nursery: trio.Nursery | None = None
        self._courier: _Courier | None = None
        self._starting = trio.Lock()
        self._ids = 0
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Of the courier of now; 0 where none is needed."""
        return self._courier.pid if self._courier is not None and not self._courier.gone else 0

    async def serve(self) -> None:
        """Until cancelled; the courier ends with it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                if self._courier is not None:
                    self._courier.end()

    async def send(self, letter: Send, fd: int) -> Sent:
        """Have this sent. Raises nothing for what becomes of it. The descriptor stays the caller's."""
        self._ids += 1
        letter = msgspec.structs.replace(letter, id=self._ids)
        try:
            async with self._starting:
                courier = await self._living()
        except (OSError, RuntimeError, trio.TooSlowError) as error:  # no process, thread or descriptor to be had now
            return Sent(letter.id, Fate.LATER, f"the courier can't be started: {str(error) or 'it did not come up'}")
        with trio.move_on_after(letter.deadline_s + STUCK_SECONDS):
            return await courier.send(letter, fd)
        courier.end()
        return Sent(letter.id, Fate.LATER, "the courier did not answer and was ended")

    async def _living(self) -> _Courier:
        courier = self._courier
        if courier is not None and not courier.gone and trio.current_time() - courier.begun < LIFE_SECONDS:
            return courier
        assert self._nursery is not None, "it sends only while it is served"
        if courier is not None:
            courier.retire()
        courier = _Courier(self._own, self._warn, self._idle_s)
        with trio.fail_after(START_SECONDS):
            await self._nursery.start(courier.serve, self._setup())
        self._courier = courier
        self.restarts += 1
        return courier


class _Courier:
    """One process and its socket."""

    def __init__(self, own: Callable[[int], None], warn: Callable[..., None], idle_s: float) -> None:
        self._own = own
        self._warn = warn
        self._idle_s = idle_s
        self._waiting: dict[int, tuple[trio.Event, list[Sent]]] = {}
        self._changed = trio.Event()
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._retired = False
        self.begun = 0.0
        self.pid = 0
        self.gone = False

    async def serve(self, setup: Setup, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it until it has nothing to do; `started` once it takes letters. Raises OSError, RuntimeError before."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with theirs:
                process = await trio.to_thread.run_sync(_spawn, theirs.fileno())
            self._socket, self.pid, self.begun = ours, process.pid, trio.current_time()
            self._own(process.pid)
            try:
                ours.send(encode(setup))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_idle, nursery.cancel_scope)
                    await self._read(ours, task_status)
                    nursery.cancel_scope.cancel()
            finally:
                self.gone, self._socket = True, None
                self._own(0)
                for event, _ in self._waiting.values():
                    event.set()
                ours.close()
                with trio.CancelScope(shield=True):
                    await _reap(process)

    async def send(self, letter: Send, fd: int) -> Sent:
        """Its answer, or that it ended."""
        ended = Sent(letter.id, Fate.LATER, ENDED)
        if self._socket is None:
            return ended
        event, answers = self._waiting[letter.id] = (trio.Event(), [])
        self._changed.set()
        try:
            socket.send_fds(self._socket, [encode(letter)], [fd])
            await event.wait()
        except (OSError, LetterError) as error:
            return Sent(letter.id, Fate.LATER, f"the courier takes no letter: {error}")
        finally:
            del self._waiting[letter.id]
            self._changed.set()
        return answers[0] if answers else ended

    def retire(self) -> None:
        """Nothing new comes: it goes when it has nothing to do."""
        self._retired = True
        self._changed.set()

    def end(self) -> None:
        """At once: what was under way is tried again by another."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def _watch_idle(self, scope: trio.CancelScope) -> None:
        while True:
            self._changed = trio.Event()
            patience = self._idle_s if not self._retired else 0.0
            with trio.move_on_after(patience if not self._waiting else float("inf")) as waits:
                await self._changed.wait()
            if waits.cancelled_caught and not self._waiting:
                scope.cancel()
                return

    async def _read(self, ours: socket.socket, task_status: trio.TaskStatus[None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                data = ours.recv(MAX_LETTER)
                letter = from_courier(data) if data else None
            except BlockingIOError:
                continue
            except (OSError, LetterError):
                return
            if letter is None:
                return
            if isinstance(letter, Open):
                if letter.faults:
                    self._warn("the courier could not drop every right", problem=letter.faults)
                task_status.started()
            elif letter.id in self._waiting:
                event, answers = self._waiting[letter.id]
                answers.append(letter)
                event.set()


def _spawn(fd: int) -> subprocess.Popen[bytes]:
    """`-P`: nothing of the working directory is run as root."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent.courier", str(fd)],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """It keeps nothing that it would have to put in order."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    try:
        await trio.to_thread.run_sync(process.wait)
    except RuntimeError:  # no thread to be had: it is reaped with the next process that is started
        return
