"""Reading the journal: what was done, whether the agent runs or not. Opens it read-only and holds no lock for long."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from stoop.errors import UserError
from stoop.record import Record
from stoop.spec import (
    Verdict,
)
from stoop.store import STORE_FILE

PAGE_ROWS = 256
"""Rows read at a time: a reader that stays in one long look would keep the writer from shortening its log."""

BUSY_SECONDS = 5.0
"""How long a reader waits while the file is being made or recovered; otherwise readers and the writer never wait."""

_decode = msgspec.json.Decoder(Record).decode


def read(
    state_dir: Path | str,
    *,
    since_ns: int | None = None,
    rule: str | None = None,
    outcome: str | None = None,
    limit: int | None = None,
    alert: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The last `limit` records that fit, oldest first, in the form of `Record.public()`.

    `since_ns`: of alerts received since (CLOCK_REALTIME). An amended record tells in `details.first` what was said at
    first. Raises UserError at once when there is no journal there or a filter makes no sense; and while reading, when
    the file is broken.
    """
    if outcome is not None and outcome not in set(Verdict):
        raise UserError(f"no such outcome: {outcome}", hint=f"one of {', '.join(Verdict)}")
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} records", hint="it is at least 1")
    asked = {"at_ns >= ?": since_ns, "rule = ?": rule, "outcome = ?": outcome, "alert = ?": alert}
    wanted = {condition: value for condition, value in asked.items() if value is not None}
    return _found(Path(state_dir) / STORE_FILE, wanted, limit)


def deliveries(state_dir: Path | str) -> Iterator[dict[str, Any]]:
    """What was sent to outputs or given up, oldest first, as `read` gives it. Raises UserError."""
    return _found(Path(state_dir) / STORE_FILE, {"(json_extract(body, '$.details.delivers') IS NOT NULL) = ?": 1}, None)


def _found(path: Path, wanted: dict[str, Any], limit: int | None) -> Iterator[dict[str, Any]]:
    connection = _connect(path)
    try:
        where = " AND ".join(wanted) or "TRUE"
        first, last = _span(connection, where, tuple(wanted.values()), limit)
    except sqlite3.Error as error:
        connection.close()
        raise _unreadable(path, error) from error
    return _rows(connection, path, (f"seq BETWEEN ? AND ? AND {where}", first, last, *wanted.values()))


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise UserError("there is no journal", where=str(path), hint="is state_dir the agent's?")
    uri = path.absolute().as_uri()
    try:
        connection = _look(f"{uri}?mode=ro")
    except sqlite3.OperationalError as error:
        # Without its log nothing changes the file, and a look that needs no lock file is as good: a read-only copy.
        if Path(f"{path}-wal").exists():
            raise _unreadable(path, error) from error
        try:
            connection = _look(f"{uri}?immutable=1")
        except sqlite3.Error as problem:
            raise _unreadable(path, problem) from problem
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    return connection


def _look(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("SELECT 1 FROM records LIMIT 1").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _unreadable(path: Path, error: sqlite3.Error) -> UserError:
    return UserError(f"the journal can't be read: {error}", where=str(path), hint="are you the agent's user?")


def _span(connection: sqlite3.Connection, where: str, values: tuple[Any, ...], limit: int | None) -> tuple[int, int]:
    """The first and last number of what is to be read: later records are left out, so that reading ends."""
    ask = f"SELECT min(seq), max(seq) FROM (SELECT seq FROM records WHERE {where} ORDER BY seq DESC LIMIT ?)"
    first, last = connection.execute(ask, (*values, -1 if limit is None else limit)).fetchone()
    return (0, -1) if first is None else (first, last)


def _rows(connection: sqlite3.Connection, path: Path, asked: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    where, first, *values = asked
    ask = f"SELECT seq, repeats, first, body FROM records WHERE {where} ORDER BY seq LIMIT {PAGE_ROWS}"
    with contextlib.closing(connection):
        while True:
            try:
                page = connection.execute(ask, (first, *values)).fetchall()
            except sqlite3.Error as error:
                raise _unreadable(path, error) from error
            for _, repeats, before, body in page:
                yield _public(repeats, before, body)
            if len(page) < PAGE_ROWS:
                return
            first = page[-1][0] + 1


def _public(repeats: int, before: str | None, body: str) -> dict[str, Any]:
    record = _decode(body)
    details = record.details if before is None else {**record.details, "first": before}
    return {**record.public(), "repeats": repeats, "details": details}
