"""Reading the journal: beside a running agent, after it, and where there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoop.errors import UserError
from stoop.history import PAGE_ROWS, read
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)
from stoop.store import STORE_FILE, Store, row_of

NOW = 1_700_000_000_000_000_000
SECOND = 10**9


def record(number: int, **changes: Any) -> Record:
    """A record received `number` seconds after `NOW`, decided 5 µs later."""
    received_ns = NOW + number * SECOND
    values: dict[str, Any] = {
        "alert": f"alert {number // 2}",
        "run": f"run {number}",
        "act": f"act {number}",
        "rule": "even" if number % 2 == 0 else "odd",
        "action": "Kill it",
        "actionner": "process:kill",
        "verdict": Verdict.DONE if number % 3 else Verdict.REFUSED,
        "reason": "",
        "target": {"pid": 4000 + number},
        "timing": Timing(received_ns - 1_000_000, received_ns, received_ns + 5_000),
    }
    return Record(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path, max_age_ns=0, max_bytes=0)
    yield opened
    opened.close()


def put(store: Store, *records: Record) -> None:
    rows = [row_of(each, NOW) for each in records]
    while rows:
        del rows[: store.write(rows)]


def numbers(state_dir: Path, **asked: Any) -> list[int]:
    return [int(told["act"].removeprefix("act ")) for told in read(state_dir, **asked)]


def test_the_form_is_the_one_of_a_record(store: Store, tmp_path: Path) -> None:
    put(store, record(1, details={"signal": "KILL"}, output="a shell"))
    (told,) = read(tmp_path)
    assert told == record(1, details={"signal": "KILL"}, output="a shell").public()
    assert told["timing_us"] == {"received": 1000, "decided": 1005, "acted": None, "verified": None}


def test_oldest_first_the_last_so_many(store: Store, tmp_path: Path) -> None:
    many = PAGE_ROWS * 2 + 10
    put(store, *(record(number) for number in range(many)))
    assert numbers(tmp_path) == list(range(many))
    assert numbers(tmp_path, limit=3) == [many - 3, many - 2, many - 1]
    assert numbers(tmp_path, limit=many + 1) == list(range(many))


def test_filters(store: Store, tmp_path: Path) -> None:
    put(store, *(record(number) for number in range(10)))
    assert numbers(tmp_path, rule="odd") == [1, 3, 5, 7, 9]
    assert numbers(tmp_path, outcome="refused") == [0, 3, 6, 9]
    assert numbers(tmp_path, since_ns=NOW + 7 * SECOND) == [7, 8, 9]
    assert numbers(tmp_path, alert="alert 2") == [4, 5]
    assert numbers(tmp_path, rule="odd", outcome="refused", limit=1) == [9]
    assert numbers(tmp_path, rule="even", limit=2) == [6, 8]
    assert numbers(tmp_path, rule="none such") == []


def test_an_amended_record_tells_its_first_word(store: Store, tmp_path: Path) -> None:
    put(store, record(1, verdict=Verdict.FAILED, reason="state D"), record(1, amends=True, details={"a": 1}))
    (told,) = read(tmp_path)
    assert (told["outcome"], told["amended"], told["details"]) == ("done", True, {"a": 1, "first": "failed: state D"})


def test_it_reads_while_the_agent_writes_and_ends(store: Store, tmp_path: Path) -> None:
    put(store, *(record(number) for number in range(PAGE_ROWS + 5)))
    seen = read(tmp_path)
    assert next(seen)["act"] == "act 0"
    put(store, *(record(number) for number in range(1000, 2000)))
    assert len(list(seen)) == PAGE_ROWS + 4


def test_a_reader_in_the_midst_does_not_keep_the_log_from_being_copied_back(store: Store, tmp_path: Path) -> None:
    put(store, *(record(number) for number in range(PAGE_ROWS + 5)))
    seen = read(tmp_path)
    next(seen)
    other = sqlite3.connect(store.path)
    busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    other.close()
    assert busy == 0
    assert len(list(seen)) == PAGE_ROWS + 4


def test_nothing_of_the_state_directory_is_changed_by_reading(store: Store, tmp_path: Path) -> None:
    put(store, record(1))
    store.close()
    before = (tmp_path / STORE_FILE).read_bytes()
    assert numbers(tmp_path) == [1]
    assert (tmp_path / STORE_FILE).read_bytes() == before


def test_an_empty_journal_has_no_records(store: Store, tmp_path: Path) -> None:
    store.open()
    assert list(read(tmp_path)) == []


def test_no_journal_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no journal \(is state_dir the agent's\?\)"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_broken_journal_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STORE_FILE).write_bytes(content)
    with pytest.raises(UserError, match="the journal can't be read"):
        read(tmp_path)


def test_pages_broken_further_in_are_one_clear_line(store: Store, tmp_path: Path) -> None:
    put(store, *(record(number, output="x" * 3000) for number in range(600)))
    store.close()
    with open(tmp_path / STORE_FILE, "r+b") as file:
        file.seek(300 * 4096)
        file.write(b"\xff" * 4096 * 200)
    with pytest.raises(UserError, match="the journal can't be read"):
        list(read(tmp_path))


def test_filters_that_make_no_sense_are_told(store: Store, tmp_path: Path) -> None:
    store.open()
    with pytest.raises(UserError, match="one of done, skipped, refused, failed, expired, would"):
        read(tmp_path, outcome="killed")
    with pytest.raises(UserError, match="at least 1"):
        read(tmp_path, limit=0)
