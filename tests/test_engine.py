"""What is run and what is not run twice."""

from __future__ import annotations

import pytest

from stoop import engine
from stoop.engine import Memory, act_id, run_id, should_continue
from stoop.rules import ActionForm

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("continue_", "ignore_errors", "is_error", "goes_on"),
    [
        (True, False, False, True),
        (False, False, False, False),
        (True, False, True, False),
        (True, True, True, True),
        (False, True, True, False),
    ],
)
def test_the_table_of_continue_and_ignore_errors(
    continue_: bool, ignore_errors: bool, is_error: bool, goes_on: bool
) -> None:
    action = ActionForm("a", "process:kill", continue_, ignore_errors=ignore_errors)
    assert should_continue(action, is_error) is goes_on


def test_ids_tell_alerts_rules_steps_and_repeats_apart() -> None:
    ids = {
        act_id(run_id(alert, rule), index, repeat)
        for alert in ("a", "b")
        for rule in ("R", "S")
        for index in (0, 1)
        for repeat in (0, 1)
    }
    assert len(ids) == 16
    assert all(len(one) == 32 for one in ids)
    assert act_id(run_id("a", "R"), 0) == act_id(run_id("a", "R"), 0)


class TestMemory:
    key = ("R", "boot:1:2", 0)

    def test_the_first_repeat_is_told_and_further_ones_once_a_second(self) -> None:
        memory = Memory(5 * SECOND)
        memory.remember("act", self.key, 0)
        first = memory.repeat("other", self.key, 1)
        assert first is not None
        assert (first.original, first.first, first.due, first.count) == ("act", True, True, 1)
        second = memory.repeat("third", self.key, 2)
        assert second is not None
        assert (second.first, second.due, second.count) == (False, False, 2)
        third = memory.repeat("fourth", self.key, 1 + SECOND)
        assert third is not None
        assert (third.due, third.count) == (True, 3)

    def test_counts_that_nobody_asks_for_are_told_as_well(self) -> None:
        memory = Memory(5 * SECOND)
        memory.remember("act", self.key, 0)
        memory.repeat("b", self.key, 1)
        memory.repeat("c", self.key, 2)
        assert list(memory.pending_counts(3)) == []
        assert list(memory.pending_counts(2 * SECOND)) == [("act", 2)]
        assert list(memory.pending_counts(4 * SECOND)) == []

    def test_the_window_counts_from_the_first_and_does_not_slide(self) -> None:
        memory = Memory(5 * SECOND)
        memory.remember("act", self.key, 0)
        assert memory.repeat("b", self.key, 4 * SECOND) is not None
        assert memory.repeat("c", self.key, 6 * SECOND) is None

    def test_the_same_act_is_known_beyond_the_window(self) -> None:
        memory = Memory(5 * SECOND)
        memory.remember("act", self.key, 0)
        assert memory.repeat("act", self.key, 600 * SECOND) is not None

    def test_what_an_earlier_life_did_is_only_counted(self) -> None:
        memory = Memory(5 * SECOND)
        memory.restore(["act"], 0)
        again = memory.repeat("act", None, 1)
        assert again is not None
        assert not again.first

    def test_a_failed_act_may_be_tried_again_by_the_next_alert(self) -> None:
        memory = Memory(5 * SECOND)
        memory.remember("act", self.key, 0)
        memory.forget(self.key)
        assert memory.repeat("next", self.key, 1) is None
        assert memory.repeat("act", self.key, 1) is not None

    def test_the_oldest_is_forgotten_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "MAX_REMEMBERED", 3)
        memory = Memory(5 * SECOND)
        for number in range(5):
            memory.remember(f"act{number}", ("R", f"t{number}", 0), number)
        assert len(memory) == 3
        assert memory.repeat("act1", None, 10) is None
        assert memory.repeat("act2", None, 10) is not None
