"""Loading: what is accepted, and that every problem is told at its place with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stoop.catalogue import CATALOGUE
from stoop.errors import Problem, RulesError
from stoop.rules import Loaded, RuleForm, load
from stoop.rules.check import MAX_ASKED, MAX_STEPS
from stoop.rules.items import MAX_RULES
from stoop.rules.load import MAX_FILES

LoadText = Callable[..., Loaded]
ProblemsOf = Callable[..., tuple[Problem, ...]]

CORDON = "  actions: [{action: a, actionner: kubernetes:cordon}]\n"
TERMINATE = "  actions: [{action: a, actionner: kubernetes:terminate}]\n"


def brief(problem: Problem) -> tuple[str, int, int]:
    return problem.code, problem.line, problem.column


# ---------------------------------------------------------------- what a rule becomes


def test_a_rule_with_everything(load_text: LoadText) -> None:
    loaded = load_text(
        """
- action: Label it
  actionner: kubernetes:label
  description: says so
  parameters: {labels: {suspicious: "true"}}
- rule: R
  description: why
  match:
    rules: [F]
    output_fields: ["proc.name=sh, k8s.ns.name!=kube-system"]
    priority: ">=Warning"
    source: syscall
    tags: ["container, shell"]
  notifiers: [slack]
  continue: false
  dry_run: "true"
  allow_host: true
  actions:
    - action: Label it
      ignore_errors: true
      continue: false
    - action: log
      actionner: kubernetes:log
      additional_contexts: [k8snode]
      output: {target: local:file, parameters: {destination: /tmp}}
"""
    )
    (form,) = loaded.rules
    assert (form.rule, form.description, form.continue_, form.dry_run) == ("R", "why", False, True)
    assert (form.allow_host, form.match_all, form.notifiers) == (True, False, ("slack",))
    assert form.match.rules == ("F",)
    assert form.match.tag_sets == (("container", "shell"),)
    assert form.match.priorities == 0b111110000
    assert [condition[0] for condition in form.match.entries[0]] == ["proc.name", "k8s.ns.name"]
    label, log = form.actions
    assert (label.actionner, label.parameters) == ("kubernetes:label", {"labels": {"suspicious": "true"}})
    assert (label.description, label.ignore_errors, label.continue_) == ("says so", True, False)
    assert log.output is not None
    assert (log.output.target, log.output.parameters) == ("local:file", {"destination": "/tmp"})
    assert (log.additional_contexts, log.continue_) == (("k8snode",), True)
    assert loaded.warnings == ()


def test_continue_defaults_to_the_actionners(load_text: LoadText) -> None:
    text = "- rule: R\n  match: {rules: [F]}\n  actions:\n"
    text += "    - {action: a, actionner: kubernetes:terminate}\n    - {action: b, actionner: kubernetes:cordon}\n"
    assert [step.continue_ for step in load_text(text).rules[0].actions] == [False, True]


def test_an_alias_of_an_actionner_gives_its_own_name() -> None:
    known = CATALOGUE.actions["kubernetes:cordon"]
    spec = msgspec.structs.replace(known.spec, aliases=("node:cordon",))
    catalogue = msgspec.structs.replace(CATALOGUE, actions={spec.name: msgspec.structs.replace(known, spec=spec)})
    text = b"- rule: R\n  actions: [{action: a, actionner: node:cordon}]\n"
    assert load([("f", text)], catalogue).rules[0].actions[0].actionner == "kubernetes:cordon"


def test_forms_survive_the_wire(load_text: LoadText) -> None:
    loaded = load_text(
        "- rule: R\n  match: {rules: [F], output_fields: [a=b], tags: [x]}\n  actions:\n"
        "    - action: a\n      actionner: kubernetes:cordon\n"
        "      parameters: {n: 18446744073709551615, f: 1.5, d: 2026-01-02, l: [{1: x, ~: y, true: z}], z: ~}\n"
    )
    sent = msgspec.msgpack.encode(loaded.rules)
    assert msgspec.msgpack.decode(sent, type=tuple[RuleForm, ...]) == loaded.rules
    assert loaded.rules[0].actions[0].parameters["d"] == "2026-01-02T00:00:00Z"


def test_the_digest_names_the_meaning_and_not_the_layout(load_text: LoadText) -> None:
    plain = load_text("- rule: R\n" + CORDON)
    assert load_text("# words\n- rule:   'R'\n" + CORDON).digest == plain.digest
    assert load_text("- rule: R\n", "- rule: R\n" + CORDON).digest == plain.digest
    assert load_text("- rule: S\n" + CORDON).digest != plain.digest


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "null\n", "~", "[]\n", "\ufeff"])
def test_files_without_rules(load_text: LoadText, text: str) -> None:
    assert load_text(text).rules == ()


def test_a_question_mark_in_a_flow_text(load_text: LoadText) -> None:
    assert load_text("- rule: R\n  match: {rules: [What is it?x]}\n" + CORDON).rules[0].match.rules == ("What is it?x",)


# ---------------------------------------------------------------- problems


def test_every_problem_is_told_structure_of_all_rules_first(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        """\
- rule: One
  continue: maybe
  match: {rules: [F], priority: Foo, tags: [a b, "a,,b"], output_fields: ["x>1, y=2"]}
  actions:
    - action: a
      actionner: kubernetes:sysdig
      parameters: {duration: 31, scope: x}
