"""Follows the regular file that Falco's file_output writes: the only feed that survives a restart of its reader.

- **Renamed** (logrotate): the old file is read to its end, and on, until the new one has its first bytes: the writer
  uses the old one until it is told to open anew. A second rotation within that time skips the file between the two.
- **Truncated** (copytruncate): seen by its size, or by other bytes before the offset. Read from the beginning; what
  may be lost is said with its place.
- **Restarted**: reading goes on at the mark. What was read but not recorded is read again (at least once; an alert's
  identity makes that harmless). Rotated meanwhile: the old file is looked for under its new name, by its inode.
- **Met for the first time**: read from the beginning, so that nothing is lost (`max_alert_age` expires what is old),
  but no more than its last 16 MiB; what is skipped is said.
- **Not there yet**: waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import trio

from stoop.errors import StartRefused
from stoop.intake.connection import portions
from stoop.intake.marks import FileMark, Ledger, Marks
from stoop.intake.sink import Desk, Peer
from stoop.intake.tail import NotRegular, Tail, find_renamed, open_end, open_marked, open_tail
from stoop.intake.talk import Haul, Lines
from stoop.intake.watch import FileWatch


class FileIntake:
    """Follows `path`, one alert a line; the constructor does nothing yet. `marks` keeps how far it was read."""

    def __init__(self, path: str, marks: Marks, desk: Desk) -> None:
        self._path = path
        self._marks = marks
        self._desk = desk
        self._peer = Peer("file", path)
        self._ledger = Ledger(marks)
        self._lines = Lines(desk.limits.alert_bytes)
        self._tail: Tail | None = None
        self._next: Tail | None = None
        self._trouble = ""

    async def serve(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled; tells the path once it watches. Raises StartRefused for what is no regular file."""
        _refuse_other_kinds(self._path)
        with FileWatch(self._path, self._desk.limits.poll_seconds, self._desk.warn) as watch:
            watch.renew()
            task_status.started(self._path)
            try:
                await self._follow(watch)
            finally:
                self._close()

    async def _follow(self, watch: FileWatch) -> None:
        # New watches are always followed by a look: what was written before they were set woke nobody.
        while True:
            while await self._step():
                watch.forget()
                watch.renew()
            if await watch.wait():
                watch.renew()

    async def _step(self) -> bool:
        """Read everything that is there; whether a new file has taken the path."""
        self._look()
        if self._tail is None:
            return False
        await self._drain(self._tail)
        if self._next is None:
            return False
        self._switch(self._tail, self._next)
        await self._drain(self._tail)
        return True

    def _close(self) -> None:
        for tail in (self._tail, self._next):
            if tail is not None:
                tail.close()
        if self._tail is not None:
            self._desk.sink.closed(self._peer)

    # ---------------------------------------------------------------- which file

    def _look(self) -> None:
        """Open the file if none is open; notice when another file has begun in its place."""
        try:
            if self._tail is None:
                self._tail = self._open()
                self._desk.sink.opened(self._peer)
            # Opened before the old one is read to its end: what it names then may be yet another file.
            self._next = self._next or self._successor(self._tail)
        except (OSError, NotRegular) as error:
            self._say(error)
        else:
            self._trouble = ""

    def _open(self) -> Tail:
        mark = self._marks.load(self._path)
        if mark is None:
            return self._open_first()
        tail = None
        with contextlib.suppress(FileNotFoundError):
            tail = open_marked(mark)
        tail = tail or find_renamed(mark)
        if tail is None:
            tail = open_tail(self._path)
            self._desk.warn(
                "the file is not the one that was read before: what followed there may be lost",
                path=self._path,
                lost_from_byte=mark.offset,
                old_inode=mark.ino,
            )
        return tail

    def _open_first(self) -> Tail:
        tail = open_end(self._path, self._desk.limits.first_read_bytes)
        if tail.offset:
            self._desk.warn(
                "the file is met for the first time and is large: only its end is read",
                path=self._path,
                skipped_from_byte=0,
                skipped_to_byte=tail.offset,
            )
        return tail

    def _successor(self, tail: Tail) -> Tail | None:
        """What the path names, when that is another file and has its first bytes."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:  # renamed away, and no new one yet
            return None
        if tail.is_at(there.st_dev, there.st_ino) or not there.st_size:
            return None
        return open_tail(self._path)

    def _switch(self, old: Tail, new: Tail) -> None:
        haul = Haul()
        self._lines.end(haul)
        old.close()
        self._tail, self._next = new, None
        self._deliver(haul, new.mark())

    def _restart(self, tail: Tail) -> None:
        self._desk.warn(
            "the file was truncated: what was written behind what was read may be lost",
            path=self._path,
            lost_from_byte=tail.offset,
            read_to_byte=tail.position,
            size_now=tail.size(),
        )
        self._lines = Lines(self._desk.limits.alert_bytes)
        tail.restart()
        self._deliver(Haul(), tail.mark())

    # ---------------------------------------------------------------- what is in it

    async def _drain(self, tail: Tail) -> None:
        """Read to the end, in portions, the others having their turn between them."""
        while data := self._peek(tail):
            for portion in portions(data):
                haul = Haul()
                self._lines.feed(portion, haul)
                before = tail.offset
                tail.advance(portion)
                if tail.offset != before or haul:
                    self._deliver(haul, tail.mark())
                await trio.lowlevel.checkpoint()

    def _peek(self, tail: Tail) -> bytes:
        """What comes next: of a file that was cut, its beginning."""
        try:
            if tail.was_cut():
                self._restart(tail)
            return tail.peek()
        except OSError as error:
            self._say(error)
            return b""

    def _deliver(self, haul: Haul, mark: FileMark) -> None:
        settled = self._ledger.begin(mark)
        for fault in haul.faults:
            self._desk.sink.refuse(fault, self._peer)
        if haul.alerts:
            self._desk.sink.accept(haul.alerts, self._desk.now_ns(), self._peer, settled)
        else:
            settled()

    def _say(self, error: OSError | NotRegular) -> None:
        """Said once until it changes; tried again at each look."""
        if isinstance(error, OSError):
            if error.errno == errno.ENOENT:
                return
            trouble = error.strerror or str(error)
        else:
            trouble = "not a regular file"
        if trouble != self._trouble:
            self._trouble = trouble
            self._desk.warn("the file can't be read, trying again", path=self._path, error=trouble)


def _refuse_other_kinds(path: str) -> None:
    try:
        kind = os.stat(path).st_mode
    except OSError:  # not there yet: it is waited for
        return
    if not stat.S_ISREG(kind):
        raise StartRefused(
            "is not a regular file",
            where=path,
            hint="for a FIFO or a socket let Falco use program_output or http_output with the unix intake",
        )
