"""Which files Talon takes, and what several definitions become: case by case, as `test_talon_cases` is for criteria."""

from __future__ import annotations

from typing import Any

import pytest

from stoop.catalogue import CATALOGUE
from stoop.errors import RulesError
from stoop.rules import ActionForm, load

CORDON = "  actions: [{action: a, actionner: kubernetes:cordon}]\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("- rule: ''\n", 0),
        ("- rule: ~\n", 0),
        ("- description: x\n", 0),
        ("- {}\n", 0),
        ("--- []\n", 0),
        ("- action: a\n", 0),
        ("- action: a\n  actionner: nonsense\n", 0),
        ("- action: a\n  actionner: x:y\n  parameters: {a: 1}\n", 0),
        ("- action: a\n  continue: maybe\n", 0),
        ("- action: a\n  rule: R\n  actionner: kubernetes:cordon\n  actions: [{action: a}]\n", 1),
        ("- rule: R\n  x: {a: 1, a: 2}\n" + CORDON, 1),
        ("- rule: R\n  description: 5\n" + CORDON, 1),
        ("- rule: 5\n" + CORDON, 1),
        ("- rule: 2026-01-02\n" + CORDON, 1),
        ("- rule: R\n  notifiers: [x, 5, ~]\n" + CORDON, 1),
        ("- rule: R\n  match: ~\n" + CORDON, 1),
        ("- rule: 'a: b'\n" + CORDON, 1),
        ("- rule: a:b\n" + CORDON, 1),
        ("- rule: !x R\n" + CORDON, 1),
        ("- ? rule\n  : R\n" + CORDON, 1),
        ("- !!binary cnVsZQ==: R\n" + CORDON, 0),
        ("- &a\n  rule: R\n" + CORDON + "- <<: *a\n  rule: S\n", 2),
        ("- <<: {rule: R}\n" + CORDON, 1),
        ("- <<: [{rule: R}, {rule: S}]\n" + CORDON, 1),
        ("- rule: R\r\n" + CORDON.replace("\n", "\r\n"), 1),
        ("- rule: R\x85" + CORDON, 1),
        ("- rule: é🙂\n" + CORDON, 1),
        ("- rule: R\n" + CORDON + "---\n- nonsense: [\n", 1),
        ("- rule: R\n" + CORDON + "...\n", 1),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, additional_contexts: [nope]}]\n", 1),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, parameters: {v: .1_0}}]\n", 1),
    ],
)
def test_files_that_are_taken(text: str, count: int) -> None:
    assert len(load([("f", text.encode())], CATALOGUE).rules) == count


@pytest.mark.parametrize(
    "text",
    [
        "- ~\n", "- x\n", "- []\n", "{}\n", "x\n", "5\n", "...\n",
        "- rule: R\n", "- rule: R\n  actions: []\n", "- rule: R\n  actions: ~\n", "- rule: R\n  actions: [{}]\n",
        "- rule: R\n  actions: [{action: ''}]\n", "- rule: R\n  actions: [{actionner: kubernetes:cordon}]\n",
        "- action: a\n  continue: [x]\n", "- action: a\n  match: x\n", "- rule: R\n  parameters: x\n" + CORDON,
        "- action: a\n  action: b\n", "- rule: R\n  x: 1\n  x: 2\n" + CORDON,
        "- rule: R\n  match: {rules: [F], rules: [G]}\n" + CORDON,
        "- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, parameters: {a: 1, a: 2}}]\n",
        "- rule: R\n  description: [a]\n" + CORDON, "- rule: {a: b}\n" + CORDON,
        "- rule: R\n  notifiers: slack\n" + CORDON, "- rule: R\n  notifiers: [[a]]\n" + CORDON,
        "- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, additional_contexts: aws}]\n",
        "- rule: R\n  match: []\n" + CORDON, "- rule: R\n  match: {tags: a}\n" + CORDON,
        "- rule: R\n  match: {source: [a]}\n" + CORDON, "- rule: R\n\tactions: []\n", "- rule: *x\n", "- rule: @x\n",
        "- rule: `x\n", "- rule: %x\n", "- rule: a: b\n", "- rule: 'a\n", '- rule: "\\q"\n',
        "- rule: !!int R\n" + CORDON,
        "- ? [rule]\n  : R\n", "- <<: x\n  rule: R\n" + CORDON, "- <<: [x]\n  rule: R\n" + CORDON,
        "- rule: R\x00\n" + CORDON, "- rule: R\x07\n" + CORDON,
        *(f"- rule: R\n  actions: [{{action: a, actionner: {name}}}]\n" for name in (
            "kubernetes:Cordon", "Kubernetes:cordon", "'kubernetes:cordon '", "kubernetes", "kubernetes/cordon",
            "k8s:cordon", "kubernetes:labelize", "x:y", "1", "~", "''", "[a]", "kubernetes::cordon")),
    ],
)  # fmt: skip
def test_files_that_are_refused(text: str) -> None:
    with pytest.raises(RulesError):
        load([("f", text.encode())], CATALOGUE)


