"""The journal's SQLite file: schema, writing in batches, keeping it small. For one thread at a time.

Every error of SQLite or the disk comes out as JournalError, with the connection closed: the next call opens it anew.
Nothing here holds the interpreter for long: SQLite works without its lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from stoop.errors import JournalError
from stoop.record import Record
from stoop.statedir import set_aside

STORE_FILE = "journal.db"
SCHEMA_VERSION = 1

BATCH_BYTES = 256 * 1024
"""A transaction ends after so many bytes of records: the write-ahead log can't be kept smaller than one."""

CHUNK_ROWS = 32
"""Rows in one statement. After each one the thread wants the interpreter back, which a busy reflex hands over only once
in a switch interval, to be interrupted for some 20 µs: row by row that would be 5,000 rows and interruptions a second.
"""

MAX_OUTPUT = 8 * 1024
"""Characters of Falco's output line that are kept. An alert may be a MiB; encoding that would hold the interpreter."""

MAX_BODY = 64 * 1024
"""Bytes of one record. What is longer loses its details, which say so."""

MIN_BYTES = 4 * 1024 * 1024
"""The smallest size limit taken: below it the write-ahead log of one batch would be too large a part."""

MAX_WAL_PAGES = 1000
"""Pages in the write-ahead log before it is copied back (SQLite's own default: 4 MiB)."""

TRIM_ROWS = 512
"""Rows that one step of trimming removes: twice a batch, so that trimming keeps up, in a few milliseconds."""

VACUUM_PAGES = 256
"""Pages given back to the disk in one step: 1 MiB."""

BUSY_SECONDS = 1.0
"""How long another program's lock is waited for (a person with sqlite3 open). Only the journal's thread waits."""

