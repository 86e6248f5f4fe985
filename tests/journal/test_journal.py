"""The journal: what is kept, and what a start knows of the last end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stoop.errors import StartRefused
from stoop.journal import (
    ENDED_UNKNOWN,
    ENDED_UNSAID,
    ENDED_UNVERIFIED,
    FileMark,
)
from stoop.record import Timing
from stoop.ring import RING_FILE, open_ring
from stoop.spec import (
    Verdict,
)
from stoop.store import STORE_FILE
from tests.journal.conftest import Bench, intent, record, until

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
    left_behind(bench.dir, acted=True, ended=Verdict.DONE)
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
