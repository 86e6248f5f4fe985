"""The journal: what was done is kept, whatever becomes of the agent, and nothing waits for the disk.

Before an act its intent goes into the ring (shared memory: survives SIGKILL); afterwards its record goes into a bounded
queue, from where a thread takes batches to SQLite and then frees the ring's slots. What can be lost, and how the next
start finds out: docs/decisions/0002-journal.md.

Threads: the reflex's calls everything here but `_run` and what it calls. Only `_run` touches SQLite once it has begun.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import msgspec

from stoop.errors import JournalError
from stoop.record import Record, Timing
from stoop.ring import SLOTS, Found, Intent, Leftover, LossWindow, open_ring
from stoop.spec import (
    Verdict,
)
from stoop.statedir import StateLock, make_state_dir
from stoop.store import Entry, FileMark, Repeats, Row, Store, StoreCorrupt, row_of

__all__ = ["FileMark", "Intent", "Journal", "JournalStatus", "LossWindow", "Recovery", "Warn"]

MAX_QUEUED = 16_384
MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""What waits for SQLite at most: both are reached only when the disk fails for long. Then the newest record is dropped
and counted as lost: what began an attack says more than its ten-thousandth echo."""

BATCH = 256
"""Entries in a transaction: the cost of a commit hardly counts any more, and no stretch of Python between two calls of
SQLite is longer than 50 µs."""

GATHER_SECONDS = 0.02
"""How long a first record waits for others: its writer then wakes after the acts of a burst, not in the midst of them,
and a burst costs one commit. At most this much of what has no slot in the ring is lost by SIGKILL."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
"""After a failure the next attempt waits: a full disk is not emptied by trying, and each try costs system calls."""

CLOSE_SECONDS = 5.0
"""How long an orderly end waits for the last batch. A disk that hangs must not hold up the end of the agent."""

RECENT_SECONDS = 120.0
"""Twice the default max_alert_age: an older alert that comes again has expired in any case."""

MAX_RECENT = 10_000
"""Acts told to the engine at a start: what it remembers at most."""

BROKEN_FILE = "the journal's file can't be used: a new one is begun"
ENDED_UNKNOWN = "the agent ended before it could say whether this was carried out"
ENDED_UNVERIFIED = "carried out, not verified: the agent ended before it could"
ENDED_UNSAID = "the agent ended before it could write down more than the outcome"


class Warn(Protocol):
    """Says something loudly: a constant message and keys. Called by both threads; must not raise or block."""

    def __call__(self, event: str, **fields: object) -> None: ...


class Recovery(msgspec.Struct, frozen=True):
    """What the last agent of this state directory left behind.

    `clean`: it ended in order and nothing was under way. `unfinished`: acts whose end was never written; the journal
    has taken these records already, the other sinks have not. `window`: what else may be lost. `recent_acts`,
    `recent_alerts`: ids of the last ones, oldest first; none of them may be done again, but for acts of `unknown` that
    may be repeated: those of `unfinished` that were planned, and perhaps begun. `notes`: lines for a person.
    """

    clean: bool
    unfinished: tuple[Record, ...] = ()
    unknown: tuple[Record, ...] = ()
    window: LossWindow | None = None
    recent_acts: tuple[str, ...] = ()
    recent_alerts: tuple[str, ...] = ()
    previous_pid: int = 0
    notes: tuple[str, ...] = ()


class JournalStatus(msgspec.Struct, frozen=True):
    """How the journal fares. `lag`: entries not in SQLite yet; `error`: why it can't be written, "" when it can."""

    lag: int
    written: int
    lost: int
    bytes: int
    error: str
    ring_used: int
    ring_full: int
    ring_lasting: bool


class _Past(msgspec.Struct, frozen=True):
    """What SQLite knows at a start: recent ids, which of the ring's acts it has, marks, the newest record's time."""

    acts: list[str] = []
    alerts: list[str] = []
    known: set[str] = set()
    marks: dict[str, FileMark] = {}
    last_ns: int = 0


class _Item(msgspec.Struct, frozen=True, gc=False):
    """An entry on its way, the slot to free once it is written, and what `Ring.queued` said (0: it was not asked)."""

    entry: Entry | None  # None: the last one, end after it
    slot: int
    since_ns: int


