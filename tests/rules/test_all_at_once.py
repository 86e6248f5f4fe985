"""One load tells problems of every kind, and nothing that only follows from what could not be read."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from stoop.catalogue import CATALOGUE
from stoop.errors import Problem, RulesError
from stoop.rules import load
from stoop.rules.unread import MAX_SEARCHES, Unread

ProblemsOf = Callable[..., tuple[Problem, ...]]

TERMINATE = "  actions: [{action: t, actionner: kubernetes:terminate}]\n"
CORDON = "  actions: [{action: c, actionner: kubernetes:cordon}]\n"


def briefly(problems: tuple[Problem, ...]) -> list[tuple[str, str, int]]:
    return [(problem.file, problem.code, problem.line) for problem in problems]


def test_problems_of_every_kind_in_one_run(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        """\
- rule: A
  match: {rules: Terminal}
  actions: [{action: a, actionner: kubernetes:terminat}]
- rule: B
  match: {rules: [F], output_fields: ["x>1"], priority: Info}
  actions:
    - {action: b, actionner: kubernetes:exec}
    - {action: s, actionner: kubernetes:sysdig, parameters: {duration: "x", scope: y}}
- rule: C
"""
        + TERMINATE
        + "-\n",
        "- rule: D\n  continue: maybe\n" + CORDON + "- rule: E\n  match: {rules: [F]\n",
        "- rule: F\n  match: {tags: ['x-']}\n  actions: [{action: nowhere}]\n",
    )
    assert briefly(problems) == [
        ("1.yaml", "yaml-type", 2),
        ("1.yaml", "yaml-type", 11),
        ("2.yaml", "yaml-syntax", 6),
        ("1.yaml", "priority", 5),
        ("1.yaml", "field-key", 5),
        ("2.yaml", "continue-value", 2),
        ("3.yaml", "actionner-missing", 3),
        ("3.yaml", "tag", 2),
        ("1.yaml", "actionner-unknown", 3),
        ("1.yaml", "param-required", 7),
        ("1.yaml", "param-type", 8),
        ("1.yaml", "param-value", 8),
        ("1.yaml", "output-required", 8),
        ("1.yaml", "match-all", 9),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "- rule: R\n  match: {rules: F}\n" + TERMINATE,
        "- rule: R\n  match: [F]\n" + TERMINATE,
        "- rule: R\n  match_all: [true]\n" + TERMINATE,
        "- rule: R\n  match: {rules: [F]}\n  actions: {action: a}\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [a]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: [a]}]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: [x]}]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:exec, parameters: [x]}]\n",
        "- rule: R\n  match: {rules: [F]}\n"
        "  actions: [{action: a, actionner: kubernetes:exec, parameters: {command: [ls]}}]\n",
        "- rule: R\n  match: {rules: [F]}\n"
        "  actions: [{action: a, actionner: kubernetes:exec, parameters: {command: !!int ls}}]\n",
        "- rule: R\n  match: {rules: [F]}\n"
        "  actions: [{action: a, actionner: kubernetes:script, parameters: {file: [x]}}]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:download,"
        " parameters: {file: x}, output: [x]}]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:log,"
        " output: {target: aws:s3, parameters: x}}]\n",
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, action: b, actionner: kubernetes:cordon}]\n",
        "- rule: [R]\n" + TERMINATE,
        "- [rule: R]\n",
        "- action: [t]\n  actionner: kubernetes:cordon\n- rule: R\n  match: {rules: [F]}\n  actions: [{action: t}]\n",
        "- action: t\n  actionner: {x: y}\n- rule: R\n  match: {rules: [F]}\n  actions: [{action: t}]\n",
        "- action: t\n  parameters: [labels]\n- rule: R\n  match: {rules: [F]}\n"
        "  actions: [{action: t, actionner: kubernetes:label}]\n",
        "- action: t\n  actionner: kubernetes:log\n  output: {target: aws:s3, parameters: {bucket: b, l: [a]}}\n"
        "- rule: R\n  match: {rules: [F]}\n  actions: [{action: t, output: [x]}]\n",
    ],
)  # fmt: skip
def test_a_wrong_type_gives_no_further_problem(problems_of: ProblemsOf, text: str) -> None:
    (problem,) = problems_of(text)
    assert problem.code in ("yaml-type", "yaml-duplicate-key", "param-type")


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("- rule: R\n  match: {rules: [F]}\n actions: []\n", "yaml-syntax"),
        ("- action: t\n  actionner: kubernetes:terminate\n- rule: 'R'\n  match: {rules: [F\n", "yaml-syntax"),
        ('- "rule": "R"\n  match: {rules: [*f]}\n- action: t\n', "yaml-syntax"),
        ("- {action: t, actionner: kubernetes:exec: x}\n- {rule: R}\n", "yaml-syntax"),
        ("- rule: >-\n    R\n  description: é\n".replace("é", "\x01"), "yaml-syntax"),
        ("- rule: R\n  x: " + "[" * 100 + "]" * 100 + "\n- action: t\n", "yaml-limit"),
        ("- rule: R\n  actions: &a [*a]\n- action: t\n", "yaml-limit"),
        ("rule: R\naction: t\n", "yaml-type"),
    ],
)
def test_what_may_stand_in_what_is_not_read_is_not_called_missing(
    problems_of: ProblemsOf, broken: str, code: str
) -> None:
    incomplete = "- rule: R\n- rule: S\n  match: {rules: [F]}\n  actions: [{action: t}]\n"
    missing = {"no-action": r"\bR\b", "actionner-missing": r"\bt\b"}
    told = [problem.code for problem in problems_of(broken, incomplete)]
    assert told == [code, *(what for what, name in missing.items() if not re.search(name, broken))]
    # It is told when the broken file speaks of something else.
    other = re.sub("|".join(missing.values()), "other", broken)
    assert [problem.code for problem in problems_of(other, incomplete)] == [code, *missing]


def test_items_before_a_syntax_error_count_but_the_last(problems_of: ProblemsOf) -> None:
    good = "- action: t\n  actionner: kubernetes:cordon\n"
    problems = problems_of(good + "- rule: P\n  match: {priority: Info}\n" + CORDON + "- rule: Q\n actions: []\n",
                           "- rule: R\n  match: {rules: [F]}\n  actions: [{action: t}]\n")  # fmt: skip
    assert briefly(problems) == [("1.yaml", "yaml-syntax", 7), ("1.yaml", "priority", 4)]


def test_a_file_that_is_no_text_may_say_anything_it_names(problems_of: ProblemsOf) -> None:
    with pytest.raises(RulesError) as caught:
        load([("a", b"- rule: R\n  x: \xff\n"), ("b", b"- rule: R\n- rule: S\n")], CATALOGUE)
    assert [(problem.code, problem.rule) for problem in caught.value.problems] == [
        ("yaml-syntax", ""),
        ("no-action", "S"),
    ]


def test_with_files_missing_only_what_is_there_is_judged() -> None:
    text = b"- rule: R\n  continue: maybe\n- rule: S\n  actions: [{action: t}, {action: u, actionner: x:y}]\n"
    with pytest.raises(RulesError) as caught:
        load([("f", text)], CATALOGUE, is_partial=True)
    assert [problem.code for problem in caught.value.problems] == ["continue-value", "actionner-unknown"]


def test_a_problem_below_an_alias_is_told_once(problems_of: ProblemsOf) -> None:
    text = "".join(f"- rule: R{number}\n  match: *m\n" + CORDON for number in range(5))
    problems = problems_of(text.replace("*m", "&m {rules: F}", 1))
    assert [problem.code for problem in problems] == ["yaml-type"]


def test_an_action_without_actionner_is_told_once(problems_of: ProblemsOf) -> None:
    problems = problems_of("- rule: R\n  match: {rules: [F]}\n  actions: [{action: a}]\n")
    assert [problem.code for problem in problems] == ["actionner-missing"]


def test_an_unknown_output_without_parameters_is_told_twice(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        "- rule: R\n  match: {rules: [F]}\n"
        "  actions: [{action: a, actionner: kubernetes:log, output: {target: local:fil}}]\n"
    )
    assert [problem.code for problem in problems] == ["output-no-parameters", "output-unknown"]


def test_names_in_what_is_not_read() -> None:
    unread = Unread()
    assert not unread.names("rule", "R")
    unread.add("- rule: 'Kill a\n    shell'\n- action: it's\n")
    assert unread.names("rule", "Kill a shell")
    assert unread.names("action", "it's")
    assert not unread.names("action", "Kill a shell")
    assert Unread(everything=True).names("rule", "x")


def test_looking_for_names_is_bounded() -> None:
    unread = Unread()
    unread.add("nothing")
    assert [unread.names("rule", f"R{number}") for number in range(MAX_SEARCHES + 1)] == [
        *([False] * MAX_SEARCHES),
        True,
    ]
