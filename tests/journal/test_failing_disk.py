"""The journal: acts go on whatever the disk does."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from stoop.errors import StartRefused
from stoop.journal import (
    ENDED_UNSAID,
    MAX_QUEUED,
    MAX_QUEUED_BYTES,
    FileMark,
)
from stoop.ring import SLOTS
from stoop.store import STORE_FILE
from tests.journal.conftest import Bench, intent, record, until


def test_acts_go_on_while_nothing_can_be_written_and_all_is_written_later(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).mkdir()  # nothing can be opened there
    journal = bench.opened()
    assert "can't be written" in bench.said.events[0][0]
    for number in range(600):
        slot = journal.reserve(intent(number))
        journal.acted(slot)
        journal.put(record(number), slot)
    until(lambda: journal.status().lag == 600)
    assert journal.status().ring_used == 600
    assert journal.status().error
    (bench.dir / STORE_FILE).rmdir()
    bench.said.wait("written again")
    until(lambda: journal.status().ring_used == 0)
    journal.close()
    assert bench.said.count("can't be written") == 1
    assert len(bench.history()) == 600
    assert (journal.status().lost, journal.status().written) == (0, 600)


def test_what_could_never_be_written_is_told_at_the_next_start(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).mkdir()
    journal = bench.opened()
    slot = journal.reserve(intent(1))
    journal.put(record(1), slot)
    journal.put(record(2))
    journal.close()
    (bench.dir / STORE_FILE).rmdir()
    bench.opened()
    assert not bench.recovery.clean
    assert [(each.act, each.reason) for each in bench.recovery.unfinished] == [(record(1).act, ENDED_UNSAID)]
    assert bench.recovery.window is not None
    assert bench.recovery.window.at_most == 1


def test_a_full_queue_drops_the_newest_counts_it_and_says_it_once(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).mkdir()
    journal = bench.opened()
    kept = record(1)
    for _ in range(MAX_QUEUED):
        journal.put(kept)
    until(lambda: journal.status().lag == MAX_QUEUED)
    slot = journal.reserve(intent(2))
    journal.put(record(2), slot)
    journal.put(record(3))
    journal.put_mark(FileMark("/f", 1, 2, 3, ""))
    status = journal.status()
    assert (status.lost, status.lag, status.ring_used) == (3, MAX_QUEUED, 0)
    assert bench.said.count("queue is full") == 1


def test_the_queue_is_bounded_in_bytes_too(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).mkdir()
    journal = bench.opened()
    large = record(1, details={"x": "y" * 60_000})
    for _ in range(MAX_QUEUED_BYTES // 60_000 + 10):
        journal.put(large)
    status = journal.status()
    assert status.lost > 0
    assert status.lag * 60_000 <= MAX_QUEUED_BYTES + 60_000


def test_more_acts_than_slots_go_on(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).mkdir()
    journal = bench.opened()
    slots = [journal.reserve(intent(number)) for number in range(SLOTS + 5)]
    assert slots.count(-1) == 5
    assert journal.status().ring_full == 5
    journal.acted(-1)
    journal.put(record(1), -1)
    journal.reserve(intent(1))
    journal.put(record(2), -1)
    assert bench.said.count("the ring is full") == 1


def test_a_broken_file_is_set_aside_at_the_start(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    (bench.dir / STORE_FILE).write_bytes(b"not a database, not at all" * 1000)
    journal = bench.opened()
    assert bench.said.count("a new one is begun") == 1
    journal.put(record(1))
    journal.close()
    assert len(bench.history()) == 1
    assert (bench.dir / f"{STORE_FILE}.corrupt-1").exists()


def break_under(state_dir: Path) -> None:
    """Break the file of a running journal so that its connection has to notice: its log is emptied first."""
    path = state_dir / STORE_FILE
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE news (x)")
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    other.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)


def test_a_file_broken_while_the_agent_runs_is_set_aside_and_its_records_written(bench: Bench) -> None:
    journal = bench.opened()
    journal.put(record(1))
    until(lambda: journal.status().written == 1)
    break_under(bench.dir)
    slot = journal.reserve(intent(2))
    journal.put(record(2), slot)
    bench.said.wait("a new one is begun")
    until(lambda: journal.status().written == 2)
    journal.put(record(3))
    journal.close()
    assert [told["act"] for told in bench.history()] == [record(2).act, record(3).act]
    assert journal.status().error == "its thread is not running"


def test_a_directory_that_goes_away_loses_nothing_but_what_it_held(bench: Bench) -> None:
    journal = bench.opened()
    journal.put(record(1))
    until(lambda: journal.status().written == 1)
    shutil.rmtree(bench.dir)
    for number in range(2, 10):
        journal.put(record(number))
    journal.close()
    assert journal.status().lost == 0


def test_an_end_waits_for_a_stuck_disk_no_longer_than_it_may(bench: Bench) -> None:
    journal = bench.opened()
    other = sqlite3.connect(bench.dir / STORE_FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    slot = journal.reserve(intent(1))
    journal.put(record(1), slot)
    journal.close(timeout_s=0.01)
    assert bench.said.count("could not be closed in time") == 1
    other.execute("COMMIT")
    other.close()
    until(lambda: journal.status().error == "its thread is not running")
    assert len(bench.history()) == 1
    journal._lock.close()
    bench.opened()
    assert (bench.recovery.unfinished, bench.recovery.window) == ((), None)


def test_a_directory_that_others_may_write_to_is_refused(bench: Bench) -> None:
    bench.dir.mkdir()
    bench.dir.chmod(0o777)
    with pytest.raises(StartRefused):
        bench.journal().open()


def test_where_no_directory_can_be_made_acts_go_on(bench: Bench) -> None:
    bench.dir = Path("/proc/stoop")
    journal = bench.opened()
    assert [note for note in bench.recovery.notes if "can't be made" in note]
    assert [note for note in bench.recovery.notes if "can't be locked" in note]
    assert not journal.status().ring_lasting
    slot = journal.reserve(intent(1))
    journal.put(record(1), slot)
    journal.close()
    assert bench.said.count("can't be written") == 1