def step_of(*texts: str) -> ActionForm:
    """The first action of the only rule of these files."""
    (rule,) = load([(str(number), text.encode()) for number, text in enumerate(texts)], CATALOGUE).rules
    return rule.actions[0]


TOP = "- action: t\n  actionner: kubernetes:exec\n  parameters: {command: ls, l: [1], m: {a: b}, n: 5}\n"
USE = "- rule: R\n  actions: [{action: t}]\n"


@pytest.mark.parametrize(
    ("override", "parameters"),
    [
        ("{command: ps}", {"command": "ps"}),
        ("{command: ~}", {}),
        ("{command: 5}", {}),
        ("{command: ''}", {"command": ""}),
        ("{l: [2]}", {"l": [1, 2]}),
        ("{l: []}", {}),
        ("{l: x}", {}),
        ("{m: {a: c}}", {"m": {"a": "c"}}),
        ("{m: {d: e}}", {"m": {"a": "b", "d": "e"}}),
        ("{m: {}}", {}),
        ("{m: [x]}", {}),
        ("{n: 6}", {"n": 6}),
        ("{n: 6.0}", {}),
        ("{n: 0}", {"n": 0}),
        ("{N: 6}", {"N": 6}),
        ("{new: x}", {"new": "x"}),
        ("{new: {x: y}}", {"new": {"x": "y"}}),
        ("~", {}),
    ],
)
def test_a_later_definitions_parameters(override: str, parameters: dict[str, Any]) -> None:
    if parameters.get("command") == "":
        with pytest.raises(RulesError, match="command is required"):
            step_of(TOP, f"- action: t\n  parameters: {override}\n", USE)
        return
    before = {"command": "ls", "l": [1], "m": {"a": "b"}, "n": 5}
    assert step_of(TOP, f"- action: t\n  parameters: {override}\n", USE).parameters == before | parameters
    assert step_of(USE, TOP, f"- action: t\n  parameters: {override}\n").parameters == before | parameters


@pytest.mark.parametrize(
    ("own", "parameters"),
    [
        ("{command: ps}", {"command": "ps"}),
        ("{command: ~}", {}),
        ("{l: [0]}", {"l": [1, 0]}),
        ("{l: x}", {"l": "x"}),
        ("{m: {d: e}}", {"m": {"a": "b", "d": "e"}}),
        ("{m: x}", {"m": "x"}),
        ("{n: 6.5}", {"n": 6.5}),
        ("{new: [x]}", {"new": ["x"]}),
    ],
)
def test_what_a_rules_action_inherits(own: str, parameters: dict[str, Any]) -> None:
    use = f"- rule: R\n  actions: [{{action: t, parameters: {own}}}]\n"
    assert step_of(TOP, use).parameters == {"command": "ls", "l": [1], "m": {"a": "b"}, "n": 5} | parameters
    assert step_of(use, TOP).parameters == {"command": "ls", "l": [1], "m": {"a": "b"}, "n": 5} | parameters


