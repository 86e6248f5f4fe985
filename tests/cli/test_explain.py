"""`stoop explain` for a person and for a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

RULES: list[dict[str, Any]] = [
    {
        "rule": "Not in kube-system",
        "match": {
            "rules": ["Terminal shell in container"],
            "priority": ">=error",
            "output_fields": ["k8s.ns.name!=kube-system, proc.name=bash", "user.name=root"],
        },
        "actions": [{"action": "Kill it", "actionner": "process:kill"}],
    },
    {
        "rule": "Kill a shell",
        "match": {"tags": ["shell"]},
        "continue": False,
        "actions": [
            {"action": "Kill it", "actionner": "process:kill", "parameters": {"scope": "tree"}},
            {"action": "Go", "actionner": "kubernetes:terminate"},
            {"action": "Label", "actionner": "kubernetes:label", "parameters": {"labels": {"a": "b"}}},
        ],
    },
    {"rule": "Late", "match": {"tags": ["shell"]}, "actions": [{"action": "Kill it", "actionner": "process:kill"}]},
]

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def rules(write: Callable[..., str]) -> str:
    return write("rules.yaml", yaml.safe_dump(RULES, sort_keys=False))


def test_for_a_person(stoop: Any, write: Callable[..., str], rules: str, alert: Make) -> None:
    ran = stoop("explain", write("alert", alert()), "-r", rules)
    assert (ran.code, ran.err) == (0, "")
    assert (
        ran.out
        == """\
alert  Warning · Terminal shell in container · 2026-01-02T10:11:12.123456Z
       A shell was spawned in a container (user=root)
✗ Not in kube-system  does not match
    ✓ rules: 'Terminal shell in container'
    ✗ priority: 'warning', wanted '>=error'
    ✗ output_fields
      ✓ k8s.ns.name!=kube-system  it is 'default'
      ✗ proc.name=bash  it is 'sh'
      or
      ✗ user.name=root  the alert has no such field
✓ Kill a shell  matches
    ✓ tags: 'container, shell'
- Late  is not looked at: Kill a shell matches and has continue: false
    ✓ tags: 'container, shell'
plan
  1. Kill a shell: Kill it (process:kill {'scope': 'tree'}) → would be done
  2. Kill a shell: Go (kubernetes:terminate) → refused: kubernetes:terminate is not in this version, then this rule ends
  3. Kill a shell: Label (kubernetes:label {'labels': {'a': 'b'}}) → not reached
"""
    )


def test_for_a_machine(stoop: Any, write: Callable[..., str], rules: str, alert: Make) -> None:
    ran = stoop("explain", write("alert", alert(fields={"k8s.ns.name": None})), "-r", rules, "--json")
    assert ran.code == 0
    (told,) = ran.lines
    assert told["alert"]["rule"] == "Terminal shell in container"
    assert [(rule["rule"], rule["answer"], rule["stopped_by"]) for rule in told["rules"]] == [
        ("Not in kube-system", "no", ""),
        ("Kill a shell", "yes", ""),
        ("Late", "yes", "Kill a shell"),
    ]
    assert told["rules"][0]["criteria"][2]["entries"][0][0] == {
        "condition": "k8s.ns.name!=kube-system",
        "answer": "needs",
        "value": "<nil>",
        "told": False,
    }
    assert [(step["action"], step["acts"], step["outcome"]) for step in told["plan"]] == [
        ("Kill it", True, "would"),
        ("Go", False, "refused"),
        ("Label", False, ""),
    ]


def test_actions_of_one_name_are_told_apart(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    actions = [
        {"action": "a", "actionner": "process:kill"},
        {"action": "a", "actionner": "kubernetes:cordon", "ignore_errors": False},
        {"action": "a", "actionner": "process:kill"},
    ]
    rules = write("rules.yaml", yaml.safe_dump([{"rule": "R", "match": {"tags": ["shell"]}, "actions": actions}]))
    (ran,) = stoop("explain", write("alert", alert()), "-r", rules, "--json").lines
    assert [(step["actionner"], step["outcome"]) for step in ran["plan"]] == [
        ("process:kill", "would"),
        ("kubernetes:cordon", "refused"),
        ("process:kill", ""),
    ]


def test_a_byte_order_mark_is_no_part_of_an_alert(
    stoop: Any, write: Callable[..., str], rules: str, alert: Make
) -> None:
    assert stoop("explain", write("alert", "\ufeff" + json.dumps(alert())), "-r", rules).code == 0


def test_nothing_matches(stoop: Any, write: Callable[..., str], rules: str, alert: Make) -> None:
    ran = stoop("explain", write("alert", alert(rule="Another", tags=[])), "-r", rules)
    assert ran.code == 1
    assert ran.out.endswith("plan  nothing: no rule matches\n")


def test_what_the_node_must_tell(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    rules = write("r.yaml", yaml.safe_dump([{**RULES[0], "match": {"output_fields": ["k8s.ns.name=web"]}}]))
    ran = stoop("explain", write("alert", alert(fields={"k8s.ns.name": None})), "-r", rules)
    assert ran.code == 0
    assert "? Not in kube-system  may match\n" in ran.out
    assert "      ? k8s.ns.name=web  it is null\n" in ran.out
    assert "    the alert does not tell k8s.ns.name: the agent asks the node\n" in ran.out


def test_a_pretty_printed_alert(stoop: Any, write: Callable[..., str], rules: str, alert: Make) -> None:
    assert stoop("explain", write("alert", json.dumps(alert(), indent=2)), "-r", rules).code == 0


def test_of_several_the_first_is_explained(stoop: Any, write: Callable[..., str], rules: str, alert: Make) -> None:
    ran = stoop("explain", write("alerts", alert(), alert(rule="Another", tags=[])), "-r", rules)
    assert ran.code == 0
    assert ran.err.startswith("warning: 2 alerts in ")


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "there is no alert in it"), ("10:11:12.123456789: Warning A shell", "json_output"), ("{", "not an alert: ")],
)
def test_what_is_no_alert_is_said(stoop: Any, write: Callable[..., str], rules: str, text: str, says: str) -> None:
    ran = stoop("explain", write("alert", text), "-r", rules)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_wrong_rules_are_told_each_on_a_line(stoop: Any, write: Callable[..., str], alert: Make) -> None:
    rules = write("r.yaml", "- rule: a\n  actions: [{action: x}]\n- rule: b\n")
    ran = stoop("explain", write("alert", alert()), "-r", rules)
    assert (ran.code, ran.out) == (2, "")
    assert {line.partition(f" {rules}:")[0] for line in ran.err.splitlines()} == {"stoop:"}
    assert len(ran.err.splitlines()) > 1


def test_hostile_text_is_escaped(
    stoop: Any, write: Callable[..., str], alert: Make, hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    rule = {**RULES[0], "match": {"output_fields": ["proc.name=bash"]}}
    rules = write("r.yaml", yaml.safe_dump([rule]))
    file = write("alert", alert(fields={"proc.name": hostile}, output=hostile, rule=hostile, tags=[hostile]))
    ran = stoop("explain", file, "-r", rules)
    assert is_harmless(ran.out)
    assert stoop("explain", file, "-r", rules, "--json").out.isascii()
