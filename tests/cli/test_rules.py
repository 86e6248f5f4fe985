"""`stoop rules check` and `stoop rules print`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from stoop.catalogue import CATALOGUE
from stoop.rules import load

GOOD = """\
- action: Kill it
  actionner: process:kill
  parameters: {scope: tree}
- rule: Kill a shell
  match: {rules: [Terminal shell in container], output_fields: ["proc.name=sh"], priority: ">=notice"}
  allow_host: true
  notifiers: [slack]
  actions: [{action: Kill it, ignore_errors: true}]
"""


def test_good_rules(stoop: Any, write: Callable[..., str]) -> None:
    ran = stoop("rules", "check", "-r", write("rules.yaml", GOOD))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("rules file valid: 1 rules, digest ")


def test_every_problem_with_its_place(stoop: Any, write: Callable[..., str]) -> None:
    path = write("rules.yaml", "- rule: a\n  actions: [{action: x}]\n- rule: b\n  match: {priority: bad}\n")
    ran = stoop("rules", "check", "-r", path)
    assert (ran.code, ran.out) == (1, "")
    *problems, last = ran.err.splitlines()
    assert all(line.startswith(f"error: {path}:") for line in problems)
    assert {line.split(":")[2] for line in problems} == {"2", "3", "4"}
    assert last == f"{len(problems)} problems: these rules can't be used"


def test_warnings_do_not_fail(stoop: Any, write: Callable[..., str]) -> None:
    ran = stoop("rules", "check", "-r", write("rules.yaml", GOOD.replace("notifiers", "notifyers")))
    assert ran.code == 0
    assert ran.err.startswith("warning: ")
    assert "notifyers" in ran.err


def test_several_files_are_merged_in_order(stoop: Any, write: Callable[..., str]) -> None:
    first = write("a.yaml", GOOD)
    second = write("b.yaml", "- action: Kill it\n  parameters: {scope: session}\n")
    ran = stoop("rules", "print", "-r", first, "-r", second)
    assert ran.out.startswith("---\n")
    (rule,) = yaml.safe_load(ran.out)
    assert rule["actions"] == [
        {
            "action": "Kill it",
            "actionner": "process:kill",
            "continue": True,
            "ignore_errors": True,
            "parameters": {"scope": "session"},
        }
    ]


def test_what_is_printed_means_the_same(stoop: Any, write: Callable[..., str]) -> None:
    original = load([("rules.yaml", GOOD.encode())], CATALOGUE)
    printed = stoop("rules", "print", "-r", write("rules.yaml", GOOD)).out
    again = load([("rules.yaml", printed.encode())], CATALOGUE)
    assert again.rules == original.rules


def test_the_configured_files_are_the_default(stoop: Any, write: Callable[..., str]) -> None:
    config = write("stoop.yaml", f"rules_files: [{write('rules.yaml', GOOD)}]\n")
    assert stoop("rules", "check", "-c", config).code == 0
    none = write("none.yaml", "rules_files: []\n")
    ran = stoop("rules", "check", "-c", none)
    assert (ran.code, ran.err) == (2, "stoop: no rules files (name one with --rules)\n")


def test_hostile_rules_are_escaped(
    stoop: Any, write: Callable[..., str], hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    text = yaml.safe_dump([{"rule": hostile, "match": {"priority": "bad"}, "actions": []}])
    ran = stoop("rules", "check", "-r", write("rules.yaml", text))
    assert ran.code == 1
    assert is_harmless(ran.err)


def test_files_that_cannot_be_read_are_told_beside_what_is_wrong_in_others(
    stoop: Any, write: Callable[..., str], tmp_path: Path
) -> None:
    bad = write("bad.yaml", "- rule: a\n  continue: maybe\n  actions: [{action: defined elsewhere}]\n")
    missing = str(tmp_path / "missing.yaml")
    for command in ("check", "print"):
        ran = stoop("rules", command, "-r", missing, "-r", bad, "-r", tmp_path)
        assert (ran.code, ran.out) == (2, "")
        problems = [line.partition(": ")[2] for line in ran.err.splitlines()[:3]]
        assert problems[0] == f"{missing}: can't be read: No such file or directory"
        assert problems[1] == f"{tmp_path}: can't be read: Is a directory"
        assert problems[2].startswith(f"{bad}:2:13: rule 'a': continue must be")
        assert "actionner" not in ran.err


def test_files_may_be_named_without_a_flag(stoop: Any, write: Callable[..., str]) -> None:
    first, second = write("a.yaml", GOOD), write("b.yaml", "- action: Kill it\n  parameters: {scope: session}\n")
    assert stoop("rules", "check", first).code == 0
    assert stoop("rules", "print", first, second).out == stoop("rules", "print", "-r", first, "-r", second).out
