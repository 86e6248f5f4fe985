"""The reflex's end of the workers: starts the nursery, sends it jobs, bounds them, goes on whatever becomes of them.

A job has its own socket (`agent.jobs`), so its answer passes no other program. Nothing here waits for a worker beyond
the job's deadline; the place that a job takes is free again only once its processes have ended or are given up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from agent.jobs import (
    MAX_FDS,
    MAX_MESSAGE,
    READY,
    Abandoned,
    Cancel,
    Ended,
    FromNursery,
    Job,
    JobError,
    Progress,
    Result,
    Start,
    Started,
    decode_from_nursery,
    decode_from_worker,
    encode,
)

MAX_RUNNING = 8
"""Workers at a time: each reads as fast as the disk takes it, and has some MiB of its own."""

MAX_RUNNING_OF_TARGET = 2
"""Of one target: what hangs for one that hangs on purpose leaves the others their places."""

MAX_WAITING = 64
"""Jobs that wait for a place. The next is refused at once."""

MAX_ABANDONED = 32
"""Processes that hang in the kernel and can't be killed; each keeps some MiB. With so many no job is begun any more."""

MAX_ABANDONED_OF_TARGET = 4
"""The same of one target: it is not looked into again until one of them has ended."""

RESTART_SECONDS = (0.05, 0.5, 2.0, 10.0)
"""Pause before the nursery is started again; the last one stays."""

LIVED_SECONDS = 60.0
"""A nursery that lived so long starts the pauses anew."""

GOODBYE_SECONDS = 1.0
"""What the nursery gets to end by itself when the agent does."""


@dataclass(slots=True)
class _Running:
    """A job that has a place. `lost`: why nothing more can come of it."""

    key: str
    pid: int = 0
    abandoned: set[int] = field(default_factory=set)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    lost: str = ""


