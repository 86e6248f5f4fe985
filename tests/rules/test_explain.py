"""What `explain` says of a rule agrees with the matcher, and names what failed."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.rules import RuleForm, RuleSet, load
from stoop.rules.explain import Answer, explain, explain_all

ACTIONS = [{"action": "kill", "actionner": "process:kill"}]


def rules(*definitions: dict[str, Any]) -> tuple[RuleForm, ...]:
    text = yaml.safe_dump([{"match_all": True, "actions": ACTIONS, **definition} for definition in definitions])
    return load([("rules.yaml", text.encode())], CATALOGUE).rules


def rule(**match: Any) -> RuleForm:
    return rules({"rule": "R", "match": match})[0]


def alert(fields: dict[str, Any] | None = None, **changes: Any) -> Alert:
    made = {
        "rule": "Terminal shell in container",
        "priority": "Warning",
        "source": "syscall",
        "tags": ["shell", "container"],
        "time": "2026-01-02T10:11:12.123456789Z",
        "output": "o",
        "output_fields": {"proc.name": "sh", "proc.pid": 1234567, "k8s.ns.name": None, **(fields or {})},
        **changes,
    }
    return decode(json.dumps(made).encode())


def test_each_criterion_is_named_with_what_was_found() -> None:
    explained = explain(
        rule(rules=["Another", "One more"], priority=">=error", source="k8s_audit", tags=["a, b"]), alert()
    )
    assert explained.answer is Answer.NO
    assert [(item.name, item.answer, item.wanted, item.found) for item in explained.criteria] == [
        ("rules", Answer.NO, ("Another", "One more"), "Terminal shell in container"),
        ("priority", Answer.NO, (">=error",), "warning"),
        ("source", Answer.NO, ("k8s_audit",), "syscall"),
        ("tags", Answer.NO, ("a, b",), "shell, container"),
    ]


def test_what_a_rule_does_not_ask_is_not_explained() -> None:
    explained = explain(rule(source="syscall", priority=">"), alert())
    assert explained.answer is Answer.YES
    assert [item.name for item in explained.criteria] == ["source"]


def test_conditions_are_shown_with_the_alerts_value() -> None:
    explained = explain(
        rule(output_fields=["proc.name=bash, proc.pid!=7", "proc.pid=1234567, user.name=root"]), alert()
    )
    assert explained.answer is Answer.NO
    (criterion,) = explained.criteria
    first, second = criterion.entries
    assert [(check.condition, check.answer, check.value) for check in first] == [
        ("proc.name=bash", Answer.NO, "sh"),
        ("proc.pid!=7", Answer.YES, "1234567"),
    ]
    assert [(check.condition, check.answer, check.value) for check in second] == [
        ("proc.pid=1234567", Answer.YES, "1234567"),
        ("user.name=root", Answer.NO, None),
    ]


def test_a_field_that_the_node_may_tell_is_needed() -> None:
    form = rule(output_fields=["k8s.ns.name!=kube-system"])
    explained = explain(form, alert())
    assert (explained.answer, explained.needs, explained.acts) == (Answer.NEEDS, ("k8s.ns.name",), True)
    told = explain(form, alert(), {"k8s.ns.name": "kube-system"})
    assert told.answer is Answer.NO
    assert [(check.value, check.told) for check in told.criteria[0].entries[0]] == [("kube-system", True)]
    unknown = explain(form, alert(), {})
    assert (unknown.answer, unknown.unproven) == (Answer.YES, ("k8s.ns.name",))
    own = explain(form, alert({"k8s.ns.name": "default"}), {"k8s.ns.name": "kube-system"})
    assert [(check.value, check.told) for check in own.criteria[0].entries[0]] == [("default", False)]


def test_a_rule_refused_by_another_criterion_needs_nothing() -> None:
    explained = explain(rule(rules=["Another"], output_fields=["k8s.ns.name=default"]), alert())
    assert (explained.answer, explained.needs, explained.acts) == (Answer.NO, (), False)


def test_an_unknown_priority_is_said_to_be_below_all() -> None:
    explained = explain(rule(priority="warning"), alert(priority="Info"))
    assert explained.criteria[0].found == "'Info', below all"


def test_rules_after_one_without_continue_are_not_looked_at() -> None:
    forms = rules(
        {"rule": "maybe", "match": {"output_fields": ["k8s.ns.name=x"]}, "continue": False},
        {"rule": "no", "match": {"source": "other"}, "continue": False},
        {"rule": "last", "match": {"source": "syscall"}, "continue": False},
        {"rule": "never", "match": {"source": "syscall"}},
    )
    explained = explain_all(forms, alert())
    assert [(item.rule, item.acts, item.stopped_by) for item in explained] == [
        ("maybe", True, ""),
        ("no", False, ""),
        ("last", True, ""),
        ("never", False, "last"),
    ]


FIELDS = ["proc.name", "k8s.ns.name", "container.id", "n"]
VALUES = ["sh", "kube-system", "7", "", "<NA>"]
conditions = st.builds("{}{}{}".format, st.sampled_from(FIELDS), st.sampled_from(["=", "!="]), st.sampled_from(VALUES))
matches = st.fixed_dictionaries(
    {},
    optional={
        "rules": st.lists(st.sampled_from(["A", "B"]), min_size=1, max_size=2),
        "priority": st.sampled_from(["debug", ">=warning", "<error", "="]),
        "source": st.sampled_from(["syscall", "k8s_audit"]),
        "tags": st.lists(st.sampled_from(["x", "x, y", "z"]), min_size=1, max_size=2),
        "output_fields": st.lists(st.lists(conditions, min_size=1, max_size=3).map(", ".join), min_size=1, max_size=3),
    },
)
alerts = st.builds(
    alert,
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([*VALUES, None, 7, 7.5, True])),
    rule=st.sampled_from(["A", "B", "C"]),
    priority=st.sampled_from(["Debug", "Warning", "Emergency", "Info"]),
    source=st.sampled_from(["syscall", "k8s_audit"]),
    tags=st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
)
told = st.none() | st.dictionaries(st.sampled_from(FIELDS[1:3]), st.sampled_from([*VALUES, None]))


@given(matches, alerts, told)
def test_it_says_what_the_matcher_says(
    match: dict[str, Any], about: Alert, resolved: dict[str, str | None] | None
) -> None:
    form = rule(**match)
    explained = explain(form, about, resolved)
    routed = RuleSet.of([form]).route(about)
    hit = routed[0].test(about, resolved) if routed else None
    if hit is None or not hit.possible:
        assert explained.answer is Answer.NO
        assert any(item.answer is Answer.NO for item in explained.criteria)
        return
    assert explained.answer is (Answer.YES if hit.certain else Answer.NEEDS)
    assert frozenset(explained.needs) == hit.needs
    assert frozenset(explained.unproven) == hit.unproven
    assert all(item.answer is not Answer.NO for item in explained.criteria)


@given(matches, alerts)
def test_its_conditions_add_up_to_its_answer(match: dict[str, Any], about: Alert) -> None:
    for item in explain(rule(**match), about).criteria:
        if item.entries:
            yes = any(all(check.answer is Answer.YES for check in entry) for entry in item.entries)
            possible = any(all(check.answer is not Answer.NO for check in entry) for entry in item.entries)
            assert item.answer is (Answer.YES if yes else Answer.NEEDS if possible else Answer.NO)
