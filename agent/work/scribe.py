"""A job that leaves a bundle: one process reads the target, this one writes, and never touches the target.

What a target made can hang whoever looks at it: a page of its command line can lie in a FUSE mount. The reader then is
ended (or abandoned), another one goes on behind the step that hung, and the bundle says what is missing. So a
target can withhold a part, and not the whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from agent.jobs import (
    NICE,
    READ,
    VOLATILE,
    AnyJob,
    DownloadJob,
    KeepFileJob,
    LogJob,
    Progress,
    Result,
    SnapshotJob,
    SyscallsJob,
    TrafficJob,
    encode,
)
from agent.node.procfs import parse_stat
from agent.work.aside import Step, tie_to_parent
from agent.work.telling import Begin, Done, End, Gap, Lack, Listener, No, Phase, Piece, Teller, Whole
from stoop.errors import ActFailed, StoopError, TargetError, TargetGone, TargetRefused
from stoop.evidence.draft import JOIN_SECONDS
from stoop.evidence.store import Draft, Store
from stoop.evidence.writing import PartWriter

VOLATILE_STALL_SECONDS = 0.06
"""A reader that is silent for so long while its target may stand still hangs. Reading all of a usual container takes
20 ms; the target stands still for 200 at most, so there is time for a second reader."""

STALL_SECONDS = 2.0
"""The same afterwards: a cold file on a slow disk takes its time."""

MAX_READERS = 6
"""Readers of one job: each may be left hanging, with some MiB of its own. After the last one what was read is kept."""

RESERVE_SECONDS = 0.05
"""Of a deadline, kept for writing the manifest; a tenth of it where that is more, at most RESERVE_MOST_SECONDS."""
RESERVE_MOST_SECONDS = 2.0

END_SECONDS = 0.02
"""How long a reader that is done, or was killed, may take to end before the job goes on without it."""

PIPE_BYTES = 1024 * 1024
"""Of the pipe between the two (F_SETPIPE_SZ): the reader need not wait for the writer while the target stands still."""

READ_BYTES = 1024 * 1024

FLUSH_BYTES = 64 * 1024 * 1024
"""What may wait in memory to be written to disk: a long capture on a slow disk must not fill the machine's memory with
its pages, nor need minutes at its end."""

_F_SETPIPE_SZ = 1031
# include/uapi/linux/fcntl.h

ONE_THING = (LogJob, DownloadJob, TrafficJob, KeepFileJob, SyscallsJob)
"""Jobs that are asked for one thing: without it there is no bundle, and the job has failed."""

MAX_REASONS = 3
"""Told of such a failure; the first one is nearly always the only one."""

Read = Callable[[Teller, Any, tuple[int, ...]], None]
"""Reads a job's target: what to tell it to, the job, the descriptors that came with it."""


