"""Which rules an alert is asked of: all that may match, in order, found without looking at the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from stoop.alert import Alert
from stoop.rules import ActionForm, Loaded, MatchForm, RuleForm, RuleSet
from stoop.rules.match import accepts
from stoop.rules.ruleset import MAX_ROUTE_TEXT, MAX_ROUTES

LoadText = Callable[..., Loaded]
MakeAlert = Callable[..., Alert]


def rules_of(load_text: LoadText, *matches: str) -> RuleSet:
    actions = "  actions: [{action: a, actionner: kubernetes:cordon}]\n"
    text = "".join(f"- rule: R{number}\n  match: {{{match}}}\n{actions}" for number, match in enumerate(matches))
    return RuleSet.of(load_text(text).rules)


def names(rules: RuleSet, alert: Alert) -> list[str]:
    return [rule.form.rule for rule in rules.route(alert)]


CRITERIA = (
    "rules: [F]",
    "rules: [G, F, F]",
    "rules: [G]",
    "tags: [shell]",
    "tags: ['shell, container', x]",
    "tags: ['shell, x']",
    "source: syscall",
    "source: k8s_audit",
    "priority: '>=Warning'",
    "priority: '<Warning'",
    "rules: [F], tags: [shell], source: syscall, priority: Warning",
    "rules: [F], tags: [x]",
    "rules: [F], source: k8s_audit",
    "tags: [shell], priority: Error",
    "output_fields: [a=b]",
    "",
)


def test_all_that_may_match_in_order(load_text: LoadText, make_alert: MakeAlert) -> None:
    rules = rules_of(load_text, *CRITERIA)
    assert names(rules, make_alert()) == ["R0", "R1", "R3", "R4", "R6", "R8", "R10", "R14", "R15"]


@pytest.mark.parametrize("rule", ["F", "G", "H", ""])
@pytest.mark.parametrize("source", ["syscall", "k8s_audit"])
@pytest.mark.parametrize("priority", ["Warning", "Error", "Debug", "odd"])
@pytest.mark.parametrize("tags", [[], ["shell"], ["x"], ["shell", "container"], ["a", "a", "shell", "x"]])
def test_indexes_give_what_looking_at_each_rule_gives(
    load_text: LoadText, make_alert: MakeAlert, rule: str, source: str, priority: str, tags: list[str]
) -> None:
    rules = rules_of(load_text, *CRITERIA)
    alert = make_alert(rule=rule, source=source, priority=priority, tags=tags)
    looked = [rule.form.rule for rule in rules.rules if accepts(rule.form.match, alert)]
    assert names(rules, alert) == looked
    assert names(rules, alert) == looked  # remembered


def test_repeated_tags_count_once(load_text: LoadText, make_alert: MakeAlert) -> None:
    """Talon counts them: there `a` is not met by [a, a], and `a,b,c` is met by [a, a, a]."""
    rules = rules_of(load_text, "tags: [a]", "tags: ['a,a']", "tags: ['a,b,c']")
    assert names(rules, make_alert(tags=["a", "a"])) == ["R0", "R1"]
    assert names(rules, make_alert(tags=["a", "a", "a"])) == ["R0", "R1"]


def test_an_alert_that_differs_is_not_given_what_was_remembered(load_text: LoadText, make_alert: MakeAlert) -> None:
    rules = rules_of(load_text, "tags: [x]", "source: k8s_audit", "priority: Error")
    assert names(rules, make_alert()) == []
    assert names(rules, make_alert(tags=["x"])) == ["R0"]
    assert names(rules, make_alert(source="k8s_audit")) == ["R1"]
    assert names(rules, make_alert(priority="Error")) == ["R2"]
    assert names(rules, make_alert()) == []


def test_what_is_remembered_is_bounded(load_text: LoadText, make_alert: MakeAlert) -> None:
    rules = rules_of(load_text, "source: syscall")
    for number in range(MAX_ROUTES + 10):
        assert names(rules, make_alert(rule=f"F{number}")) == ["R0"]
    assert len(rules._routes) == 10
    assert names(rules, make_alert(rule="F" * MAX_ROUTE_TEXT)) == ["R0"]
    assert len(rules._routes) == 10


def test_a_set_of_none(make_alert: MakeAlert) -> None:
    empty = RuleSet.empty()
    assert len(empty) == 0
    assert empty.route(make_alert()) == ()


class Counted(list[int]):
    """A list of rules' places that counts how many of them are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[int]:
        for place in super().__iter__():
            Counted.seen += 1
            yield place


def test_rules_of_other_names_are_not_looked_at(make_alert: MakeAlert) -> None:
    builder = RuleSet.builder()
    for number in range(2000):
        builder.add(RuleForm(f"R{number}", MatchForm(rules=(f"F{number}",)), (ActionForm("a", "b", True),)))
    builder.by_rule = {name: Counted(places) for name, places in builder.by_rule.items()}
    rules = builder.finish("digest")
    assert (len(rules), rules.digest) == (2000, "digest")
    assert names(rules, make_alert(rule="F7")) == ["R7"]
    assert Counted.seen == 1
