"""Matched alerts that wait, and who deals with them: the task that read them, or the loop when it comes to it.

Acting in the reader's own task is the fast way, and right while little comes. In a flood it would starve the others:
all of Falco's alerts come on one connection, so the alert of a quiet container lies unread behind those of the noisy
one. Reading goes first then, and what was read is dealt with fairly by container, a few in each turn of the loop.
"""

from __future__ import annotations

from stoop.fairqueue import FairQueue
from stoop.runs import Matched

QUEUE_CAPACITY = 4096
"""Matched alerts that may wait: about a second of work. Beyond it the newest of the busiest group expires."""

QUEUE_BYTES = 8 * 1024 * 1024
"""Bytes of alerts that may wait, some 5,000 real ones. Beyond it the reader acts itself, and so reads no faster."""

INLINE_RUNS = 16
"""Matched alerts dealt with in the reader's own task before the loop gets its turn: a few milliseconds."""

TURN_RUNS = 4
"""Of those that wait, dealt with in one turn of the loop: fewer than one read brings, so that reading goes first."""


class Backlog:
    """A FairQueue of alerts, by container. Times are nanoseconds of CLOCK_MONOTONIC. Not thread-safe."""

    def __init__(self) -> None:
        self._queue: FairQueue[Matched] = FairQueue(QUEUE_CAPACITY)
        self._bytes = 0
        self._reader_from_ns = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, matched: Matched) -> Matched | None:
        """Let it wait its turn; what had to make room for it (perhaps itself), or None."""
        alert = matched.alert
        self._bytes += len(alert.raw)
        group = alert.fields.get("container.id")
        container = group if isinstance(group, str) else ""
        crowd = (matched.hits[0][0].form.rule, f"{container}:{alert.fields.get('proc.pid')}")
        dropped = self._queue.push(matched, container, crowd)
        if dropped is not None:
            self._bytes -= len(dropped.alert.raw)
        return dropped

    def take(self) -> Matched | None:
        """Whose turn it is, or None."""
        matched = self._queue.pop()
        if matched is not None:
            self._bytes -= len(matched.alert.raw)
        return matched

    def reader_acts(self, now_ns: int) -> bool:
        """Whether the task that reads should act too: nothing waits and it did not lately, or too much waits."""
        calm = not len(self._queue) and now_ns >= self._reader_from_ns
        return calm or self._bytes >= QUEUE_BYTES

    def reader_acted(self, from_ns: int, to_ns: int) -> None:
        """It did, for so long; it has that time to read first before it does again."""
        self._reader_from_ns = to_ns + (to_ns - from_ns)
