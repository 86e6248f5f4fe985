"""Which acts of an earlier life may be tried again: what done twice is done once, where the rules still ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.again import may_be_tried_again
from stoop.catalogue import CATALOGUE
from stoop.engine import act_id
from stoop.record import Record, Timing
from stoop.rules import ActionForm, MatchForm, RuleForm
from stoop.spec import (
    Verdict,
)

RUN = "a" * 32


def left(index: int = 0, rule: str = "Kill a shell", actionner: str = "process:kill") -> Record:
    """What an agent left that was killed before this step of a run."""
    return Record(
        alert="b" * 32,
        run=RUN,
        act=act_id(RUN, index),
        rule=rule,
        action="Kill it",
        actionner=actionner,
        verdict=Verdict.FAILED,
        reason="",
        target={},
        timing=Timing(),
    )


def rule(*steps: ActionForm, name: str = "Kill a shell") -> RuleForm:
    return RuleForm(rule=name, match=MatchForm(rules=("Shell",)), actions=steps)


def kill(**parameters: Any) -> ActionForm:
    return ActionForm("Kill it", "process:kill", continue_=True, parameters=parameters)


def again(record: Record, *rules: RuleForm) -> bool:
    return may_be_tried_again([record], rules, CATALOGUE) == [record]


@pytest.mark.parametrize(
    ("parameters", "may"),
    [
        ({}, True),
        ({"signal": "SIGKILL", "scope": "tree"}, True),
        ({"signal": "9", "scope": "container"}, True),
        ({"signal": "TERM"}, False),
        ({"signal": "HUP"}, False),
        ({"signal": "STOP"}, False),
    ],
)
def test_only_a_signal_that_ends_for_good_may_be_sent_again(parameters: dict[str, Any], may: bool) -> None:
    assert again(left(), rule(kill(**parameters))) is may


def test_a_whole_container_may_be_killed_again() -> None:
    assert again(left(actionner="container:kill"), rule(ActionForm("Kill it", "container:kill", continue_=True)))


def test_what_is_not_idempotent_may_not() -> None:
    assert not again(
        left(actionner="kubernetes:exec"),
        rule(ActionForm("Run", "kubernetes:exec", continue_=True, parameters={"command": "id"})),
    )


def test_it_is_the_same_step_of_the_same_rule_or_none() -> None:
    two = rule(kill(signal="HUP"), kill())
    assert not again(left(0), two)
    assert again(left(1), two)
    assert not again(left(2), two)
    assert not again(left(rule="Another"), two)
    assert again(left(), rule(kill(), name="Another"), rule(kill()))
    assert not again(left(), rule(ActionForm("Kill it", "container:kill", continue_=True)))
    assert not again(left())
