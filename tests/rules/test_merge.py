"""Definitions of one name become one: Talon's order, and where Stoop parts from it (docs/talon.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stoop.errors import Problem
from stoop.rules import ActionForm, Loaded

LoadText = Callable[..., Loaded]
ProblemsOf = Callable[..., tuple[Problem, ...]]

CORDON = "  actions: [{action: a, actionner: kubernetes:cordon}]\n"
RULE = "- rule: R\n  match: {rules: [F]}\n  actions: [{action: t}]\n"


def top(parameters: str, more: str = "") -> str:
    return f"- action: t\n  actionner: kubernetes:cordon\n  parameters: {parameters}\n{more}"


def rule_with(parameters: str) -> str:
    return f"- rule: R\n  match: {{rules: [F]}}\n  actions: [{{action: t, parameters: {parameters}}}]\n"


def step_of(loaded: Loaded) -> ActionForm:
    return loaded.rules[0].actions[0]


# ---------------------------------------------------------------- a rule's action and the top-level one


@pytest.mark.parametrize(
    ("inherited", "own", "merged"),
    [
        ("{x: 1}", "{}", {"x": 1}),
        ("{x: 1}", "{x: 2}", {"x": 2}),
        ("{x: a}", "{x: ''}", {"x": ""}),
        ("{x: a}", "{x: ~}", {"x": "a"}),
        ("{x: ~}", "{}", {}),
        ("{x: 1}", "{y: 2}", {"x": 1, "y": 2}),
        ("{x: [a, b]}", "{x: [b]}", {"x": ["a", "b", "b"]}),
        ("{x: []}", "{}", {"x": []}),
        ("{x: {}}", "{}", {}),
        ("{x: {a: 1}}", "{x: {b: 2}}", {"x": {"a": 1, "b": 2}}),
        ("{x: 1}", "{x: a}", {"x": "a"}),
        ("{x: 1}", "{x: 1.5}", {"x": 1.5}),
        ("{x: [a]}", "{x: {a: b}}", {"x": {"a": "b"}}),
    ],
)
def test_parameters_are_inherited(load_text: LoadText, inherited: str, own: str, merged: dict[str, Any]) -> None:
    assert step_of(load_text(top(inherited) + rule_with(own))).parameters == merged


def test_a_rules_own_map_entries_win(load_text: LoadText) -> None:
    merged = step_of(load_text(top("{x: {a: top, b: top}}") + rule_with("{x: {a: own, c: ~}}"))).parameters
    assert merged == {"x": {"a": "own", "b": "top", "c": None}}


def test_the_rest_is_inherited_where_the_rule_leaves_it_open(load_text: LoadText) -> None:
    text = (
        top("{}", "  description: d\n  continue: false\n  ignore_errors: true\n  additional_contexts: [aws]\n") + RULE
    )
    step = step_of(load_text(text))
    assert (step.description, step.continue_, step.ignore_errors) == ("d", False, True)
    assert step.additional_contexts == ("aws",)
    own = "{action: t, description: e, continue: true, ignore_errors: false, additional_contexts: [k8snode]}"
    step = step_of(load_text(text.replace("{action: t}", own)))
    assert (step.description, step.continue_, step.ignore_errors) == ("e", True, False)
    assert step.additional_contexts == ("k8snode",)


def test_outputs_are_inherited(load_text: LoadText) -> None:
    text = (
        "- action: t\n  actionner: kubernetes:log\n  output: {target: local:file, parameters: {destination: /a}}\n"
        "- rule: R\n  actions: [{action: t, output: {target: aws:s3, parameters: {bucket: b}}}]\n"
    )
    output = step_of(load_text(text)).output
    assert output is not None
    assert (output.target, output.parameters) == ("aws:s3", {"destination": "/a", "bucket": "b"})


def test_rules_do_not_share_what_they_inherit(load_text: LoadText) -> None:
    """Talon gives the first of two such rules the second's items."""
    text = top("{x: [a]}") + "- action: t\n  parameters: {x: [b]}\n"
    for name in ("1", "2", "3"):
        text += f"- rule: R{name}\n  actions: [{{action: t, parameters: {{x: [r{name}]}}}}]\n"
    assert [rule.actions[0].parameters["x"] for rule in load_text(text).rules] == [
        ["a", "b", "r1"],
        ["a", "b", "r2"],
        ["a", "b", "r3"],
    ]


def test_the_order_of_definition_does_not_matter(load_text: LoadText) -> None:
    assert step_of(load_text(RULE + top("{x: 1}"))).parameters == {"x": 1}
    assert step_of(load_text(RULE, top("{x: 1}"))).parameters == {"x": 1}


# ---------------------------------------------------------------- top-level actions of one name