- rule: Two
  match: {rules: [F]}
  dry_run: yes
"""
    )
    assert [brief(problem) for problem in problems] == [
        ("continue-value", 2, 13),
        ("priority", 3, 33),
        ("tag", 3, 50),
        ("field-key", 3, 75),
        ("dry-run-value", 10, 12),
        ("no-action", 8, 3),
        ("param-value", 7, 20),
        ("param-value", 7, 34),
        ("output-required", 5, 7),
    ]
    assert all(problem.file == "1.yaml" for problem in problems)
    assert all(problem.hint for problem in problems if problem.code != "param-value")
    assert problems[0].rule == "One"
    assert problems[-1].action == "a"
    assert str(problems[0]).startswith("1.yaml:2:13: rule 'One': continue must be true or false, not 'maybe'")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("rule: R\n", (1, 1), "begin each rule and action with '- '"),
        ("- abc\n", (1, 3), "- rule: NAME"),
        ("- rule: R\n  match: abc\n", (2, 10), "rules, output_fields"),
        ("- rule: R\n  match: {rules: Terminal}\n", (2, 18), "[Terminal]"),
        ("- rule: [R]\n", (1, 9), "quotes"),
        ("- rule: R\n  actions: [a]\n", (2, 13), "- action: NAME"),
        ("- rule: R\n  actions: a\n", (2, 12), "- action: NAME"),
        ("- rule: R\n  actions: [{action: a, parameters: [b]}]\n", (2, 37), "mapping of names"),
        ("- rule: R\n  actions: [{action: a, output: x}]\n", (2, 33), "target, parameters"),
        ("- {? [a] : b}\n", (1, 6), "a key must be a text"),
        ("- rule: !!int x\n", (1, 9), "is not a !!int"),
        ("- <<: x\n", (1, 7), "<< takes a mapping"),
        ("- rule: R\n  notifiers: {x: y}\n", (2, 14), "list of texts"),
    ],
)
def test_wrong_types_are_told_with_what_to_write(
    problems_of: ProblemsOf, text: str, place: tuple[int, int], words: str
) -> None:
    problem = next(problem for problem in problems_of(text) if (problem.line, problem.column) == place)
    assert problem.code == "yaml-type"
    assert words in str(problem)


def test_problems_of_all_files_are_told(problems_of: ProblemsOf) -> None:
    problems = problems_of("a: b", "- rule: x: y", "- rule: R\n  rule: S\n")
    assert [(p.file, p.code) for p in problems] == [
        ("1.yaml", "yaml-type"),
        ("2.yaml", "yaml-syntax"),
        ("3.yaml", "yaml-duplicate-key"),
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("- rule: R\n  match: {priority: Info}\n" + CORDON, "Informational"),
        ("- rule: R\n  match: {output_fields: ['proc.cmdline=ls a,b']}\n" + CORDON, 'FIELD="A, B"'),
        ("- rule: R\n  match: {output_fields: ['proc.pid>5']}\n" + CORDON, "only = and !="),
        ("- rule: R\n  match:\n    priority: >=Warning\n" + CORDON, "quotes round a value that begins with >"),
        ("- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:labelize}]\n", "label now"),
        (
            "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:cordn}]\n",
            "kubernetes:cordon",
        ),
        ("- rule: R\n  continue: True\n" + CORDON, "in lower case"),
    ],
)
def test_hints(problems_of: ProblemsOf, text: str, hint: str) -> None:
    assert any(hint in problem.hint for problem in problems_of(text))


def test_what_would_crash_talon_is_an_error(problems_of: ProblemsOf) -> None:
    crashes = [
        "-\n",
        "- rule: R\n  actions: [null]\n",
        "- action: t\n  actionner: kubernetes:cordon\n  parameters: {m: {1: a}}\n- rule: R\n  actions: [{action: t}]\n",
        "- action: t\n  actionner: kubernetes:log\n  output: {target: aws:s3, parameters: {bucket: b, l: [a]}}\n"
        "- rule: R\n  actions: [{action: t}]\n",
    ]
    for text in crashes:
        assert problems_of(text)[0].code in ("yaml-type", "param-type")


def test_limits_of_one_rule(problems_of: ProblemsOf) -> None:
    names = ", ".join(f"F{number}" for number in range(MAX_ASKED + 1))
    assert problems_of(f"- rule: R\n  match: {{rules: [{names}]}}\n" + CORDON)[0].code == "rule-limit"
    steps = ", ".join("{action: a, actionner: kubernetes:cordon}" for _ in range(MAX_STEPS + 1))
    assert problems_of(f"- rule: R\n  actions: [{steps}]\n")[0].code == "rule-limit"


def test_too_many_files() -> None:
    with pytest.raises(RulesError):
        load([("f", b"")] * (MAX_FILES + 1), CATALOGUE)


def test_a_scripts_file_must_exist_where_that_can_be_told(tmp_path: Path) -> None:
    text = f"- rule: R\n  actions: [{{action: a, actionner: kubernetes:script, parameters: {{file: {tmp_path}/s}}}}]\n"
    files = [("f", text.encode())]
    assert load(files, CATALOGUE).rules
    with pytest.raises(RulesError, match="does not exist"):
        load(files, CATALOGUE, lambda path: Path(path).exists())
    (tmp_path / "s").touch()
    assert load(files, CATALOGUE, lambda path: Path(path).exists()).rules


# ---------------------------------------------------------------- bounds on what is read


@pytest.mark.parametrize(
    "text",
    [
        "- action: t\n  parameters: &p\n    x: *p\n",
        "- &m\n  <<: *m\n  rule: R\n",
        "- &a0 [x]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "- &a0 {x: 1}\n"
        + "".join(f"- &a{n} {{l: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
        + "- action: t\n  parameters: {p: *a8}\n",
        "- &m0 {k0: 1}\n" + "".join(f"- &m{n}\n  <<: *m{n - 1}\n  k{n}: 1\n" for n in range(1, 2000)),
    ],
    ids=["self", "self-merge", "bomb-of-lists", "bomb", "merge-chain"],
)
def test_aliases_are_followed_within_bounds(problems_of: ProblemsOf, text: str) -> None:
    assert {problem.code for problem in problems_of(text)} <= {"yaml-limit", "yaml-type"}


def test_an_alias_to_what_holds_it_is_fine_where_nothing_is_read(load_text: LoadText) -> None:
    assert load_text("- &a\n  rule: R\n  x: *a\n" + CORDON).rules


def test_rules_are_bounded(problems_of: ProblemsOf) -> None:
    assert [problem.code for problem in problems_of("- {rule: R}\n" * (MAX_RULES + 1))] == ["yaml-limit"]


def test_problems_and_warnings_are_bounded(problems_of: ProblemsOf, load_text: LoadText) -> None:
    assert len(problems_of("-\n" * 5000)) < 1000
    keys = "".join(f"  key{number}: 1\n" for number in range(5000))
    assert len(load_text("- rule: R\n" + keys + f"  {'x' * 500}: 1\n" + CORDON).warnings) < 1000
    assert load_text(f"- rule: R\n  {'x' * 500}: 1\n" + CORDON).warnings[0].hint.startswith("known here")


# ---------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("text", "code", "place", "hint"),
    [
        ("- rule: R\n  matches: {rules: [F]}\n" + CORDON, "unknown-key", (2, 3), "did you mean match?"),
        ("- rule: R\n  match: {rule: [F]}\n" + CORDON, "unknown-key", (2, 11), "did you mean rules?"),
        ("- rule: R\n  enabled: false\n" + CORDON, "unknown-key", (2, 3), "dry_run"),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, contexts: [aws]}]\n", "unknown-key",
         (2, 55), "additional_contexts"),
        ("- rule: R\n  tags: [a]\n" + CORDON, "unknown-key", (2, 3), "it belongs under match"),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:cordon, dry_run: true}]\n", "unknown-key",
         (2, 55), "it is a key of the rule"),
        ("- rule: R\n  ignore_errors: true\n" + CORDON, "unknown-key", (2, 3), "it is a key of an action"),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:log, target: aws:s3}]\n", "unknown-key",
         (2, 52), "it belongs under output"),
        ("- Rule: R\n", "nameless", (1, 3), "write rule for Rule"),
        ("- rule: ''\n", "nameless", (1, 3), "give it a name"),
        ("- rule: R\n" + CORDON + "---\n- rule: S\n" + CORDON, "documents", (0, 0), "one file each"),
        ("- rule: R\n  match: {priority: '>'}\n" + CORDON, "priority", (2, 21), "name one"),
        ("- rule: R\n  match: {output_fields: ['!=x']}\n" + CORDON, "field-key", (2, 27), ""),
        ("- rule: R\n  match: {output_fields: ['proc.aname[!=x']}\n" + CORDON, "field-key", (2, 27), ""),
        ("- rule: R\n  match: {tags: [~]}\n" + CORDON, "empty-entry", (2, 18), ""),
        ("- rule: R\n  notifiers: [slak]\n" + CORDON, "notifier-unknown", (2, 15), "did you mean slack?"),
        ("- rule: R\n  actions: [{action: a, actionner: kubernetes:networkpolicy, parameters: {allow: [x]}}]\n",
         "parameter-unknown", (2, 75), "did you mean allow_cidr?"),
        ("- action: a\n  actionner: kubernetes:terminate\n  parameters: {grace_period_seconds: 5}\n"
         "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, parameters: {grace_period_seconds: 1.5}}]\n",
         "param-kind-mismatch", (6, 38), ""),
    ],
)  # fmt: skip
def test_warnings(load_text: LoadText, text: str, code: str, place: tuple[int, int], hint: str) -> None:
    warning = next(warning for warning in load_text(text).warnings if warning.code == code)
    assert warning.warning
    assert (warning.line, warning.column) == place
    assert hint in warning.hint


# ---------------------------------------------------------------- a rule that matches everything


@pytest.mark.parametrize(
    "match",
    ["", "  match:\n", "  match: {}\n", "  matches: {rules: [F]}\n", "  match: {rule: [F]}\n", "  match: {tags: [~]}\n",
     "  match: {priority: '>'}\n", "  match: {rules: [], source: ''}\n"],
)  # fmt: skip
def test_destroying_on_every_alert_must_be_said(problems_of: ProblemsOf, load_text: LoadText, match: str) -> None:
    (problem,) = problems_of("- rule: R\n" + match + TERMINATE)
    assert problem.code == "match-all"
    assert "match_all: true" in problem.hint
    assert load_text("- rule: R\n" + match + TERMINATE + "  match_all: true\n").rules[0].match_all
    assert load_text("- rule: R\n" + match + CORDON).rules


def test_the_misspelt_key_is_named(problems_of: ProblemsOf) -> None:
    (problem,) = problems_of("- rule: R\n  matches: {rules: [F]}\n" + TERMINATE)
    assert (problem.line, problem.column) == (2, 3)
    assert "did you mean match? if not, give it a match" in problem.hint


def test_a_criterion_in_the_wrong_place_is_named(problems_of: ProblemsOf) -> None:
    (problem,) = problems_of("- rule: R\n  rules: [F]\n" + TERMINATE)
    assert (problem.line, problem.column) == (2, 3)
    assert problem.hint.startswith("it belongs under match; if not, give it a match")


def test_a_criterion_that_is_wrong_does_not_count_as_everything(problems_of: ProblemsOf) -> None:
    assert [p.code for p in problems_of("- rule: R\n  match: {priority: Foo}\n" + TERMINATE)] == ["priority"]


@pytest.mark.parametrize("value", ["maybe", "True", "1"])
def test_stoops_own_keys_take_true_and_false(problems_of: ProblemsOf, value: str) -> None:
    codes = [p.code for p in problems_of(f"- rule: R\n  allow_host: {value}\n  match_all: {value}\n" + CORDON)]
    assert codes == ["allow-host-value", "match-all-value"]
    assert [p.code for p in problems_of(f"- rule: R\n  evidence_first: {value}\n" + CORDON)] == ["evidence-first-value"]
