"""Who deals with what was read: the reader, or the loop when it comes to it."""

from __future__ import annotations

from typing import Any

from stoop.alert import Alert
from stoop.backlog import QUEUE_BYTES, QUEUE_CAPACITY, Backlog
from stoop.rules import RuleSet
from stoop.rules.model import ActionForm, MatchForm, RuleForm
from stoop.runs import Matched
from stoop.testing import alert_of

RULES = RuleSet.of(
    [RuleForm("rule", MatchForm(rules=("Shell",)), (ActionForm("do it", "process:kill", continue_=True),))]
)
QUIET, NOISY = "b" * 12, "a" * 12


def waiting(alert: Alert) -> Matched:
    return Matched(alert, "id", [(rule, rule.test(alert, None)) for rule in RULES.route(alert)], 0, None)


def noise(number: int, **fields: Any) -> Matched:
    return waiting(alert_of(proc_pid=number, container_id=NOISY, **fields))


def test_the_reader_acts_while_nothing_waits() -> None:
    backlog = Backlog()
    assert backlog.reader_acts(0)
    backlog.put(noise(1))
    assert not backlog.reader_acts(0)
    backlog.take()
    assert backlog.reader_acts(0)


def test_in_a_flood_the_reader_acts_half_of_the_time_at_most() -> None:
    backlog = Backlog()
    backlog.reader_acted(1_000, 1_700)
    assert not backlog.reader_acts(1_700)
    assert not backlog.reader_acts(2_399)
    assert backlog.reader_acts(2_400)


def test_the_reader_acts_itself_when_too_many_bytes_wait_and_so_reads_no_faster() -> None:
    backlog = Backlog()
    size = QUEUE_BYTES // 64
    for number in range(64):
        assert not len(backlog) or not backlog.reader_acts(0)
        backlog.put(noise(number, padding="x" * size))
    assert backlog.reader_acts(0)
    backlog.take()
    backlog.take()
    assert not backlog.reader_acts(0)


def test_bytes_of_what_was_dropped_do_not_count() -> None:
    backlog = Backlog()
    size = QUEUE_BYTES // QUEUE_CAPACITY // 2
    dropped = 0
    for number in range(3 * QUEUE_CAPACITY):
        dropped += backlog.put(noise(7, evt_num=number, padding="x" * size)) is not None
    assert (len(backlog), dropped) == (QUEUE_CAPACITY, 2 * QUEUE_CAPACITY)
    assert not backlog.reader_acts(0)


def test_turns_go_round_by_container() -> None:
    backlog = Backlog()
    for number in range(5):
        backlog.put(noise(number))
    backlog.put(waiting(alert_of(proc_pid=99, container_id=QUIET)))
    turns = [matched.alert.fields["proc.pid"] for _ in range(6) if (matched := backlog.take())]
    assert turns == [0, 99, 1, 2, 3, 4]
    assert backlog.take() is None
