"""The journal: acts go on whatever the disk does, and a start knows what the last end left."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoop import journal as journal_module
from stoop.errors import StartRefused
from stoop.history import read
from stoop.journal import (
    ENDED_UNKNOWN,
    ENDED_UNSAID,
    ENDED_UNVERIFIED,
    MAX_QUEUED,
    MAX_QUEUED_BYTES,
    FileMark,
    Intent,
    Journal,
)
from stoop.record import Record, Timing
from stoop.ring import RING_FILE, SLOTS, open_ring
from stoop.spec import Verdict
from stoop.store import STORE_FILE

PATIENCE_S = 10.0
"""How long the writer's thread may take for what takes it milliseconds; then the test fails."""


class Said:
    """Keeps what was said loudly; `wait` returns once an event was."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self._news = threading.Condition()

    def __call__(self, event: str, **fields: object) -> None:
        with self._news:
            self.events.append((event, fields))
            self._news.notify_all()

    def count(self, part: str) -> int:
        return sum(part in event for event, _ in self.events)

    def wait(self, part: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.count(part), PATIENCE_S), self.events


class Bench:
    """Journals of one state directory, one at a time; the last one is closed after the test."""

    def __init__(self, state_dir: Path) -> None:
        self.dir = state_dir
        self.said = Said()
        self._opened: list[Journal] = []

    def journal(self, **options: Any) -> Journal:
        made = Journal(self.dir, **{"max_age_s": 0, "max_bytes": 0, "warn": self.said, **options})
        self._opened.append(made)
        return made

    def opened(self, **options: Any) -> Journal:
        made = self.journal(**options)
        self.recovery = made.open()
        return made

    def close(self) -> None:
        for made in self._opened:
            made.close()

    def history(self) -> list[dict[str, Any]]:
        return list(read(self.dir))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(journal_module, "FIRST_RETRY_SECONDS", 0.01)
    made = Bench(tmp_path / "state")
    yield made
    made.close()


def record(number: int, **changes: Any) -> Record:
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
        "timing": Timing(received_ns=time.time_ns()),
    }
    return Record(**{**values, **changes})


def intent(number: int) -> Intent:
    like = record(number)
    names = (like.act, like.run, like.alert, like.rule, like.action, like.actionner, f"0badcafe:{number}:1")
    return Intent(*names, pid=4000 + number, decided_ns=number + 1)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does: looked at every ms, at most `PATIENCE_S`."""
    pause = threading.Event()
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.001)


# ---------------------------------------------------------------- the ordinary way


def test_an_act_is_reserved_recorded_and_its_slot_freed(bench: Bench) -> None:
    journal = bench.opened()
    assert bench.recovery.clean
    slot = journal.reserve(intent(1))
    journal.acted(slot)
    assert journal.status().ring_used == 1
    journal.put(record(1), slot)
    until(lambda: journal.status().written == 1)
    until(lambda: journal.status().ring_used == 0)
    (told,) = bench.history()
    assert (told["act"], told["outcome"]) == (record(1).act, "done")
    status = journal.status()
    assert (status.lag, status.lost, status.error, status.ring_full) == (0, 0, "", 0)
    assert status.bytes > 0
    assert status.ring_lasting


def test_what_is_put_last_is_written_at_the_end(bench: Bench) -> None:
    journal = bench.opened()
    for number in range(1000):
        journal.put(record(number))
    journal.close()
    assert not (bench.dir / f"{STORE_FILE}-wal").exists()
    assert [told["act"] for told in bench.history()] == [record(number).act for number in range(1000)]


def test_an_orderly_end_is_clean_and_ids_are_remembered(bench: Bench) -> None:
    journal = bench.opened()
    journal.accepted(2, time.time_ns())
    journal.put(record(1))
    journal.put(record(2, alert=record(1).alert))
    journal.settled(2, time.time_ns())
    journal.close()
    bench.opened()
    recovery = bench.recovery
    assert recovery.clean
    assert (recovery.unfinished, recovery.window, recovery.notes) == ((), None, ())
    assert recovery.recent_acts == (record(1).act, record(2).act)
    assert recovery.recent_alerts == (record(1).alert,)


def test_old_ids_are_not_remembered(bench: Bench) -> None:
    journal = bench.opened()
    journal.put(record(1, timing=Timing(received_ns=time.time_ns() - 600 * 10**9)))
    journal.close()
    bench.opened()
    assert bench.recovery.recent_acts == ()


def test_an_amendment_and_repeats(bench: Bench) -> None:
    journal = bench.opened()
    journal.put(record(1, verdict=Verdict.FAILED, reason="signalled, state D"))
    journal.repeats(record(1).act, 4)
    journal.put(record(1, reason="gone after 12 s", amends=True))
    journal.close()
    (told,) = bench.history()
    assert (told["outcome"], told["reason"], told["amended"], told["repeats"]) == ("done", "gone after 12 s", True, 4)
    assert told["details"] == {"first": "failed: signalled, state D"}