class Journal:
    """Opened once, closed once. Until `open` nothing is touched. `max_age_s` and `max_bytes` 0: no limit.

    `put` and its like never block and never raise: of a failing disk only `warn` and `status` tell.
    """

    def __init__(self, state_dir: Path | str, *, max_age_s: float, max_bytes: int, warn: Warn) -> None:
        self._dir = Path(state_dir)
        self._warn = warn
        self._store = Store(self._dir, max_age_ns=int(max_age_s * 1e9), max_bytes=max_bytes)
        self._lock = StateLock(self._dir)
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._marks: dict[str, FileMark] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._pending: deque[_Item] = deque()  # the thread's own from here on
        self._written_bytes = 0
        self._retry_s = self._retry_at = 0.0
        self._rebuilt = False
        self._error = ""
        self._written = self._bytes = 0
        self._lost = self._queued_bytes = 0  # the reflex's own again
        self._full = False
        self._ring_full = self._ring_told_after = 0

    def open(self, *, recent_s: float = RECENT_SECONDS) -> Recovery:
        """Lock the directory, read what was left, start the writer. Raises StartRefused, and nothing for a bad disk."""
        now_ns = time.time_ns()
        notes = [note for note in (make_state_dir(self._dir), self._lock.take()) if note]
        self.ring, found = open_ring(self._dir, now_ns)
        # Bound here: one call less before each act.
        self.reserve, self.accepted, self.settled = self.ring.reserve, self.ring.accepted, self.ring.settled
        recovery = self._recover(found, now_ns, recent_s, notes)
        self._thread.start()
        return recovery

    def acted(self, slot: int) -> None:
        """The act of this slot was begun; -1 is none."""
        self.ring.acted(slot, time.time_ns())

    def put(self, record: Record, slot: int = -1) -> None:
        """How an act ended. Its slot is freed once the record is in SQLite."""
        now_ns = time.time_ns()
        if self.ring.full != self._ring_full:
            self._ring_was_full()
        if slot >= 0:
            self.ring.ended(slot, record.verdict, now_ns)
        if not self._has_room():
            if slot >= 0:
                self.ring.free(slot)
            return
        since_ns = self.ring.queued(now_ns) if slot < 0 else 0
        # Encoded here, for some 2 µs: what waits is then bounded in bytes, and no concern of the garbage collector.
        row = row_of(record, now_ns)
        self._queued_bytes += len(row.body)
        self._queue.put(_Item(row, slot, since_ns))

    def repeats(self, act: str, count: int) -> None:
        """So many times was this act asked for again since."""
        if self._has_room():
            self._queue.put(_Item(Repeats(act, count), -1, 0))

    def put_mark(self, mark: FileMark) -> None:
        """What came of all before this mark was put already: it is written together with that or later, not before."""
        self._marks[mark.path] = mark
        if self._has_room():
            self._queue.put(_Item(mark, -1, 0))

    def load_mark(self, path: str) -> FileMark | None:
        """The last mark of this file, over restarts."""
        return self._marks.get(path)

    def status(self) -> JournalStatus:
        """How it fares just now. Asks no disk."""
        ended = "" if self._thread.is_alive() else "its thread is not running"
        return JournalStatus(
            lag=self._lag(),
            written=self._written,
            lost=self._lost,
            bytes=self._bytes,
            error=self._error or ended,
            ring_used=self.ring.used,
            ring_full=self.ring.full,
            ring_lasting=self.ring.lasting,
        )

    def close(self, timeout_s: float = CLOSE_SECONDS) -> None:
        """Write what is left, then let go of everything; waits for the disk no longer than this. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._thread.is_alive():
            self._queue.put(_Item(None, -1, 0))
            self._thread.join(timeout_s)
            if self._thread.is_alive():  # the ring is still its own: left as after a SIGKILL
                self._warn("the journal could not be closed in time", seconds=timeout_s, lag=self._lag())
                return
            self.ring.close(orderly=True)
        self._lock.close()

    def _lag(self) -> int:
        return self._queue.qsize() + len(self._pending)

    def _has_room(self) -> bool:
        if self._stopping.is_set():
            self._lost += 1
            return False
        lag = self._lag()
        if lag < MAX_QUEUED and self._queued_bytes - self._written_bytes < MAX_QUEUED_BYTES:
            self._full = self._full and lag > MAX_QUEUED // 2  # said once a time, not at each wavelet
            return True
        self._lost += 1
        if not self._full:
            self._full = True
            self._warn("the journal's queue is full: records are lost", queued=MAX_QUEUED, error=self._error)
        return False

    def _ring_was_full(self) -> None:
        """Acts went on without a slot. Said again only after as many entries were written as there are slots."""
        self._ring_full = self.ring.full
        if self._written >= self._ring_told_after:
            self._ring_told_after = self._written + SLOTS
            self._warn("the ring is full: SIGKILL would lose what is under way", error=self._error)

    # ------------------------------------------------------------ at a start

    def _recover(self, found: Found, now_ns: int, recent_s: float, notes: list[str]) -> Recovery:
        past = self._read_past(found, now_ns - int(recent_s * 1e9))
        window = found.window
        if found.fresh and past.last_ns:  # the ring is gone: nobody knows what was under way
            window = LossWindow(past.last_ns, now_ns, None)
        self._marks = past.marks
        records: dict[str, Record] = {}
        unknown: set[str] = set()
        for leftover in found.leftovers:
            act = leftover.intent.act
            if act not in past.known or leftover.verdict is None:  # else: written, but not freed in time
                # Recorded before and under way again: it was tried once more, and killed once more.
                records[act] = _left(leftover, amends=act in past.known or act in records)
                maybe = leftover.verdict is None and not leftover.acted_ns
                (unknown.add if maybe else unknown.discard)(act)
                self._queue.put(_Item(row_of(records[act], now_ns), leftover.slot, 0))
            elif leftover.slot >= 0:
                self.ring.free(leftover.slot)
        left = tuple(records.values())
        return Recovery(
            clean=found.closed and not left and window is None,
            unfinished=left,
            unknown=tuple(record for record in left if record.act in unknown),
            window=window,
            recent_acts=tuple(dict.fromkeys((*past.acts, *records))),
            recent_alerts=tuple(dict.fromkeys((*past.alerts, *(record.alert for record in left)))),
            previous_pid=found.pid,
            notes=(*notes, *found.notes),
        )

    def _read_past(self, found: Found, since_ns: int) -> _Past:
        for _ in range(2):  # the second time in the new file that takes a broken one's place
            try:
                acts, alerts = self._store.recent(since_ns, MAX_RECENT)
                known = self._store.known(leftover.intent.act for leftover in found.leftovers)
                past = _Past(acts, alerts, known, self._store.marks(), self._store.last_ns())
            except StoreCorrupt as error:
                self._warn(BROKEN_FILE, error=str(error))
            except JournalError as error:
                self._failed(error)
                break
            else:
                self._bytes = self._store.size()
                return past
        return _Past()

    # ------------------------------------------------------------ the writer's thread

    def _run(self) -> None:
        """Wait for the first entry, gather more, write. No clock wakes it while there is nothing to do."""
        going_on = True
        while going_on:
            going_on = self._take_in()
            if time.monotonic() >= self._retry_at or not going_on:
                while self._pending and self._write():
                    pass
        self._store.close()

    def _take_in(self) -> bool:
        """Move a batch from the queue to the pending ones; False after the last one."""
        wait_s = max(self._retry_at - time.monotonic(), 0.0) if self._pending else None
        try:
            item = self._queue.get(timeout=wait_s)
            if self._queue.qsize() < BATCH:
                self._stopping.wait(GATHER_SECONDS)
            for _ in range(BATCH):
                if item.entry is None:
                    return False
                self._pending.append(item)
                item = self._queue.get_nowait()
        except Empty:
            return True
        if item.entry is not None:
            self._pending.append(item)
        return item.entry is not None

    def _write(self) -> bool:
        """One transaction; False when it could not be, and what is pending stays so."""
        entries = [item.entry for item in islice(self._pending, BATCH) if item.entry is not None]
        try:
            self._wrote(self._store.write(entries))
            while self._store.trim(time.time_ns()) and not self._pending and self._queue.empty():
                pass
        except StoreCorrupt as error:
            self._warn(BROKEN_FILE, error=str(error))
            again, self._rebuilt = not self._rebuilt, True
            return again or self._failed(error)
        except JournalError as error:
            return self._failed(error)
        self._bytes = self._store.size()
        if self._error:
            self._warn("the journal is written again", lost=self._lost)
            self._error = ""
        self._retry_s = self._retry_at = 0.0
        self._rebuilt = False
        return True

    def _wrote(self, count: int) -> None:
        """These are kept: their slots are free, and what had none is no longer only in memory."""
        slotless = last_ns = 0
        for _ in range(count):
            item = self._pending.popleft()
            if isinstance(item.entry, Row):
                self._written_bytes += len(item.entry.body)
                if item.slot >= 0:
                    self.ring.free(item.slot)
                elif item.since_ns:
                    slotless += 1
                    last_ns = item.since_ns
        if slotless:
            self.ring.written(slotless, last_ns)
        self._written += count

    def _failed(self, error: JournalError) -> bool:
        """Say it once, and try again later, with the next entry."""
        self._retry_s = min(max(self._retry_s * 2, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
        self._retry_at = time.monotonic() + self._retry_s
        if str(error) != self._error:
            self._error = str(error)
            self._warn("the journal can't be written: acts go on, their records wait", error=self._error)
        return False


def _left(leftover: Leftover, *, amends: bool) -> Record:
    """The record of an act whose agent ended first, with what its slot knew.

    A stamp `acted` makes a `done`: it was carried out on a target that was held; only the look afterwards is missing.
    """
    intent = leftover.intent
    if leftover.verdict is not None:
        verdict, reason = leftover.verdict, ENDED_UNSAID
    elif leftover.acted_ns:
        verdict, reason = Verdict.DONE, ENDED_UNVERIFIED
    else:
        verdict, reason = Verdict.FAILED, ENDED_UNKNOWN
    return Record(
        alert=intent.alert,
        run=intent.run,
        act=intent.act,
        rule=intent.rule,
        action=intent.action,
        actionner=intent.actionner,
        verdict=verdict,
        reason=reason,
        target={
            "identity": intent.target,
            "pid": intent.pid,
            "birth": intent.birth,
            "container_id": intent.container,
        },
        timing=Timing(intent.event_ns, intent.received_ns, intent.decided_ns, leftover.acted_ns),
        details={"recovered": True, "verified": leftover.verdict is Verdict.DONE},
        amends=amends,
    )