@pytest.mark.parametrize(
    ("first", "later", "merged"),
    [
        ("{x: 1}", "{x: 2}", {"x": 2}),
        ("{x: 1}", "{x: ~}", {"x": 1}),
        ("{x: ~}", "{x: 2}", {"x": 2}),
        ("{x: 1}", "{x: a}", {"x": 1}),
        ("{x: [a]}", "{x: [b]}", {"x": ["a", "b"]}),
        ("{x: [a]}", "{x: []}", {"x": ["a"]}),
        ("{x: {a: 1, b: 1}}", "{x: {b: 2, c: 2}}", {"x": {"a": 1, "b": 2, "c": 2}}),
        ("{x: {a: 1}}", "{x: {}}", {"x": {"a": 1}}),
        ("{}", "{x: {a: 1}}", {"x": {"a": 1}}),
    ],
)
def test_later_definitions_override(load_text: LoadText, first: str, later: str, merged: dict[str, Any]) -> None:
    assert step_of(load_text(top(first), f"- action: t\n  parameters: {later}\n", RULE)).parameters == merged


def test_a_list_that_only_an_override_brings_stays_a_list(load_text: LoadText) -> None:
    for first in ("{}", "{x: ~}"):
        texts = top(first), "- action: t\n  parameters: {x: [a]}\n", "- action: t\n  parameters: {x: [b]}\n", RULE
        assert step_of(load_text(*texts)).parameters == {"x": ["a", "b"]}


def test_an_override_changes_the_outputs_target(load_text: LoadText) -> None:
    first = "- action: t\n  actionner: kubernetes:log\n  output: {target: local:file, parameters: {destination: /a}}\n"
    later = "- action: t\n  output: {target: aws:s3, parameters: {bucket: b}}\n"
    output = step_of(load_text(first, later, RULE)).output
    assert output is not None
    assert (output.target, output.parameters) == ("aws:s3", {"destination": "/a", "bucket": "b"})


def test_a_value_of_another_kind_is_told(load_text: LoadText) -> None:
    loaded = load_text(top("{x: 1}"), "- action: t\n  parameters: {x: a}\n", RULE)
    warning = next(warning for warning in loaded.warnings if warning.code == "param-kind-mismatch")
    assert (warning.file, warning.line, warning.detail) == ("2.yaml", 2, "x")


# ---------------------------------------------------------------- rules of one name


def test_rules_are_folded_into_the_first(load_text: LoadText) -> None:
    loaded = load_text(
        "- rule: R\n  description: one\n  notifiers: [slack]\n  match: {rules: [F], tags: [x]}\n" + CORDON,
        "- rule: S\n  match: {rules: [G]}\n" + CORDON,
        "- rule: R\n  description: two\n  notifiers: [slack]\n  match: {rules: [H], tags: [y]}\n  dry_run: true\n"
        + CORDON,
    )
    first, second = loaded.rules
    assert (first.rule, first.description, first.dry_run, first.index) == ("R", "two", True, 0)
    assert (first.match.rules, first.match.tags) == (("F", "H"), ("x", "y"))
    assert first.notifiers == ("slack", "slack")
    assert [step.action for step in first.actions] == ["a", "a"]
    assert (second.rule, second.index) == ("S", 1)


def test_priority_and_source_are_overridden_only_when_given(load_text: LoadText) -> None:
    first = "- rule: R\n  match: {priority: Debug, source: k8s_audit}\n" + CORDON
    kept = load_text(first, "- rule: R\n  dry_run: true\n").rules[0].match
    assert (kept.priority, kept.source) == ("Debug", "k8s_audit")
    replaced = load_text(first, "- rule: R\n  match: {priority: Error, source: syscall}\n").rules[0].match
    assert (replaced.priority, replaced.source) == ("Error", "syscall")


def test_stoops_own_keys_are_overridden_too(load_text: LoadText) -> None:
    loaded = load_text(
        "- rule: R\n  allow_host: true\n" + CORDON, "- rule: R\n  allow_host: false\n  match_all: true\n"
    )
    assert (loaded.rules[0].allow_host, loaded.rules[0].match_all) == (False, True)


def test_evidence_first_may_be_left_to_the_configuration(load_text: LoadText) -> None:
    def said(*texts: str) -> bool | None:
        return load_text(*texts).rules[0].evidence_first

    first = "- rule: R\n" + CORDON
    assert said(first) is None
    assert said(first, "- rule: R\n  evidence_first: true\n") is True
    assert said(first, "- rule: R\n  evidence_first: true\n", "- rule: R\n  evidence_first: false\n") is False


def test_names_are_not_merged_in_another_case(load_text: LoadText) -> None:
    assert len(load_text("- rule: R\n" + CORDON, "- rule: r\n" + CORDON).rules) == 2


# ---------------------------------------------------------------- YAML's own merging


def test_anchors_aliases_and_merge_keys(load_text: LoadText) -> None:
    loaded = load_text(
        "- &base\n  rule: R\n  match: &m {rules: [F]}\n" + CORDON + "- <<: *base\n  rule: S\n- rule: T\n  match: *m\n"
        "  actions: [{action: a, actionner: kubernetes:cordon, parameters: {<<: [{x: 1, y: 1}, {y: 2, z: 2}], x: 0}}]\n"
    )
    assert [rule.rule for rule in loaded.rules] == ["R", "S", "T"]
    assert {rule.match.rules for rule in loaded.rules} == {("F",)}
    assert loaded.rules[2].actions[0].parameters == {"x": 0, "y": 1, "z": 2}
