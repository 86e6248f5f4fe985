"""The journal's SQLite file: what is written, how large it gets, what a broken one does."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoop.errors import JournalError
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)
from stoop.store import (
    CHUNK_ROWS,
    MAX_BODY,
    MAX_OUTPUT,
    MIN_BYTES,
    Entry,
    FileMark,
    Repeats,
    Store,
    StoreCorrupt,
    row_of,
)

NOW = 1_700_000_000_000_000_000
SECOND = 10**9


def record(number: int, **changes: Any) -> Record:
    """A plausible record, received `number` seconds after `NOW`."""
    values: dict[str, Any] = {
        "alert": f"{number + 2_000_000:032x}",
        "run": f"{number + 1_000_000:032x}",
        "act": f"{number:032x}",
        "rule": "Kill a terminal shell",
        "action": "Kill it",
        "actionner": "process:kill",
        "verdict": Verdict.DONE,
        "reason": "",
        "target": {"pid": 4000 + number},
        "timing": Timing(received_ns=NOW + number * SECOND),
        "output": "a shell was spawned",
    }
    return Record(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path, max_age_ns=0, max_bytes=0)
    yield opened
    opened.close()


def stored(store: Store, columns: str = "body") -> list[Any]:
    """The rows of now, read by a second connection as anybody could."""
    connection = sqlite3.connect(store.path)
    try:
        rows = connection.execute(f"SELECT {columns} FROM records ORDER BY seq").fetchall()
    finally:
        connection.close()
    return [json.loads(row[0]) for row in rows] if columns == "body" else rows


def put(store: Store, *records: Record) -> None:
    rows = [row_of(each, NOW) for each in records]
    while rows:
        del rows[: store.write(rows)]


def test_files_are_for_their_owner_alone(store: Store) -> None:
    put(store, record(1))
    for suffix in ("", "-wal", "-shm"):
        assert Path(f"{store.path}{suffix}").stat().st_mode & 0o777 == 0o600


def test_a_record_is_kept_whole(store: Store) -> None:
    put(store, record(1, details={"signal": "KILL", "pids": [1, 2]}))
    (body,) = stored(store)
    assert body["details"] == {"signal": "KILL", "pids": [1, 2]}
    assert body["verdict"] == "done"
    assert stored(store, "at_ns") == [(NOW + SECOND,)]


def test_an_amendment_takes_the_place_and_the_first_word_is_kept(store: Store) -> None:
    put(store, record(1, verdict=Verdict.FAILED, reason="signalled, state D"))
    put(store, record(1, verdict=Verdict.FAILED, reason="still there", amends=True))
    put(store, record(1, reason="gone after 12 s", amends=True))
    put(store, record(1, verdict=Verdict.SKIPPED, amends=True))
    assert stored(store, "outcome, first") == [("skipped", "failed: still there")]


def test_a_second_record_of_an_act_changes_nothing_but_its_count(store: Store) -> None:
    put(store, record(1), record(1, verdict=Verdict.SKIPPED, repeats=3))
    assert stored(store, "outcome, first, repeats") == [("done", None, 3)]
    assert stored(store)[0]["verdict"] == "done"


def test_an_act_that_comes_again_in_one_statement(store: Store) -> None:
    put(store, *(record(number % 20, repeats=number, amends=number == 35) for number in range(CHUNK_ROWS * 2 + 3)))
    assert stored(store, "count(*), max(repeats), sum(amended)") == [(20, CHUNK_ROWS * 2 + 2, 1)]


def test_repeats_are_a_count_that_only_grows(store: Store) -> None:
    put(store, record(1))
    store.write([Repeats(record(1).act, 7), Repeats(record(1).act, 5), Repeats("unknown", 9)])
    assert stored(store, "repeats") == [(7,)]


def test_an_amendment_without_its_first_record_is_kept(store: Store) -> None:
    put(store, record(1, amends=True))
    assert stored(store, "first") == [(None,)]


@pytest.mark.parametrize("path", ["/var/log/falco.json", "/a\udcff\ud800b"])
def test_marks_are_read_back(store: Store, tmp_path: Path, path: str) -> None:
    marks = [FileMark(path, 2**64 - 1, 2**64 - 2, 10, "aa"), FileMark(path, 1, 2**64 - 2, 20, "bb")]
    assert store.write(marks) == 2
    store.close()
    again = Store(tmp_path, max_age_ns=0, max_bytes=0)
    assert again.marks() == {path: marks[1]}
    again.close()


def test_a_batch_ends_where_it_grows_too_large(store: Store) -> None:
    rows = [row_of(record(number, details={"x": "y" * 30_000}), NOW) for number in range(30)]
    mark = FileMark("/f", 1, 2, 3, "")
    entries: list[Entry] = [*rows, mark]
    taken = store.write(entries)
    assert 5 < taken < 30
    assert len(stored(store, "seq")) == taken
    assert store.marks() == {}
    while taken < 31:
        taken += store.write(entries[taken:])
    assert len(stored(store, "seq")) == 30
    assert store.marks() == {"/f": mark}


# ---------------------------------------------------------------- whatever is in a record


class Odd:
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "changes",
    [
        {"details": {"x": Odd(), "y": b"\xff", "z": {1, 2}, "n": 2**100, "f": float("nan")}},
        {"rule": "lone \ud800", "act": "\ud800", "alert": "\ud800"},
        {"details": {"\ud800": "\ud800"}, "target": {"\ud800": "\ud800"}},
        {"details": {("a", "b"): 1, None: 2}},
        {"repeats": 2**80, "timing": Timing(event_ns=2**90, received_ns=2**90)},
        {"rule": "nul \0 byte", "reason": "\0"},
        {"output": "x" * 1_000_000},
        {"details": {"x": "y" * 1_000_000}},
        {"target": {str(number): "y" * 10_000 for number in range(100)}, "rule": "r" * 100_000},
    ],
)
def test_any_record_can_be_written(store: Store, changes: dict[str, Any]) -> None:
    put(store, record(1, **changes), record(2))
    bodies = stored(store)
    assert len(bodies) == 2
    assert bodies[0]["action"] == "Kill it"
    assert len(json.dumps(bodies[0])) < MAX_BODY * 2


def test_what_is_nested_without_end_is_left_out(store: Store) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    put(store, record(1, details=endless))
    assert "could not be written" in stored(store)[0]["details"]["details"]


def test_long_output_is_cut_and_details_that_are_too_long_say_so(store: Store) -> None:
    put(store, record(1, output="x" * 100_000), record(2, details={"x": "y" * 100_000}))
    first, second = stored(store)
    assert first["output"] == "x" * MAX_OUTPUT + "…"
    assert "left out" in second["details"]["details"]


# ---------------------------------------------------------------- asked at a start


def test_recent_ids_come_oldest_first_and_bounded(store: Store) -> None:
    put(store, *(record(number) for number in range(10)))
    acts, alerts = store.recent(NOW + 4 * SECOND, 3)
    assert acts == [record(number).act for number in (7, 8, 9)]
    assert alerts == [record(number).alert for number in (7, 8, 9)]
    assert len(store.recent(NOW + 4 * SECOND, 100)[0]) == 6


def test_known_acts_and_the_newest_time(store: Store) -> None:
    assert store.last_ns() == 0
    put(store, record(1), record(5), record(3))
    assert store.known([record(1).act, "unknown"]) == {record(1).act}
    assert store.last_ns() == NOW + 5 * SECOND


# ---------------------------------------------------------------- bounds


def test_old_records_go(tmp_path: Path) -> None:
    store = Store(tmp_path, max_age_ns=100 * SECOND, max_bytes=0)
    put(store, *(record(number) for number in range(1200)))
    steps = 0
    while store.trim(NOW + 1250 * SECOND):
        steps += 1
    assert stored(store, "min(at_ns), count(*)") == [(NOW + 1150 * SECOND, 50)]
    assert steps == 3
    store.close()


def test_the_size_limit_holds_at_every_moment(tmp_path: Path) -> None:
    store = Store(tmp_path, max_age_ns=0, max_bytes=MIN_BYTES)
    for batch in range(60):
        put(store, *(record(batch * 256 + number, output="x" * 500) for number in range(256)))
        store.trim(NOW)
        assert store.size() <= MIN_BYTES
    (newest, kept) = stored(store, "max(at_ns), count(*)")[0]
    assert newest == NOW + (60 * 256 - 1) * SECOND
    assert kept > 500
    store.close()


def test_a_lower_limit_gives_the_disk_back(tmp_path: Path) -> None:
    store = Store(tmp_path, max_age_ns=0, max_bytes=0)
    for batch in range(40):
        put(store, *(record(batch * 256 + number, output="x" * 500) for number in range(256)))
    store.close()
    assert store.size() > 2 * MIN_BYTES
    smaller = Store(tmp_path, max_age_ns=0, max_bytes=MIN_BYTES)
    while smaller.trim(NOW):
        pass
    smaller.close()
    assert smaller.size() <= MIN_BYTES


# ---------------------------------------------------------------- a broken file


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_broken_file_is_set_aside_and_a_new_one_begun(store: Store, tmp_path: Path, content: bytes) -> None:
    store.path.write_bytes(content)
    Path(f"{store.path}-wal").write_bytes(b"log")
    with pytest.raises(StoreCorrupt, match=r"journal\.db\.corrupt-1"):
        store.open()
    assert (tmp_path / "journal.db.corrupt-1").read_bytes() == content
    put(store, record(1))
    assert len(stored(store)) == 1


def test_one_of_another_version_is_set_aside(store: Store, tmp_path: Path) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreCorrupt, match="version 99"):
        store.last_ns()
    assert store.last_ns() == 0


def test_pages_broken_while_it_is_open_are_noticed(store: Store) -> None:
    put(store, *(record(number) for number in range(500)))
    store.close()
    with open(store.path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (store.path.stat().st_size - 4096))
    with pytest.raises(StoreCorrupt):
        put(store, record(1000))
    put(store, record(1000))


def test_a_lock_of_another_program_is_waited_for_and_then_said(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoop.store.BUSY_SECONDS", 0.01)
    put(store, record(1))
    store.close()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked"):
        store.write([row_of(record(2), NOW)])
    other.execute("COMMIT")
    other.close()
    put(store, record(2))


def test_a_link_in_the_place_of_the_file_is_not_followed(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    store.path.symlink_to(elsewhere)
    with pytest.raises(JournalError):
        store.open()
    assert elsewhere.read_bytes() == b""
