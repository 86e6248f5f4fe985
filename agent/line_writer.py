"""Log lines to a file descriptor that may block: a terminal that is held, a pipe that nobody reads.

Lines wait in a bounded queue and a thread writes them, so that nothing else of the helper waits for standard error.
The descriptor is shared with the reflex; making it non-blocking would make it so for both.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import trio

MAX_WAITING = 1024 * 1024
"""Characters that may wait: some 2,000 records. What comes then is dropped and counted."""

MAX_BATCH = 256 * 1024
"""Characters a write: a thread hop each costs more than the write itself."""

STALL_SECONDS = 0.1
"""A reader of standard error that takes nothing for so long has stalled: from then on nobody waits for it."""


class LineWriter:
    """`put` never waits; `run` writes until cancelled. `told` is called with a count once dropped lines are over."""

    def __init__(self, fd: int, told: Callable[[int], None]) -> None:
        self._fd = fd
        self._told = told
        self._lines: deque[str] = deque()
        self._waiting = 0
        self._untold = 0
        self._stalled = False
        self._written = trio.Event()
        self._more = trio.Event()
        self._idle = trio.Event()
        self.dropped = 0

    def put(self, line: str) -> None:
        """Take one line with its line break, or drop it when the queue is full."""
        if self._waiting + len(line) > MAX_WAITING:
            self.dropped += 1
            self._untold += 1
            return
        self._lines.append(line)
        self._waiting += len(line)
        self._more.set()

    async def room(self) -> None:
        """Wait until half of the queue is free, but not for a reader that has stalled."""
        while self._waiting > MAX_WAITING // 2 and not self._stalled:
            with trio.move_on_after(STALL_SECONDS) as waiting:
                await self._written.wait()
            self._stalled = waiting.cancelled_caught

    async def run(self) -> None:
        """Write what comes, in order."""
        while True:
            if not self._lines:
                self._idle.set()
                self._more = trio.Event()
                await self._more.wait()
                self._idle = trio.Event()
            batch = self._batch()
            if not await trio.to_thread.run_sync(_write, self._fd, batch, abandon_on_cancel=True):
                self.dropped += batch.count(b"\n")
            self._stalled = False
            self._written.set()
            self._written = trio.Event()
            if self._untold and self._waiting < MAX_WAITING // 2:
                count, self._untold = self._untold, 0
                self._told(count)

    async def drained(self) -> None:
        """Return once everything that was put is written."""
        while self._lines or not self._idle.is_set():
            await self._idle.wait()

    def _batch(self) -> bytes:
        parts: list[str] = []
        size = 0
        while self._lines and size < MAX_BATCH:
            parts.append(self._lines.popleft())
            size += len(parts[-1])
        self._waiting -= size
        return "".join(parts).encode("utf-8", "backslashreplace")


def _write(fd: int, data: bytes) -> bool:
    """Write all of it; False when nobody can be written to (a closed pipe, a full disk)."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        return False
    return True