def perform(read: Read, job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    """Read by `read`, write a bundle, commit it. `deadline`: CLOCK_MONOTONIC seconds. Raises StoopError."""
    begun = time.monotonic()
    if not isinstance(job, SnapshotJob):  # of which the target may stand still in the beginning
        os.nice(NICE)
    reserve = min(max(RESERVE_SECONDS, (deadline - begun) / 10), RESERVE_MOST_SECONDS)
    with Store(job.store, job.limits) as store, store.draft(job.origin) as draft:
        if isinstance(job, KeepFileJob):
            job = msgspec.structs.replace(job, room=store.room_for_pins())
        scribe = _Scribe(read, job, sock, fds, draft)
        scribe.gather(min(deadline - reserve, begun + job.read_s if job.read_s else deadline))
        read_s = time.monotonic() - begun
        _tell(sock, Progress(READ))
        parts = draft.writer.parts
        if isinstance(job, ONE_THING) and not parts:
            if scribe.no is not None:
                raise scribe.no
            raise ActFailed("; ".join(f"{lack.what}: {lack.why}" for lack in draft.writer.missing[:MAX_REASONS]))
        notes = scribe.notes | {"read_ms": round(read_s * 1000, 1)}
        if scribe.hung:
            notes["hung"] = sorted(scribe.hung)
        join_s = min(JOIN_SECONDS, max(0.0, deadline - time.monotonic()) / 2)
        pinned = isinstance(job, KeepFileJob) and not draft.writer.missing_count
        kept = draft.commit(job.origin, job.target, notes, join_s, pinned=pinned)
    details: dict[str, Any] = {
        "bundle": kept.bundle,
        "bytes": kept.bytes,
        "manifest": kept.manifest,
        "parts": kept.parts,
        "missing": kept.missing,
        "store": store.holds,
    }
    told = {"folder": draft.writer.folder, "apart": kept.apart}
    details |= {name: value for name, value in told.items() if value}
    if isinstance(job, KeepFileJob):
        if kept.missing:
            return Result(False, "the file could not be kept whole; nothing was changed", details)
        about = parts[0].about
        details |= {"file": about["file"], "resolved": about["resolved"], "sha256": parts[0].sha256}
    if scribe.text:
        details["text"] = scribe.text
    return Result(True, details=details | ({"hung": sorted(scribe.hung)} if scribe.hung else {}))


def _tell(sock: socket.socket, message: Progress) -> None:
    with contextlib.suppress(OSError):  # who asked has gone: the evidence is kept all the same
        sock.send(encode(message))


class _Scribe:
    def __init__(self, read: Read, job: AnyJob, sock: socket.socket, fds: tuple[int, ...], draft: Draft) -> None:
        self._read = read
        self._job = job
        self._sock = sock
        self._fds = fds
        self._draft = draft
        self._writer = draft.writer
        self._part: PartWriter | None = None
        self._lacked: set[tuple[str, str]] = set()
        self._flushed = 0
        self._step = Step()
        self._phases: set[str] = set()
        self._done = False
        self.hung: set[str] = set()
        self.notes: dict[str, Any] = {}
        self.no: TargetError | None = None
        self.text = b""

    def gather(self, deadline: float) -> None:
        """Have the target read until all is there, the deadline, or the last reader."""
        for _ in range(MAX_READERS):
            self._step.set("")
            status = self._one_reader(deadline)
            self._end_part()
            if self._done:
                return
            step = self._step.get()
            if time.monotonic() >= deadline:
                self._writer.lacks("the rest", f"the deadline came at step {step!r}")
                return
            why = "it did not answer" if status is None else f"its reader ended (status {status})"
            self._writer.lacks(step or "the beginning", why)
            if step:
                self.hung.add(step)
        self._writer.lacks("the rest", "too many steps did not answer")

    def _one_reader(self, deadline: float) -> int | None:
        """Run one reader. Its exit status, negative for a signal; None when it had to be ended."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # beyond /proc/sys/fs/pipe-user-pages-soft it stays as it is
            _set_pipe_size(ours)
        us = os.getpid()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            self._become_reader(us, theirs)
        os.close(theirs)
        try:
            whole = self._listen(pid, ours, deadline)
        finally:
            os.close(ours)
        if not whole:
            os.kill(pid, signal.SIGKILL)  # ours, and not waited for yet: the number is its own
        status = self._end_reader(pid)
        return status if whole else None

    @staticmethod
    def _end_reader(pid: int) -> int | None:
        """Its status; None for one that does not end in time (closing a file can hang too): left to the nursery."""
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(END_SECONDS * 1000):
                return None
        finally:
            os.close(pidfd)
        _, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status)

    def _become_reader(self, parent: int, fd: int) -> None:
        code = 1
        try:
            tie_to_parent(parent)
            self._sock.close()
            teller = Teller(fd, self._step, self._writer.told, frozenset(self.hung))
            self._read(teller, self._job, self._fds)
            teller.done()
            code = 0
        except TargetError as error:
            teller.lacks("the target", error.reason)
            teller.no(error.reason, isinstance(error, TargetGone))
            teller.done()
            code = 0
        except StoopError as error:
            teller.lacks("the target", str(error))
            teller.done()
            code = 0
        finally:
            if code:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)

    def _listen(self, pid: int, fd: int, deadline: float) -> bool:
        """Take what one reader tells. True when it closed its end by itself."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        listener = Listener()
        while True:
            stall = STALL_SECONDS if VOLATILE in self._phases else VOLATILE_STALL_SECONDS
            patience = min(stall, deadline - time.monotonic())
            if patience <= 0:
                return False
            if not poll.poll(patience * 1000):
                if _waits(pid):
                    return False
                continue  # it has work, and no processor
            data = os.read(fd, READ_BYTES)
            if not data:
                return True
            for frame in listener.feed(data):
                self._take(frame)

    def _take(self, frame: Any) -> None:
        match frame:
            case Whole(name, data, about):
                self._writer.add(name, data, about)
                if isinstance(self._job, LogJob) and self._job.tell:
                    self.text = data[-self._job.tell :]
            case Begin(name, size, about):
                self._part = self._writer.begin(name, size, about)
            case Piece(data) if self._part is not None:
                self._part.write(data)
                if self._writer.written - self._flushed > FLUSH_BYTES:
                    self._draft.flush()
                    self._flushed = self._writer.written
            case Gap(length) if self._part is not None:
                self._part.gap(length)
            case End():
                self._end_part()
            case Lack(what, why) if (what, why) not in self._lacked:
                self._lacked.add((what, why))  # a second reader finds the same missing
                self._writer.lacks(what, why)
            case Phase(name) if name not in self._phases:
                self._phases.add(name)
                if name == VOLATILE and isinstance(self._job, SnapshotJob):
                    os.nice(NICE)
                _tell(self._sock, Progress(name))
            case No(why, gone):
                self.no = TargetGone(why) if gone else TargetRefused(why)
            case Done(notes):
                self.notes |= notes
                self._done = True

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.end()
            self._part = None


def _waits(pid: int) -> bool:
    """Whether this child of ours sleeps."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return parse_stat(file.read()).state != "R"


def _set_pipe_size(fd: int) -> None:
    fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_BYTES)
