"""Reads the rules files and tells when their content has settled on something new. Runs in the reflex: it never parses.

A change is not one event. An editor truncates and writes in pieces, or renames a new file over the old one; Kubernetes
swaps a symlink two directories up. So events only start a look; what counts is that nothing writes any more (no event
for QUIET_SECONDS, every writer has closed) and that two readings agree.

    settled    the content differs from the last one told: told as a Reading without a problem
    suspect    gone, cut to nothing, or still being written after SETTLE_SECONDS: told as a Reading with a problem,
               so that the old rules stay; the watch goes on, and what the files settle on later is told as well
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from stoop.errors import Problem, RulesError, UserError
from stoop.watching import Watch

QUIET_SECONDS = 0.05
"""Without an event for so long a save is taken to be over: editors write in one go, in far less."""

SETTLE_SECONDS = 2.0
"""How long to wait for a save to end, or for a file to come back: longer than any editor or ConfigMap update takes."""

POLL_SECONDS = 2.0
"""How often to look where inotify can't: a directory that is not there yet."""

SLOW_POLL_SECONDS = 30.0
"""How often to look where inotify watches, for what it can't see: network file systems, a parent that moves."""

MAX_FILE = 16 * 1024 * 1024
"""Bytes of one rules file: some 50,000 rules. What is larger is something else, and would not fit into one frame."""