@pytest.mark.parametrize(
    ("top", "override", "own", "attribute", "wanted"),
    [
        ("continue: false", "", "", "continue_", False),
        ("continue: false", "continue: true", "", "continue_", True),
        ("continue: false", "continue: ''", "", "continue_", False),
        ("continue: false", "continue: true", "continue: false", "continue_", False),
        ("", "", "", "continue_", True),
        ("ignore_errors: true", "", "", "ignore_errors", True),
        ("ignore_errors: true", "", "ignore_errors: false", "ignore_errors", False),
        ("ignore_errors: true", "", "ignore_errors: ~", "ignore_errors", True),
        ("description: a", "description: b", "", "description", "b"),
        ("description: a", "description: b", "description: c", "description", "c"),
        ("description: a", "description: ~", "", "description", "a"),
        ("additional_contexts: [aws]", "additional_contexts: [k8snode]", "", "additional_contexts", ("aws", "k8snode")),
        ("additional_contexts: [aws]", "additional_contexts: [aws]", "", "additional_contexts", ("aws", "aws")),
        ("additional_contexts: [aws]", "", "additional_contexts: [x]", "additional_contexts", ("x",)),
        ("additional_contexts: [aws]", "", "additional_contexts: []", "additional_contexts", ("aws",)),
        ("actionner: kubernetes:log", "actionner: kubernetes:cordon", "", "actionner", "kubernetes:cordon"),
        ("actionner: kubernetes:log", "actionner: ''", "", "actionner", "kubernetes:log"),
        ("actionner: kubernetes:log", "", "actionner: kubernetes:delete", "actionner", "kubernetes:delete"),
    ],
)
def test_what_else_is_inherited(top: str, override: str, own: str, attribute: str, wanted: object) -> None:
    actionner = "" if "actionner" in top else "  actionner: kubernetes:cordon\n"
    texts = [f"- action: t\n{actionner}  {top}\n", f"- action: t\n  {override}\n"]
    use = f"- rule: R\n  match: {{rules: [F]}}\n  actions:\n    - action: t\n      {own}\n"
    assert getattr(step_of(*texts, use), attribute) == wanted


def test_names_join_only_when_they_are_equal() -> None:
    for name in ("T", "' t'", "'t '", "tt"):
        with pytest.raises(RulesError, match="no actionner"):
            step_of(TOP, f"- rule: R\n  actions: [{{action: {name}}}]\n")
    rules = load(
        [("f", ("- rule: R\n" + CORDON + "- rule: r\n" + CORDON + "- rule: 'R '\n" + CORDON).encode())], CATALOGUE
    )
    assert [rule.rule for rule in rules.rules] == ["R", "r", "R "]


def test_a_rule_of_several_definitions() -> None:
    first = "- rule: R\n  match: {rules: [F], tags: [a], priority: Notice}\n  notifiers: [slack]\n" + CORDON
    other = "- rule: S\n  match: {rules: [G]}\n" + CORDON
    later = (
        "- rule: R\n  match: {rules: [F, H], output_fields: ['a=1'], source: x}\n  notifiers: [slack, loki]\n"
        "  continue: false\n  dry_run: true\n" + CORDON
    )
    again = "- rule: R\n  dry_run: ''\n  continue: true\n"
    rules = load([(str(n), text.encode()) for n, text in enumerate((first, other, later, again))], CATALOGUE).rules
    assert [rule.rule for rule in rules] == ["R", "S"]
    (merged, _) = rules
    assert merged.match.rules == ("F", "F", "H")
    assert (merged.match.tags, merged.match.output_fields) == (("a",), ("a=1",))
    assert (merged.match.priority, merged.match.source) == ("Notice", "x")
    assert merged.notifiers == ("slack", "slack", "loki")
    assert (merged.continue_, merged.dry_run) == (True, True)
    assert [step.action for step in merged.actions] == ["a", "a"]
