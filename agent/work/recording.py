"""A program that captures and writes what it captured to a pipe: started, bounded by time and size, ended, kept.

The size of a part stands before its content, so a capture waits in a file of the evidence store that has no name. The
program is a child of the reader, ends with it (PR_SET_PDEATHSIG), and has no descriptor but its three.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from agent.work.aside import tie_to_parent
from agent.work.files import CHUNK, pieces
from agent.work.telling import Teller
from stoop.errors import ActFailed

BEAT_SECONDS = 0.2
"""How often the scribe is told that this still works: a reader that is silent for two seconds counts as hung."""

FINISH_SECONDS = 1.0
"""What a program gets to write its last after SIGINT."""

COMPLAINT_BYTES = 4096
"""Of what a program says."""

EARLY = {
    "size": "it had {} bytes, the act's bound, before its time was over",
    "pod": "the pod's first process ended before the capture's time was over",
}
"""Why a program was ended before its time. A pod that has gone would live on as a network namespace else."""


class Recording(NamedTuple):
    """`prepare`: done in the child before the program takes its place; may raise OSError. `seconds`: then it is ended;
    with `itself` it should have ended by itself before, with status 0. `bytes`: of the capture. `pod`: a pidfd, with
    which it ends; -1 for none."""

    argv: Sequence[str]
    prepare: Callable[[], None]
    seconds: float
    bytes: int
    pod: int = -1
    itself: bool = False

    @property
    def name(self) -> str:
        """Of the program."""
        return os.path.basename(self.argv[0])


class Recorded(NamedTuple):
    """What the program said, and why it ended early, or ""."""

    said: str
    why: str


class _Child(NamedTuple):
    """The program: its pid, what it captures, what it says."""

    pid: int
    out: int
    err: int


@contextlib.contextmanager
def spool(store: str) -> Iterator[int]:
    """A file without a name in the store's directory. Raises ActFailed."""
    path = f"{store}/.writing-{secrets.token_hex(8)}"  # what a crash leaves of it is tidied up as a draft is
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)
    except OSError as error:
        raise ActFailed(f"the capture can't be written: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def record(beat: Callable[[], None], recording: Recording, into: int) -> Recorded:
    """Run it until its time or size is over, then end it. `beat`: called every BEAT_SECONDS. Raises ActFailed."""
    child = _start(recording)
    said, stopping = b"", ""
    try:
        said, stopping = _gather(beat, recording, child, into)
    finally:
        status = _end(child)
    told = said.decode("utf-8", "backslashreplace").strip()
    if stopping in EARLY:
        return Recorded(told, EARLY[stopping].format(recording.bytes))
    if stopping and recording.itself:
        return Recorded(told, f"{recording.name} did not end by itself within {recording.seconds:g} s")
    fine = stopping or (recording.itself and status == 0)
    return Recorded(told, "" if fine else f"{recording.name} ended before its time (status {status})")


def keep(teller: Teller, part: str, into: int, recorded: Recorded, about: dict[str, Any]) -> None:
    """What is in the spool becomes a part."""
    if recorded.why:
        teller.lacks(part, ": ".join(filter(None, (recorded.why, recorded.said))))
    size = os.fstat(into).st_size
    os.lseek(into, 0, os.SEEK_SET)
    if teller.begin(part, size, about):
        for piece in pieces(into, size):
            teller.piece(piece)
        teller.end()


def _start(recording: Recording) -> _Child:
    out, out_child = os.pipe2(os.O_CLOEXEC)
    err, err_child = os.pipe2(os.O_CLOEXEC)
    us = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become(recording, us, (out_child, err_child))
    except OSError as error:
        os.close(out)
        os.close(err)
        raise ActFailed(f"{recording.name} can't be started: {error.strerror}") from error
    finally:
        os.close(out_child)
        os.close(err_child)
    return _Child(pid, out, err)


def _become(recording: Recording, parent: int, pipes: tuple[int, int]) -> NoReturn:
    """In the child: the program, without any other descriptor."""
    argv = list(recording.argv)
    try:
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):  # the nursery and Python ignore them
            signal.signal(signo, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, number in zip((null, *pipes), (0, 1, 2), strict=True):
            os.dup2(fd, number)
        recording.prepare()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        tie_to_parent(parent)  # after a change of user, which forgets it (prctl(2))
        os.execve(argv[0], argv, {"LC_ALL": "C", "TZ": "UTC"})
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror or error}\n".encode())
    finally:
        os._exit(127)


def _gather(beat: Callable[[], None], recording: Recording, child: _Child, into: int) -> tuple[bytes, str]:
    """What it said, and why it was told to end: `time`, a word of EARLY, or "" when it ended by itself."""
    said, size, stopping = b"", 0, ""
    until = time.monotonic() + recording.seconds
    poll = select.poll()
    for fd in (child.out, child.err, recording.pod):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    open_ends = 2
    while open_ends:
        left = until - time.monotonic()
        why = "time" if left <= 0 else ""
        if why and stopping:
            break  # it does not end on SIGINT
        for fd, _ in poll.poll(max(0.0, min(left, BEAT_SECONDS)) * 1000):
            if fd == recording.pod:
                poll.unregister(fd)
                why = "pod"
                continue
            data = os.read(fd, CHUNK)
            if not data:
                poll.unregister(fd)
                open_ends -= 1
            elif fd == child.err:
                said = (said + data)[:COMPLAINT_BYTES]
            elif size < recording.bytes:
                data = data[: recording.bytes - size]
                size += len(data)
                _write(into, data)
            else:
                why = "size"
        if why and not stopping:
            stopping, until = why, time.monotonic() + FINISH_SECONDS
            os.kill(child.pid, signal.SIGINT)
        beat()
    return said, stopping


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise ActFailed(f"the capture can't be written: {error.strerror}") from error


def _end(child: _Child) -> int:
    os.kill(child.pid, signal.SIGKILL)  # ours, and not waited for yet: the number is its own
    _, status = os.waitpid(child.pid, 0)
    os.close(child.out)
    os.close(child.err)
    return os.waitstatus_to_exitcode(status)