_MAX_INTEGER = 2**63 - 1  # SQLite's largest
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY,      -- in the order in which they came
    act TEXT NOT NULL UNIQUE,
    alert TEXT NOT NULL,
    rule TEXT NOT NULL,
    outcome TEXT NOT NULL,
    at_ns INTEGER NOT NULL,       -- when its alert was received, ns since the epoch
    repeats INTEGER NOT NULL,
    amended INTEGER NOT NULL,
    first TEXT,                   -- what was said before it was amended
    body TEXT NOT NULL            -- the Record as JSON
);
CREATE INDEX IF NOT EXISTS records_at ON records (at_ns);
CREATE TABLE IF NOT EXISTS marks (
    path BLOB PRIMARY KEY, dev TEXT NOT NULL, ino TEXT NOT NULL, offset INTEGER NOT NULL, fingerprint TEXT NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_INTO = "INSERT INTO records (act, alert, rule, outcome, at_ns, repeats, body, amended) VALUES "
_ROW = "(?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?)"
_AGAIN = """
ON CONFLICT (act) DO UPDATE SET
    repeats = max(repeats, excluded.repeats),
    first = CASE WHEN excluded.amended AND outcome IS NOT excluded.outcome
            THEN coalesce(first, outcome || ': ' || json_extract(body, '$.reason')) ELSE first END,
    outcome = CASE WHEN excluded.amended THEN excluded.outcome ELSE outcome END,
    body = CASE WHEN excluded.amended THEN excluded.body ELSE body END,
    amended = max(amended, excluded.amended)
"""
"""A second record of an act says something new only if it amends; else (an alert sent twice) the first one stands."""

_PUT_ONE = _INTO + _ROW + _AGAIN
_PUT_MANY = _INTO + ", ".join([_ROW] * CHUNK_ROWS) + _AGAIN
_MARK = "INSERT OR REPLACE INTO marks (path, dev, ino, offset, fingerprint) VALUES (?, ?, ?, ?, ?)"


class Row(NamedTuple):
    """A record as it is stored: what is searched for, and all of it as JSON."""

    act: str
    alert: str
    rule: str
    outcome: str
    at_ns: int
    repeats: int
    body: bytes
    amends: bool


class FileMark(msgspec.Struct, frozen=True):
    """How far a followed file was read: everything before `offset` is recorded. `fingerprint`: of the bytes before."""

    path: str
    dev: int
    ino: int
    offset: int
    fingerprint: str


class Repeats(msgspec.Struct, frozen=True):
    """So many times was this act asked for again since."""

    act: str
    count: int


Entry = Row | FileMark | Repeats


class StoreCorrupt(JournalError):
    """The file was no journal of ours any more; it was set aside, and the next call begins a new one."""


class _AnotherVersion(sqlite3.DatabaseError):
    """Written by another version of this program, in another form."""


def row_of(record: Record, now_ns: int) -> Row:
    """The record as a row of at most about `MAX_BODY` bytes. Whatever is in it, it can be written."""
    if len(record.output) > MAX_OUTPUT:
        record = msgspec.structs.replace(record, output=record.output[:MAX_OUTPUT] + "…")
    try:
        body = _encode(record)
    except (UnicodeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        record = _plain(record, f"could not be written: {error}")
        body = _encode(record)
    if len(body) > MAX_BODY:
        record = _plain(record, f"left out: the record had {len(body)} bytes")
        body = _encode(record)
    at_ns = min(record.timing.received_ns or now_ns, _MAX_INTEGER)
    repeats = min(record.repeats, _MAX_INTEGER)
    return Row(record.act, record.alert, record.rule, str(record.verdict), at_ns, repeats, body, record.amends)


def _plain(record: Record, why: str) -> Record:
    """The same record with short, clean text and a word on why instead of details."""
    changes: dict[str, object] = {"details": {"details": why}}
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if type(value) is str:
            changes[field] = _clean(value)
    target = {_clean(str(key)): _clean(str(value)) for key, value in list(record.target.items())[:16]}
    return msgspec.structs.replace(record, target=target, **changes)


def _clean(text: str) -> str:
    return text[:1024].encode(errors="replace").decode()


_encode = msgspec.json.Encoder(enc_hook=str).encode


class Store:
    """The database in one directory. `max_age_ns` and `max_bytes` 0: no limit. The constructor opens nothing."""

    def __init__(self, state_dir: Path, *, max_age_ns: int, max_bytes: int) -> None:
        self.path = state_dir / STORE_FILE
        self._max_age_ns = max_age_ns
        self._max_bytes = max(max_bytes, MIN_BYTES) if max_bytes else 0
        self._connection: sqlite3.Connection | None = None
        self._page = 4096
        self._wal_pages = MAX_WAL_PAGES

    def open(self) -> None:
        """Open the database and make what is missing in it. Raises JournalError. Idempotent."""
        with self._border():
            self._open()

    def close(self) -> None:
        """Close it; SQLite then copies the write-ahead log back. Idempotent; raises nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def write(self, entries: Sequence[Entry]) -> int:
        """Write the first of these in one transaction; how many. Raises JournalError, then nothing is written."""
        batch = _Batch(entries)
        with self._border():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            for at in range(0, len(batch.rows) - CHUNK_ROWS + 1, CHUNK_ROWS):
                connection.execute(_PUT_MANY, list(chain.from_iterable(batch.rows[at : at + CHUNK_ROWS])))
            connection.executemany(_PUT_ONE, batch.rows[len(batch.rows) // CHUNK_ROWS * CHUNK_ROWS :])
            for repeats in batch.repeats:
                connection.execute("UPDATE records SET repeats = max(repeats, ?) WHERE act = ?", repeats)
            connection.executemany(_MARK, batch.marks.values())
            connection.execute("COMMIT")
        return batch.taken

    def trim(self, now_ns: int) -> bool:
        """One step towards the limits of age and size; whether another is needed. Raises JournalError."""
        more = False
        with self._border():
            connection = self._open()
            if self._max_age_ns:
                old = "SELECT seq FROM records WHERE at_ns < ? ORDER BY at_ns LIMIT ?"
                more = self._delete(old, now_ns - self._max_age_ns, TRIM_ROWS)
            if self._max_bytes:
                room = self._max_bytes // self._page - 4 * self._wal_pages
                pages, unused = self._number("PRAGMA page_count"), self._number("PRAGMA freelist_count")
                if pages - unused > room:
                    more |= self._delete("SELECT seq FROM records ORDER BY seq LIMIT ?", TRIM_ROWS)
                elif pages > room + self._wal_pages:  # what was deleted is used again; only a lower limit shrinks
                    connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
                    more = True
        return more

    def size(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        total = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self.path}{suffix}").st_size
        return total

    def known(self, acts: Iterable[str]) -> set[str]:
        """Those of these acts that are recorded. Raises JournalError."""
        with self._border():
            connection = self._open()
            ask = "SELECT 1 FROM records WHERE act = ?"
            return {act for act in acts if connection.execute(ask, (act,)).fetchone()}

    def recent(self, since_ns: int, limit: int) -> tuple[list[str], list[str]]:
        """Ids of the last acts and their alerts, oldest first, of alerts received since. Raises JournalError."""
        ask = "SELECT act, alert FROM records WHERE at_ns >= ? ORDER BY seq DESC LIMIT ?"
        with self._border():
            rows = self._open().execute(ask, (since_ns, limit)).fetchall()
        rows.reverse()
        return [act for act, _ in rows], list(dict.fromkeys(alert for _, alert in rows))

    def last_ns(self) -> int:
        """When the newest record's alert was received; 0 when there is none. Raises JournalError."""
        with self._border():
            self._open()
            return self._number("SELECT coalesce(max(at_ns), 0) FROM records")

    def marks(self) -> dict[str, FileMark]:
        """The mark of each followed file. Raises JournalError."""
        with self._border():
            rows = self._open().execute("SELECT path, dev, ino, offset, fingerprint FROM marks").fetchall()
        found = (
            FileMark(path.decode(errors="surrogatepass"), int(dev), int(ino), *rest) for path, dev, ino, *rest in rows
        )
        return {mark.path: mark for mark in found}

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # Made here first: SQLite would make it readable for all, and gives its helper files the same mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            # One thread at a time: it is opened by the one that starts the agent, then handed to the journal's.
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        return self._connection

    def _prepare(self) -> None:
        connection = self._connection
        assert connection is not None
        version = self._number("PRAGMA user_version")
        if version == 0:
            connection.executescript(_SCHEMA)
        elif version != SCHEMA_VERSION:
            raise _AnotherVersion(f"the journal is of version {version}; this program writes {SCHEMA_VERSION}")
        self._page = self._number("PRAGMA page_size")
        if self._max_bytes:
            self._wal_pages = min(MAX_WAL_PAGES, self._max_bytes // self._page // 8)
        for pragma in (
            "synchronous = NORMAL",  # no sync a transaction; in WAL a power cut loses the last ones and breaks nothing
            f"wal_autocheckpoint = {self._wal_pages}",
            f"journal_size_limit = {self._wal_pages * self._page}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    def _number(self, ask: str) -> int:
        assert self._connection is not None
        (number,) = self._connection.execute(ask).fetchone()
        return int(number)

    def _delete(self, which: str, *values: int) -> bool:
        assert self._connection is not None
        deleted = self._connection.execute(f"DELETE FROM records WHERE seq IN ({which})", values).rowcount
        return deleted > 0

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        """SQLite's and the disk's errors become ours; a file that is broken is set aside."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()  # rolls back
            if not isinstance(error, _AnotherVersion) and getattr(error, "sqlite_errorcode", 0) & 0xFF not in _CORRUPT:
                raise JournalError(str(error)) from error
            said = set_aside(self.path, "-wal", "-shm")
            raise StoreCorrupt(f"{error}; {said}") from error


class _Batch:
    """The first of these entries, by kind. `taken`: how many fit in before `BATCH_BYTES` were reached."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.rows: list[Row] = []
        self.repeats: list[tuple[int, str]] = []
        self.marks: dict[str, tuple[bytes, str, str, int, str]] = {}
        self.taken = 0
        size = 0
        for entry in entries:
            if size > BATCH_BYTES:
                break
            self.taken += 1
            if isinstance(entry, Row):
                size += len(entry.body)
                self.rows.append(entry)
            elif isinstance(entry, Repeats):
                self.repeats.append((min(entry.count, _MAX_INTEGER), entry.act))
            else:
                path = entry.path.encode(errors="surrogatepass")  # a name may be any bytes
                self.marks[entry.path] = (path, str(entry.dev), str(entry.ino), entry.offset, entry.fingerprint)
