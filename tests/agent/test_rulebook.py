"""The rules in force: one swap when all are there, the old ones until then. Values in, values out."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from agent.rulebook import Rulebook
from stoop.errors import RulesError
from stoop.metrics import Metrics
from stoop.rules import ActionForm, MatchForm, RuleForm, RuleSet
from stoop.wire import AnyMessage, LogLine, RuleReady, RulesBegin, RulesEnd, RulesRejected, RulesSource

FILES = (("rules.yaml", b"- rule: a"),)


class Desk:
    """A rulebook, and what it sent, used and said."""

    def __init__(self) -> None:
        self.sent: list[AnyMessage] = []
        self.used: list[RuleSet] = []
        self.names: list[list[str]] = []  # as they were when they were put into force
        self.said: list[tuple[str, str, dict[str, object]]] = []
        self.metrics = Metrics()
        self.takes = True
        self.book = Rulebook(self.send, self.use, self.say, self.metrics, lambda: 77)

    def use(self, rules: RuleSet) -> RuleSet:
        old = self.used[-1] if self.used else RuleSet.empty()
        self.used.append(rules)
        self.names.append([rule.form.rule for rule in rules.rules])
        return old

    def send(self, message: AnyMessage) -> bool:
        self.sent.append(message)
        return self.takes

    def say(self, level: str, event: str, **fields: object) -> None:
        self.said.append((level, event, fields))

    def answer(self, generation: int, *names: str, digest: str = "d1", warnings: tuple[str, ...] = ()) -> None:
        self.take(RulesBegin(generation, len(names), digest))
        for name in names:
            self.take(ready(generation, name))
        self.take(RulesEnd(generation, warnings))

    def take(self, message: AnyMessage) -> None:
        assert self.book.take(message)

    def gauge(self, name: str) -> object:
        return dict(self.metrics.samples()[name])[()]


def ready(generation: int, name: str) -> RuleReady:
    form = RuleForm(name, MatchForm(rules=("R",)), (ActionForm("kill", "process:kill", continue_=True),))
    return RuleReady(generation, msgspec.Raw(msgspec.msgpack.encode(form)))


def test_rules_are_swapped_once_when_all_are_there() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    assert desk.sent == [RulesSource(1, FILES)]
    desk.take(RulesBegin(1, 2, "d1"))
    desk.take(ready(1, "a"))
    desk.take(ready(1, "b"))
    assert not desk.used
    desk.take(RulesEnd(1, ("rule 'a': odd",)))
    assert desk.names == [["a", "b"]]
    assert desk.used[0].digest == "d1"
    in_force = desk.book.in_force
    assert (in_force.count, in_force.digest, in_force.loaded_ns, in_force.rejected) == (2, "d1", 77, "")
    assert ("warning", "rules warning", {"problem": "rule 'a': odd"}) in desk.said
    assert desk.gauge("rules") == 2
    assert desk.gauge("reload_rejected") == 0
    assert "reloads_total" not in desk.metrics.samples()


def test_no_rules_at_all_are_rules_too() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.answer(1)
    assert desk.names == [[]]


def test_what_is_rejected_leaves_the_old_ones_in_force() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.answer(1, "a")
    desk.book.offer(FILES)
    desk.take(RulesRejected(2, ("x.yaml:1: one", "x.yaml:2: two"), ("x.yaml:3: odd",)))
    assert [fields["problem"] for level, _, fields in desk.said if level == "warning"] == ["x.yaml:3: odd"]
    assert desk.names == [["a"]]
    in_force = desk.book.in_force
    assert (in_force.count, in_force.digest) == (1, "d1")
    assert in_force.rejected == "x.yaml:1: one\nx.yaml:2: two"
    errors = [fields["problem"] for level, _, fields in desk.said if level == "error"]
    assert errors == ["x.yaml:1: one", "x.yaml:2: two"]
    assert desk.metrics.by("reloads_total", 0) == {"rejected": 1}
    assert desk.gauge("reload_rejected") == 1
    desk.book.offer(FILES)
    desk.answer(3, "b", digest="d2")
    assert desk.names == [["a"], ["b"]]
    assert desk.book.in_force.rejected == ""
    assert desk.metrics.by("reloads_total", 0) == {"rejected": 1, "ok": 1}
    assert desk.gauge("reload_rejected") == 0


def test_files_that_are_not_even_offered_leave_the_old_ones_in_force() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.answer(1, "a")
    desk.book.reject("rules.yaml is gone")
    assert desk.book.in_force.rejected == "rules.yaml is gone"
    assert desk.names == [["a"]]


def test_answers_to_older_questions_are_ignored() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.take(RulesBegin(1, 1, "old"))
    desk.take(ready(1, "old"))
    desk.book.offer(FILES)
    desk.take(RulesEnd(1))
    desk.answer(1, "old")
    desk.take(RulesRejected(1, ("old",)))
    assert not desk.used
    assert desk.book.in_force.rejected == ""
    desk.answer(2, "new")
    assert desk.names == [["new"]]


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_an_answer_that_nobody_asked_for_is_ignored(generation: int) -> None:
    desk = Desk()
    desk.answer(generation, "sneaky")
    assert not desk.used
    desk.book.offer(FILES)
    desk.answer(1, "a")
    desk.answer(1, "sneaky")
    desk.take(RulesRejected(1, ("sneaky",)))
    assert desk.names == [["a"]]
    assert desk.book.in_force.rejected == ""


def test_rules_out_of_order_change_nothing() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.take(ready(1, "a"))
    desk.take(RulesEnd(1))
    assert not desk.used


def test_a_new_helper_is_asked_again_what_the_last_one_did_not_answer() -> None:
    desk = Desk()
    desk.book.ask_again()
    assert not desk.sent
    desk.book.offer(FILES)
    desk.take(RulesBegin(1, 2, "d1"))
    desk.take(ready(1, "a"))
    desk.book.ask_again()
    assert desk.sent == [RulesSource(1, FILES)] * 2
    desk.answer(1, "a", "b")
    assert desk.names == [["a", "b"]]
    desk.book.ask_again()
    assert len(desk.sent) == 2


def test_what_could_not_be_sent_is_asked_again_too() -> None:
    desk = Desk()
    desk.takes = False
    desk.book.offer(FILES)
    desk.takes = True
    desk.book.ask_again()
    desk.answer(1, "a")
    assert desk.names == [["a"]]


def test_other_messages_are_not_taken() -> None:
    assert not Desk().book.take(LogLine("info", "x", 1, {}))


@pytest.mark.parametrize("raw", [b"\xc0", b"\xa3abc", b"\x80"])
def test_a_rule_that_is_none_does_not_end_the_reflex(raw: bytes) -> None:
    """The helper reads what anyone may have written; whoever takes it over must not be able to stop the reflex."""
    desk = Desk()
    desk.book.offer(FILES)
    desk.answer(1, "a")
    desk.book.offer(FILES)
    desk.take(RulesBegin(2, 1, "d2"))
    desk.take(RuleReady(2, msgspec.Raw(raw)))
    desk.take(RulesEnd(2))
    assert desk.names == [["a"]]
    assert desk.book.in_force.rejected


def test_fewer_rules_than_were_announced_are_not_used() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.take(RulesBegin(1, 2, "d1"))
    desk.take(ready(1, "a"))
    desk.take(RulesEnd(1))
    assert not desk.used


class TestFirst:
    async def test_it_waits_for_good_rules(self, nursery: trio.Nursery) -> None:
        desk = Desk()
        desk.book.offer(FILES)
        nursery.start_soon(desk.book.first)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        desk.answer(1, "a")
        with trio.fail_after(5):
            await desk.book.first()

    async def test_bad_ones_are_told_with_every_problem(self) -> None:
        desk = Desk()
        desk.book.offer(FILES)
        desk.take(RulesRejected(1, ("x.yaml:1: one", "x.yaml:2: two"), ("x.yaml:3: odd",)))
        with trio.fail_after(5), pytest.raises(RulesError) as caught:
            await desk.book.first()
        assert [problem.message for problem in caught.value.problems] == ["x.yaml:1: one", "x.yaml:2: two"]
        assert [str(warning) for warning in caught.value.warnings] == ["x.yaml:3: odd"]
        assert not [event for _, event, _ in desk.said if "rules" in event]  # it is said by whoever ends with it

    async def test_files_that_are_gone_at_the_start(self) -> None:
        desk = Desk()
        desk.book.reject("rules.yaml is gone")
        with trio.fail_after(5), pytest.raises(RulesError, match="gone"):
            await desk.book.first()


def test_old_rules_are_let_go_of_piece_by_piece() -> None:
    desk = Desk()
    desk.book.offer(FILES)
    desk.answer(1, *(f"old{number}" for number in range(10)))
    desk.book.offer(FILES)
    desk.answer(2, "new", digest="d2")
    assert desk.used[0].rules == [], "they are the rulebook's to let go of"
    assert [rule.form.rule for rule in desk.used[1].rules] == ["new"]
    desk.book.dispose()
    assert desk.book.in_force.count == 1
