"""What a rule says to an alert: yes, no, or what it needs to know first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stoop.alert import Alert
from stoop.rules import NO, RESOLVABLE, YES, Hit, Loaded, Rule, RuleSet

LoadText = Callable[..., Loaded]
MakeAlert = Callable[..., Alert]

NS, POD = "k8s.ns.name", "k8s.pod.name"


@pytest.fixture
def rule_of(load_text: LoadText) -> Callable[..., Rule]:
    """A compiled rule with these `output_fields` entries."""

    def build(*entries: str) -> Rule:
        listed = "".join(f"      - '{entry}'\n" for entry in entries)
        text = f"- rule: R\n  match:\n    output_fields:\n{listed}"
        (form,) = load_text(text + "  actions: [{action: a, actionner: kubernetes:cordon}]\n").rules
        return Rule(form)

    return build


RuleOf = Callable[..., Rule]


@pytest.mark.parametrize(
    ("entries", "fields", "hit"),
    [
        (("p=sh",), {"p": "sh"}, YES),
        (("p=sh",), {"p": "zsh"}, NO),
        (("p=sh",), {}, NO),
        (("p!=sh",), {"p": "sh"}, NO),
        (("p!=sh",), {"p": "zsh"}, YES),
        (("p!=sh",), {}, YES),
        (("p=",), {"p": ""}, YES),
        (("p=",), {}, NO),
        (("p=a,q=b",), {"p": "a", "q": "b"}, YES),
        (("p=a,q=b",), {"p": "a", "q": "c"}, NO),
        (("p=x", "q=b"), {"p": "a", "q": "b"}, YES),
        (("p=true",), {"p": True}, YES),
        (("p=True",), {"p": True}, NO),
        (("p=<nil>",), {"p": None}, YES),
        (("p!=<nil>",), {"p": None}, NO),
        (("p=",), {"p": None}, NO),
        (("p=[a b]",), {"p": ["a", "b"]}, YES),
        (("p=map[a:1]",), {"p": {"a": 1}}, YES),
        (('p=sh -c "id"',), {"p": 'sh -c "id"'}, YES),
        (('p=sh -c "id"',), {"p": "sh -c id"}, YES),
    ],
)
def test_conditions(rule_of: RuleOf, make_alert: MakeAlert, entries: Any, fields: dict[str, Any], hit: Hit) -> None:
    assert rule_of(*entries).test(make_alert(fields)) is hit


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (42, ["42"]),
        (1_234_567, ["1234567", "1.234567e+06"]),
        (1749208721382570987, ["1749208721382570987", "1.749208721382571e+18"]),
        (1234567.5, ["1234567.5", "1.2345675e+06"]),
        (0.00001, ["0.00001", "1e-05"]),
        (1.0, ["1"]),
    ],
)
def test_numbers_match_in_both_forms(rule_of: RuleOf, make_alert: MakeAlert, value: float, texts: list[str]) -> None:
    alert = make_alert({"x": value})
    for text in texts:
        assert rule_of(f"x={text}").test(alert) is YES
        assert rule_of(f"x!={text}").test(alert) is NO
    assert rule_of(f"x={value}.0").test(alert) is NO


# ---------------------------------------------------------------- fields that the node can tell


@pytest.mark.parametrize("fields", [{}, {NS: None}, {NS: ""}, {NS: "<NA>"}])
def test_a_resolvable_field_that_is_missing_is_needed(
    rule_of: RuleOf, make_alert: MakeAlert, fields: dict[str, Any]
) -> None:
    alert = make_alert(fields)
    for entry in (f"{NS}=default", f"{NS}!=kube-system"):
        hit = rule_of(entry).test(alert)
        assert hit == Hit(True, False, needs=frozenset({NS}))


def test_every_resolvable_field(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    for key in sorted(RESOLVABLE):
        assert rule_of(f"{key}!=x").test(make_alert({})).needs == {key}
        assert rule_of(f"{key}!=x").test(make_alert({key: "y"})) is YES


def test_other_conditions_decide_first(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({"p": "sh"})
    assert rule_of(f"{NS}!=a, p=zsh").test(alert) is NO
    assert rule_of(f"p=zsh, {NS}!=a").test(alert) is NO
    assert rule_of(f"{NS}!=a", "p=sh").test(alert) is YES
    assert rule_of(f"{NS}!=a, p=sh", f"{POD}=x", "container.id=y, p!=sh").test(alert).needs == {NS, POD}


def test_what_the_node_tells_decides(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({NS: None})
    assert rule_of(f"{NS}=default").test(alert, {NS: "default"}) is YES
    assert rule_of(f"{NS}!=default").test(alert, {NS: "default"}) is NO
    assert rule_of(f"{NS}!=kube-system").test(alert, {NS: "default"}) is YES
    assert rule_of(f"{NS}!=<NA>").test(make_alert({NS: "<NA>"}), {NS: "default"}) is YES


def test_the_alerts_own_value_counts_before_the_nodes(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    assert rule_of(f"{NS}=default").test(make_alert({NS: "default"}), {NS: "other"}) is YES


def test_known_to_have_none(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({})
    assert rule_of(f"{NS}=default").test(alert, {NS: None}) is NO
    assert rule_of(f"{NS}!=kube-system").test(alert, {NS: None}) is YES


def test_unresolved_is_unproven(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({"p": "sh"})
    hit = rule_of(f"{NS}!=kube-system, {POD}!=x, p=sh").test(alert, {POD: None})
    assert hit == Hit(True, True, unproven=frozenset({NS}))
    assert rule_of(f"{NS}=default").test(alert, {}) == Hit(False, False, undecided=frozenset({NS}))
    assert rule_of(f"{NS}!=kube-system", "p=sh").test(alert, {}) is YES  # another entry proves it


def test_what_the_alert_has_in_the_place_of_a_value_can_be_asked_for(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({NS: "<NA>"})
    assert rule_of(f"{NS}=<NA>").test(alert, {}) is YES
    assert rule_of(f"{NS}!=<NA>").test(alert, {NS: None}) is NO


def test_a_rule_without_fields_is_always_met(load_text: LoadText, make_alert: MakeAlert) -> None:
    text = "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:cordon}]\n"
    rule = Rule(load_text(text).rules[0])
    assert rule.test(make_alert({})) is YES
    assert not rule.tests_fields
    assert RuleSet.of([rule.form]).rules[0].form is rule.form