class Workers:
    """`serve` keeps a nursery; `run` does a job. `started` is told each nursery's pid, and 0 when it ended;
    `changed` that `pids` are others now.

    `warn`: a constant message and fields, for the log.
    """

    def __init__(
        self,
        started: Callable[[int], None] = lambda _: None,
        warn: Callable[..., None] = lambda *_, **__: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = changed
        self._started = started
        self._warn = warn
        self._socket: socket.socket | None = None
        self._outbox: deque[tuple[bytes, list[int]]] = deque()  # the descriptors are ours to close
        self._writable = trio.Event()
        self._up = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._jobs: dict[int, _Running] = {}
        self._next = 1
        self._waiting = 0
        self.pid = 0
        self.restarts = -1
        self.trouble = ""  # why no nursery could be started the last time
        self._counts: Counter[str] = Counter()
        self._ready: Callable[[], None] = _nothing

    # ------------------------------------------------------------ jobs

    async def run(
        self,
        job: Job,
        deadline_s: float,
        *,
        fds: Sequence[int] = (),
        progress: Callable[[str], None] = lambda _: None,
    ) -> Result:
        """Do a job. Never raises for what becomes of it: `Result.ok` is false then, `reason` says why.

        Returns at the deadline (seconds from now) at the latest. The worker is killed then, and when this is cancelled.
        `fds` stay the caller's; `progress` is called with each phase (`agent.jobs.VOLATILE`, `READ`), synchronously.
        """
        deadline = trio.current_time() + deadline_s
        try:
            with trio.move_on_at(deadline):
                result = await self._placed(job, deadline, fds[:MAX_FDS], progress)
                self._counts["done" if result.ok else "failed"] += 1
                return result
        except (JobError, OSError) as error:  # too large; no descriptor to be had
            self._counts["failed"] += 1
            return Result(False, f"the job can't be sent: {error}")
        self._counts["late"] += 1
        return Result(False, f"it was not done within {deadline_s:g} s")

    async def _placed(self, job: Job, deadline: float, fds: Sequence[int], progress: Callable[[str], None]) -> Result:
        """Wait for a place and for a nursery, then do it."""
        data = encode(job)
        refusal = self._refusal(job.key)
        if refusal:
            return Result(False, refusal)
        self._waiting += 1
        try:
            while self._socket is None or not self._has_room(job.key):
                if self._socket is None:
                    await self._up.wait()
                else:
                    await self._room.park()
        finally:
            self._waiting -= 1
        number, self._next = self._next, self._next + 1
        running = self._jobs[number] = _Running(job.key)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answered = False
        try:
            ours.setblocking(False)
            with theirs:
                start = Start(number, max(0.0, deadline - trio.current_time()), data)
                self._post(encode(start), [theirs.fileno(), *fds])
            with running.scope:
                result = await self._answer(ours, progress)
                answered = True
                return result
            return Result(False, running.lost)
        finally:
            ours.close()
            if not answered and number in self._jobs:
                self._post(encode(Cancel(number)), [])

    async def _answer(self, ours: socket.socket, progress: Callable[[str], None]) -> Result:
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                data = ours.recv(MAX_MESSAGE)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                return Result(False, "its worker ended without an answer")
            try:
                message = decode_from_worker(data)
            except JobError as error:
                return Result(False, f"its worker does not speak our language: {error}")
            if isinstance(message, Result):
                return message
            if isinstance(message, Progress):
                progress(message.phase)

    # ------------------------------------------------------------ places

    def _refusal(self, key: str) -> str:
        """Why no job for this target is begun now, "" when it may wait for its turn."""
        of_target = sum(len(running.abandoned) for running in self._jobs.values() if running.key == key)
        if of_target >= MAX_ABANDONED_OF_TARGET:
            return f"{of_target} workers hang in what this target made, and can't be ended: it is not looked into again"
        if self._abandoned() >= MAX_ABANDONED:
            return f"{MAX_ABANDONED} workers hang and can't be ended: nothing is looked into any more"
        if self._waiting >= MAX_WAITING:
            return f"{MAX_WAITING} other jobs wait already"
        return ""

    def _abandoned(self) -> int:
        return sum(len(running.abandoned) for running in self._jobs.values())

    def _has_room(self, key: str) -> bool:
        running = [each.key for each in self._jobs.values() if not each.abandoned]
        return len(running) < MAX_RUNNING and running.count(key) < MAX_RUNNING_OF_TARGET

    def pids(self) -> frozenset[int]:
        """The nursery and the workers of now: our own, never to be acted on. Readers are the workers' children."""
        return frozenset(pid for pid in (self.pid, *(each.pid for each in self._jobs.values())) if pid)

    def status(self) -> dict[str, Any]:
        """What `stoop status` tells: the nursery, what runs, what hangs, how jobs ended so far."""
        hanging: Counter[str] = Counter()
        for running in self._jobs.values():
            hanging[running.key] += len(running.abandoned)
        return {
            "pid": self.pid,
            "restarts": max(0, self.restarts),
            "trouble": self.trouble,
            "running": [
                {"pid": running.pid, "target": running.key} for running in self._jobs.values() if not running.abandoned
            ],
            "waiting": self._waiting,
            "abandoned": {key: count for key, count in hanging.items() if count},
            "counts": dict(self._counts),
        }

    # ------------------------------------------------------------ the nursery

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a nursery running until cancelled; all workers end with it. `started` once the first one takes jobs."""
        pauses: Iterator[float] = iter(RESTART_SECONDS)
        self._ready = task_status.started
        while True:
            self.restarts += 1
            begun = trio.current_time()
            async with self._process() as ours:
                if ours is not None:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write, ours)
                        await self._read(ours)
                        nursery.cancel_scope.cancel()
                    self._warn("the nursery of workers ended, and is started again", pid=self.pid)
            if trio.current_time() - begun > LIVED_SECONDS:
                pauses = iter(RESTART_SECONDS)
            await trio.sleep(next(pauses, RESTART_SECONDS[-1]))

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[socket.socket | None]:
        """A nursery's process, ended at the end. Gives our end of its socket; None when none can be started now."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self.trouble = str(error)
            yield None
            return
        with ours:
            ours.setblocking(False)
            with theirs:
                try:
                    process = await trio.to_thread.run_sync(_spawn, theirs.fileno())
                except OSError as error:
                    self.trouble = str(error)
                    yield None
                    return
            self.trouble, self.pid, self._socket = "", process.pid, ours
            self._started(process.pid)
            self._changed()
            self._up.set()
            try:
                yield ours
            finally:
                self._gone()
                ours.close()
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_reap, process)

    def _gone(self) -> None:
        """The nursery has ended, and its workers with it. Those that hung are nobody's now, and counted no more."""
        self._socket, self.pid, self._up = None, 0, trio.Event()
        self._started(0)
        while self._outbox:
            _close(self._outbox.popleft()[1])
        jobs, self._jobs = self._jobs, {}
        self._changed()
        for running in jobs.values():
            self._counts["orphaned"] += len(running.abandoned)
            running.lost = "the nursery of its worker ended"
            running.scope.cancel()
        self._room.unpark_all()

    async def _read(self, ours: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(ours)
            try:
                data = ours.recv(MAX_MESSAGE)
                if not data:
                    return
                self._take(decode_from_nursery(data))
            except BlockingIOError:
                continue
            except (OSError, JobError):
                return

    def _take(self, message: FromNursery) -> None:
        if message.id == READY:
            self._ready()
            self._ready = _nothing
            return
        running = self._jobs.get(message.id)
        if running is None:
            return
        if isinstance(message, Started):
            running.pid = message.pid
            self._changed()
        elif isinstance(message, Abandoned):
            running.abandoned.add(message.pid)
            self._counts["abandoned"] += 1
            self._warn("a worker hangs in the kernel and was given up", pid=message.pid, target=running.key)
            self._room.unpark_all()
        elif isinstance(message, Ended):
            del self._jobs[message.id]
            self._changed()
            self._room.unpark_all()

    # ------------------------------------------------------------ sending

    def _post(self, data: bytes, fds: list[int]) -> None:
        """Send without waiting, or keep it for `_write`: some jobs' worth of messages at most."""
        if self._socket is None:
            return
        if not self._outbox:
            try:
                _send(self._socket, data, fds)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # it has just ended: all its jobs are told so
        self._outbox.append((data, [os.dup(fd) for fd in fds]))
        self._writable.set()

    async def _write(self, ours: socket.socket) -> None:
        while True:
            if not self._outbox:
                self._writable = trio.Event()
                await self._writable.wait()
            await trio.lowlevel.wait_writable(ours)
            data, fds = self._outbox[0]
            try:
                _send(ours, data, fds)
            except BlockingIOError:
                continue
            except OSError:
                return
            self._outbox.popleft()
            _close(fds)


def _nothing() -> None:
    """Nobody waits for it."""


def _send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    if fds:
        socket.send_fds(sock, [data], fds)
    else:
        sock.send(data)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _spawn(fd: int) -> subprocess.Popen[bytes]:
    """In a thread: fork and exec take about a millisecond. `-P`: nothing of the working directory is run as root."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent.worker", str(fd)],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C goes to the whole group, and the reflex decides when it ends
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    """In a thread: the nursery ends by itself when its socket closes; one that does not is ended."""
    try:
        process.wait(GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