READ_BYTES = 256 * 1024

Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The files as they are now: (path as configured, content) in order. With a `problem` they must not be used."""

    files: Files
    problem: str = ""


class RuleFiles:
    """The rules files of a configuration. `read` once at the start, then `watch`; `reload` asks for a look (SIGHUP)."""

    def __init__(self, paths: Sequence[str], *, use_inotify: bool = True) -> None:
        self._paths = tuple(paths)
        self._use_inotify = use_inotify
        self._told = Reading(())
        self._good: Files = ()
        self._look = trio.Event()
        self._forced = False

    def read(self) -> Files:
        """All files, at the start. Raises RulesError with each that can't be read."""
        files, problems = [], []
        for path in self._paths:
            try:
                files.append((path, read_file(path)))
            except UserError as error:
                problems.append(Problem("unreadable", error.what, error.where, hint=error.hint))
        if problems:
            raise RulesError(problems)
        self._good = tuple(files)
        self._told = Reading(self._good)
        return self._good

    def reload(self) -> None:
        """Look now, and tell the content even if it has not changed."""
        self._forced = True
        self._look.set()

    async def watch(
        self,
        changed: Callable[[Reading], None],
        warn: Callable[[str], None],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call `changed` for each new content that has settled and each problem, until cancelled.

        `warn` gets a line for a person when the files can only be polled. Started once no change can be missed.
        """
        watch = await trio.to_thread.run_sync(_new_watch, warn) if self._use_inotify else None
        try:
            async with trio.open_nursery() as nursery:
                settling = _Settling(self._paths, watch)
                await settling.gather()
                if self._use_inotify:
                    if watch is not None:
                        nursery.start_soon(self._listen, watch)
                    nursery.start_soon(self._poll, settling)
                    self._look.set()  # for what changed since `read`
                task_status.started()
                await self._tell(settling, changed)
        finally:
            if watch is not None:
                watch.close()

    async def _listen(self, watch: Watch) -> None:
        while True:
            await trio.lowlevel.wait_readable(watch.fileno())
            if watch.take():
                self._look.set()
            # A directory that is busy with other files may wake us ten times a second, not more.
            await trio.sleep(0.1)

    async def _poll(self, settling: _Settling) -> None:
        before = await trio.to_thread.run_sync(_signature, self._paths, abandon_on_cancel=True)
        while True:
            await trio.sleep((SLOW_POLL_SECONDS if settling.is_watched else POLL_SECONDS) * random.uniform(1.0, 1.2))
            now = await trio.to_thread.run_sync(_signature, self._paths, abandon_on_cancel=True)
            if now != before:
                before = now
                self._look.set()

    async def _tell(self, settling: _Settling, changed: Callable[[Reading], None]) -> None:
        while True:
            await self._look.wait()
            self._look = trio.Event()
            reading = await settling.settle(self._good)
            forced, self._forced = self._forced, False
            if reading.problem:
                is_news = reading.problem != self._told.problem
            else:
                is_news = reading.files != self._good or bool(self._told.problem)
                self._good = reading.files
            if is_news or forced:
                self._told = reading
                changed(reading)
            if settling.is_unsettled:
                self._look.set()


class _Settling:
    """One look at the files until they have settled. Everything that touches a file system runs in a thread."""

    def __init__(self, paths: Sequence[str], watch: Watch | None) -> None:
        self._paths = paths
        self._watch = watch
        self.is_watched = False
        self.is_unsettled = False

    async def gather(self) -> tuple[Files, str]:
        """Watch where the paths lead now, then read them: a change after the reading is an event."""
        return await trio.to_thread.run_sync(self._gather, abandon_on_cancel=True)

    def _gather(self) -> tuple[Files, str]:
        self.is_watched = self._watch is not None and self._watch.arm(self._paths)
        files: list[tuple[str, bytes]] = []
        for path in self._paths:
            try:
                files.append((path, read_file(path)))
            except UserError as error:
                return tuple(files), str(error)
        return tuple(files), ""

    async def settle(self, good: Files) -> Reading:
        """The files once they have settled, or why they have not within SETTLE_SECONDS. `good`: what they were."""
        deadline = trio.current_time() + SETTLE_SECONDS
        before: tuple[Files, str] | None = None
        while True:
            if self._watch is not None:
                self._watch.take()
            await trio.sleep(QUIET_SECONDS if self.is_watched else QUIET_SECONDS * 5)
            stirred = self._watch is not None and self._watch.take()
            now = await self.gather()
            files, problem = now
            writing = sorted(self._watch.writing) if self._watch is not None else []
            still = not stirred and not writing and now == before
            before = now
            problem = problem or _cut_to_nothing(files, good)
            if still and not problem:
                self.is_unsettled = False
                return Reading(files)
            if trio.current_time() >= deadline:
                self.is_unsettled = not problem and not writing
                return Reading(files, problem or _unsettled(writing))


def _cut_to_nothing(files: Files, good: Files) -> str:
    was = dict(good)
    for path, content in files:
        if not content and was.get(path):
            return f"{path}: it was cut to nothing (write [] into it to have no rules)"
    return ""


def _unsettled(writing: Sequence[str]) -> str:
    if writing:
        return f"{writing[0]}: it is still open for writing after {SETTLE_SECONDS:g} s"
    return f"the rules files have kept changing for {SETTLE_SECONDS:g} s"


def _new_watch(warn: Callable[[str], None]) -> Watch | None:
    """In a thread: finding the C library may run a program."""
    try:
        return Watch()
    except OSError as error:
        trio.from_thread.run_sync(
            warn,
            f"rules files are polled every {POLL_SECONDS:g} s: no inotify instance ({error.strerror}; "
            "raise fs.inotify.max_user_instances)",
        )
        return None


def _signature(paths: Sequence[str]) -> tuple[object, ...]:
    """What changes when a file does, without reading it (stat(2))."""
    found: list[object] = []
    for path in paths:
        try:
            it = os.stat(path)
            found.append((it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns))
        except OSError as error:
            found.append(error.errno)
    return tuple(found)


def read_file(path: str) -> bytes:
    """The bytes of one rules file. Raises UserError when it is missing, unreadable, no regular file or too large."""
    try:
        # Non-blocking, so that a FIFO in its place is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError("it is not a regular file", where=path, hint="name the rules file itself")
            parts = []
            left = MAX_FILE + 1
            while left and (part := file.read(min(left, READ_BYTES))):
                parts.append(part)
                left -= len(part)
    except OSError as error:
        hint = "create it, or name another with -r or rules_files" if error.errno == errno.ENOENT else ""
        raise UserError(f"it can't be read: {error.strerror}", where=path, hint=hint) from error
    if not left:
        raise UserError(f"it has more than {MAX_FILE} bytes", where=path, hint="split it into several rules files")
    return b"".join(parts)