def test_marks_are_kept_over_a_restart(bench: Bench) -> None:
    journal = bench.opened()
    assert journal.load_mark("/f") is None
    journal.put_mark(FileMark("/f", 1, 2, 3, "aa"))
    journal.put_mark(FileMark("/f", 1, 2, 30, "bb"))
    assert journal.load_mark("/f") == FileMark("/f", 1, 2, 30, "bb")
    journal.close()
    assert bench.opened().load_mark("/f") == FileMark("/f", 1, 2, 30, "bb")


def test_old_records_go_after_a_batch(bench: Bench) -> None:
    journal = bench.opened(max_age_s=100)
    journal.put(record(1, timing=Timing(received_ns=time.time_ns() - 200 * 10**9)))
    journal.put(record(2))
    journal.close()
    assert [told["act"] for told in bench.history()] == [record(2).act]


def test_a_second_agent_is_refused(bench: Bench) -> None:
    bench.opened()
    with pytest.raises(StartRefused, match="another agent"):
        bench.journal().open()


def test_a_journal_that_was_never_opened_can_be_closed(bench: Bench) -> None:
    bench.journal().close()
    assert not bench.dir.exists()


def test_after_the_end_nothing_raises_and_losses_are_counted(bench: Bench) -> None:
    journal = bench.opened()
    journal.close()
    slot = journal.reserve(intent(1))
    journal.accepted(1, 1)
    journal.acted(slot)
    journal.put(record(1), slot)
    journal.put(record(2))
    journal.repeats(record(1).act, 1)
    journal.put_mark(FileMark("/f", 1, 2, 3, ""))
    journal.settled(1, 1)
    journal.close()
    status = journal.status()
    assert status.lost == 4
    assert status.error == "its thread is not running"


# ---------------------------------------------------------------- what an end without order leaves


def left_behind(state_dir: Path, *, acted: bool = False, ended: Verdict | None = None, number: int = 1) -> None:
    """A ring as an agent leaves it that was killed amid an act."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    ring, _ = open_ring(state_dir, 1)
    slot = ring.reserve(intent(number))
    if acted:
        ring.acted(slot, 77)
    if ended:
        ring.ended(slot, ended, 88)


@pytest.mark.parametrize(
    ("acted", "ended", "outcome", "reason", "verified"),
    [
        (False, None, "failed", ENDED_UNKNOWN, False),
        (True, None, "done", ENDED_UNVERIFIED, False),
        (True, Verdict.DONE, "done", ENDED_UNSAID, True),
        (True, Verdict.FAILED, "failed", ENDED_UNSAID, False),
        (False, Verdict.SKIPPED, "skipped", ENDED_UNSAID, False),
    ],
)
def test_an_unfinished_act_becomes_a_record(
    bench: Bench, acted: bool, ended: Verdict | None, outcome: str, reason: str, verified: bool
) -> None:
    left_behind(bench.dir, acted=acted, ended=ended)
    journal = bench.opened()
    recovery = bench.recovery
    assert not recovery.clean
    (unfinished,) = recovery.unfinished
    assert (unfinished.verdict, unfinished.reason) == (outcome, reason)
    assert unfinished.timing.acted_ns == (77 if acted else 0)
    assert unfinished.target == {"identity": "0badcafe:1:1", "pid": 4001, "birth": 0, "container_id": ""}
    assert unfinished.details == {"recovered": True, "verified": verified}
    assert recovery.recent_acts == (record(1).act,)
    assert recovery.recent_alerts == (record(1).alert,)
    until(lambda: journal.status().ring_used == 0)
    journal.close()
    assert [told["reason"] for told in bench.history()] == [reason]
    bench.opened()
    assert bench.recovery.unfinished == ()


def test_an_act_that_was_written_but_not_freed_is_finished(bench: Bench) -> None:
    journal = bench.opened()
    journal.put(record(1))
    journal.close()
    left_behind(bench.dir, acted=True)
    journal = bench.opened()
    assert bench.recovery.unfinished == ()
    assert journal.status().ring_used == 0
    assert bench.recovery.recent_acts == (record(1).act,)


def test_alerts_that_were_taken_and_not_settled_are_the_window(bench: Bench) -> None:
    bench.dir.mkdir(mode=0o700)
    ring, _ = open_ring(bench.dir, 1)
    ring.accepted(3, 100)
    ring.queued(200)
    bench.opened()
    window = bench.recovery.window
    assert window is not None
    assert (window.from_ns, window.to_ns, window.at_most) == (100, 200, 4)
    assert not bench.recovery.clean


def test_without_its_ring_nobody_can_say_what_was_lost(bench: Bench) -> None:
    journal = bench.opened()
    received_ns = time.time_ns()
    journal.put(record(1, timing=Timing(received_ns=received_ns)))
    journal.close()
    (bench.dir / RING_FILE).write_bytes(b"garbage")
    bench.opened()
    window = bench.recovery.window
    assert window is not None
    assert (window.from_ns, window.at_most) == (received_ns, None)
    assert "ring.corrupt-1" in bench.recovery.notes[0]


# ---------------------------------------------------------------- a disk that fails


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
