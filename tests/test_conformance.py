"""The program behind `make conformance`, and the copy of Talon's cases that the repo keeps."""

from __future__ import annotations

import ast
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from tools.conformance import Report, main, run

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "data" / "conformance.jsonl.xz"
DOC = ROOT / "docs" / "talon.md"


@pytest.fixture(scope="module")
def report() -> Report:
    return run(CASES)


def test_every_case_holds_or_is_a_quirk(report: Report) -> None:
    assert [str(deviation) for deviation in report.deviations if not deviation.reason] == []
    assert report.passed > 1390


def test_what_is_refused_is_refused_for_the_same_reason(report: Report) -> None:
    assert report.remarks == ()


def test_every_reason_is_a_row_of_the_documentation(report: Report) -> None:
    text = DOC.read_text()
    reasons = {reason for deviation in report.deviations for reason in deviation.reason.split("; ")}
    assert {reason for reason in reasons if reason not in text} == set()


def test_every_quirk_of_the_cases_is_a_row_of_the_documentation() -> None:
    text = DOC.read_text()
    cases = map(json.loads, lzma.decompress(CASES.read_bytes()).splitlines())
    quirks = {quirk for case in cases for quirk in case.get("quirk", "").split("; ") if quirk}
    assert {quirk for quirk in quirks if quirk not in text} == set()


def test_every_test_that_the_documentation_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOC.read_text()))
    assert len(named) > 15
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text())
        assert function in {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }, (file, function)


def write(path: Path, *cases: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return str(path)


RULE = "- rule: R\n  match: {rules: [F]}\n  actions: [{action: a, actionner: kubernetes:cordon}]\n"
GOOD: dict[str, Any] = {
    "id": "m1",
    "kind": "match",
    "note": "n",
    "rules": RULE,
    "event": {"rule": "F"},
    "matched": ["R"],
}


def test_the_last_line_counts_and_the_status_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {**GOOD, "id": "m2", "matched": []}
    assert main([write(tmp_path / "a", GOOD)]) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed, 0 quirks\n"
    assert main([write(tmp_path / "b", GOOD, bad, {**bad, "id": "m3", "quirk": "odd"})]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "m2 (n): FAILED"
    assert lines[3] == "m3 (n): quirk: odd"
    assert lines[-1] == "1 passed, 1 failed, 1 quirks"


def test_the_guard_against_matching_everything_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "- rule: R\n  actions: [{action: a, actionner: kubernetes:terminate}]\n"
    case = {"id": "c1", "kind": "check", "rules": rules, "valid": True, "errors": []}
    assert main([write(tmp_path / "a", case)]) == 0
    assert capsys.readouterr().out.endswith("0 passed, 0 failed, 1 quirks\n")


@pytest.mark.parametrize("content", ["not json\n", '{"id": 1}\n', '{"id": "x", "kind": "match"}\n'])
def test_a_file_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "a"
    path.write_text(content)
    assert main([str(path)]) == 2
    assert main([str(tmp_path / "missing")]) == 2
    assert "not a file of cases" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_case_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "a"
    path.write_text(content)
    assert main([str(path)]) == 2
    told = capsys.readouterr()
    assert (told.out, "no case in it" in told.err) == ("", True)
