"""The matcher against a naive model, written from the words of talon.md 2.3 to 2.5 and sharing nothing with it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.rules import NO, RESOLVABLE, YES, RuleSet, load

NAMES = ["F", "G", "H, I"]
SOURCES = ["syscall", "k8s_audit"]
TAGS = ["a", "b", "c", "d"]
LEVELS = ["Debug", "Informational", "Notice", "Warning", "Error", "Critical", "Alert", "Emergency"]
KEYS = ["proc.name", "fd.num", "k8s.ns.name", "container.id"]
TEXTS = ["sh", "a b", "1", "1000000", "<NA>", "", "true", "x=y", "!"]
MISSING = (None, "", "<NA>")


def naive_text(value: Any) -> set[str]:
    """The texts that a value may be written as."""
    if value is None:
        return {"<nil>"}
    if isinstance(value, bool):
        return {str(value).lower()}
    if isinstance(value, int):
        return {str(value), "1e+06"} if value == 1_000_000 else {str(value)}
    return {value}


def naive_condition(condition: tuple[str, str, str], fields: dict[str, Any]) -> bool:
    """Equality is true when the field exists and its text equals. Inequality when it is absent or differs."""
    key, operator, text = condition
    equal = key in fields and text in naive_text(fields[key])
    return equal if operator == "=" else not equal


def naive_rule(rule: dict[str, Any], alert: dict[str, Any], fields: dict[str, Any]) -> bool:
    """All criteria are ANDed, a missing one is true; entries are ORed, what is inside one is ANDed."""
    if rule["rules"] and alert["rule"] not in rule["rules"]:
        return False
    if rule["source"] and rule["source"] != alert["source"]:
        return False
    if rule["tags"] and not any(all(tag in alert["tags"] for tag in entry) for entry in rule["tags"]):
        return False
    if rule["priority"]:
        comparison, level = rule["priority"]
        has = LEVELS.index(alert["priority"]) + 1 if alert["priority"] in LEVELS else 0
        wants = LEVELS.index(level) + 1
        compared = {"": has == wants, "=": has == wants, ">": has > wants, ">=": has >= wants}
        if not {**compared, "<": has < wants, "<=": has <= wants}[comparison]:
            return False
    if not rule["fields"]:
        return True
    return any(all(naive_condition(condition, fields) for condition in entry) for entry in rule["fields"])


conditions = st.tuples(st.sampled_from(KEYS), st.sampled_from(["=", "!="]), st.sampled_from(TEXTS))
rules = st.fixed_dictionaries(
    {
        "rules": st.lists(st.sampled_from(NAMES), max_size=2),
        "source": st.sampled_from(["", *SOURCES]),
        "tags": st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=3), max_size=2),
        "priority": st.one_of(
            st.none(), st.tuples(st.sampled_from(["", "=", ">", ">=", "<", "<="]), st.sampled_from(LEVELS))
        ),
        "fields": st.lists(st.lists(conditions, min_size=1, max_size=3), max_size=3),
    }
)
values = st.one_of(st.none(), st.booleans(), st.sampled_from([0, 1, 1_000_000]), st.sampled_from(TEXTS))
alerts = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(NAMES),
        "source": st.sampled_from(SOURCES),
        "priority": st.sampled_from([*LEVELS, "Info", ""]),
        "tags": st.lists(st.sampled_from(TAGS), max_size=4),
        "output_fields": st.dictionaries(st.sampled_from(KEYS), values),
    }
)
tellings = st.dictionaries(
    st.sampled_from([key for key in KEYS if key in RESOLVABLE]), st.one_of(st.none(), st.sampled_from(["sh", "a b"]))
)


def written(rule: dict[str, Any], name: str) -> dict[str, Any]:
    """The rule as a file has it."""
    match = {
        "rules": rule["rules"],
        "source": rule["source"],
        "tags": [", ".join(entry) for entry in rule["tags"]],
        "priority": "".join(rule["priority"] or ()),
        "output_fields": [", ".join(map("".join, entry)) for entry in rule["fields"]],
    }
    return {"rule": name, "match": match, "actions": [{"action": "a", "actionner": "kubernetes:cordon"}]}


def ruleset(models: list[dict[str, Any]]) -> RuleSet:
    content = json.dumps([written(model, str(number)) for number, model in enumerate(models)])
    return RuleSet.of(load([("rules", content.encode())], CATALOGUE).rules)


def sent(alert: dict[str, Any]) -> Alert:
    return decode(json.dumps(alert).encode())


def as_told(fields: dict[str, Any], told: dict[str, str | None]) -> dict[str, Any]:
    """The fields once the node has told what it knows; what it knows to be none stays as it is."""
    filled = {key: text for key, text in told.items() if text is not None and fields.get(key) in MISSING}
    return {**fields, **filled}


@given(st.lists(rules, max_size=5), alerts, tellings)
def test_the_same_rules_match(models: list[dict[str, Any]], alert: dict[str, Any], told: dict[str, str | None]) -> None:
    found = sent(alert)
    matched = [rule.form.rule for rule in ruleset(models).route(found) if rule.test(found, told).certain]
    fields = as_told(alert["output_fields"], told)
    assert matched == [str(number) for number, model in enumerate(models) if naive_rule(model, alert, fields)]


@given(rules, alerts, st.lists(tellings, min_size=1, max_size=4))
def test_an_answer_without_the_node_is_what_the_node_would_make_it(
    model: dict[str, Any], alert: dict[str, Any], several: list[dict[str, str | None]]
) -> None:
    found = sent(alert)
    for rule in ruleset([model]).route(found):
        hit = rule.test(found)
        if hit.needs:
            assert hit.possible
            assert not hit.certain
            assert all(key in RESOLVABLE and alert["output_fields"].get(key) in MISSING for key in hit.needs)
        else:
            assert hit is (YES if hit.certain else NO)
            assert {rule.test(found, told) for told in several} == {hit}


@given(rules, alerts, tellings)
def test_unproven_is_what_a_different_answer_of_the_node_could_change(
    model: dict[str, Any], alert: dict[str, Any], told: dict[str, str | None]
) -> None:
    found = sent(alert)
    for rule in ruleset([model]).route(found):
        hit = rule.test(found, told)
        for key in hit.unproven:
            assert hit.certain
            assert key not in told
            assert any((key, "!=") == condition[:2] for entry in model["fields"] for condition in entry)
        if hit is YES and rule.test(found).needs:
            # Proven without these fields: whatever they are, it matches.
            others = {key: "nothing that a rule names" for key in rule.test(found).needs if key not in told}
            assert rule.test(found, {**told, **others}).certain
