"""Run cases of Falco Talon's behaviour against Stoop: `python -m tools.conformance FILE` (`.jsonl` or `.jsonl.xz`).

Prints each deviation (id, what Stoop gives, what Talon gives, why) and last `N passed, N failed, N quirks`. A deviation
is a quirk when the file marks the case so, or when it is one of `conformance_deviations.DEVIATIONS`; each is explained
in docs/talon.md. Exit status 1 when a case failed, 2 when the file can't be read.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stoop import engine
from stoop.alert import decode
from stoop.catalogue import CATALOGUE
from stoop.errors import AlertError, Problem, RulesError
from stoop.rules import ActionForm, Loaded, Rule, RuleForm, RuleSet, load
from tools.conformance_decode import check_decode_case
from tools.conformance_deviations import listed_reason

FILE_SEPARATOR = "---FILE---\n"


class Deviation(NamedTuple):
    """A case on which Stoop differs. `reason` is empty when it may not."""

    id: str
    note: str
    gave: str
    wanted: str
    reason: str

    def __str__(self) -> str:
        kind = f"quirk: {self.reason}" if self.reason else "FAILED"
        return f"{self.id} ({self.note}): {kind}\n    Stoop: {self.gave}\n    Talon: {self.wanted}"


class Report(NamedTuple):
    """What a run gives. `remarks`: checks with the right answer, told with other codes than Talon's."""

    passed: int
    deviations: tuple[Deviation, ...]
    remarks: tuple[str, ...]

    @property
    def failed(self) -> int:
        """How many cases deviate without a reason."""
        return sum(not deviation.reason for deviation in self.deviations)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {len(self.deviations) - self.failed} quirks"


class Difference(NamedTuple):
    """What Stoop gives instead of what Talon gives; `codes`: of the problems, or the kind of a decoder's deviation."""

    gave: str
    wanted: str
    codes: tuple[str, ...] = ()


# ---------------------------------------------------------------- the kinds of cases


def split_files(rules: str) -> list[tuple[str, bytes]]:
    """The rules files of a case."""
    parts = rules.split(FILE_SEPARATOR)
    return [(f"file {number}", part.encode("utf-8", "surrogatepass")) for number, part in enumerate(parts, 1)]


def _load(case: dict[str, Any]) -> Loaded | tuple[Problem, ...]:
    try:
        return load(split_files(case["rules"]), CATALOGUE, os.path.exists)
    except RulesError as error:
        return error.problems


def _refused(problems: Iterable[Problem], wanted: str) -> Difference:
    codes = tuple(problem.code for problem in problems)
    return Difference("refused: " + "; ".join(map(str, problems)), wanted, codes)


def _matching(loaded: Loaded, event: bytes) -> list[Rule]:
    alert = decode(event)
    return [rule for rule in RuleSet.of(loaded.rules).route(alert) if rule.test(alert, {}).certain]


def check_match(case: dict[str, Any], event: bytes) -> Difference | None:
    """Which rules match."""
    loaded = _load(case)
    if not isinstance(loaded, Loaded):
        return _refused(loaded, f"matched {case['matched']}")
    matched = [rule.form.rule for rule in _matching(loaded, event)]
    return None if matched == case["matched"] else Difference(f"matched {matched}", f"matched {case['matched']}")


def plan_of(loaded: Loaded, event: bytes) -> list[RuleForm]:
    """The matching rules, up to the first that lets no further one run."""
    plan = []
    for rule in _matching(loaded, event):
        plan.append(rule.form)
        if not rule.form.continue_:
            break
    return plan


def _shown_action(action: ActionForm) -> dict[str, Any]:
    output = action.output
    return {
        "action": action.action,
        "actionner": action.actionner,
        "description": action.description,
        "parameters": action.parameters,
        "output": output and {"target": output.target, "parameters": output.parameters},
        "continue": action.continue_,
        "ignore_errors": action.ignore_errors,
        "additional_contexts": list(action.additional_contexts),
    }


def _shown_rule(form: RuleForm) -> dict[str, Any]:
    return {
        "rule": form.rule,
        "description": form.description,
        "dry_run": form.dry_run,
        "continue": form.continue_,
        "notifiers": list(form.notifiers),
        "actions": [_shown_action(action) for action in form.actions],
    }


def run_of(plan: Iterable[RuleForm], is_error: bool) -> list[list[str]]:
    """The acts that are run when each succeeds or each fails. What is not carried out (dry_run) counts as success."""
    done = []
    for form in plan:
        for action in form.actions:
            done.append([form.rule, action.action, "dry" if form.dry_run else "run"])
            if not engine.should_continue(action, is_error and not form.dry_run):
                break
    return done


def check_plan(case: dict[str, Any], event: bytes) -> Difference | None:
    """Which actions of which rules, with what merged into them, in what order."""
    loaded = _load(case)
    wanted = {name: case[name] for name in ("plan", "run_ok", "run_err")}
    if not isinstance(loaded, Loaded):
        return _refused(loaded, json.dumps(wanted)) if case["valid"] else None
    plan = plan_of(loaded, event)
    gave: dict[str, Any] = {
        # Through JSON as in the file: keys become texts.
        "plan": json.loads(json.dumps([_shown_rule(form) for form in plan])),
        "run_ok": run_of(plan, is_error=False),
        "run_err": run_of(plan, is_error=True),
    }
    if gave == wanted and case["valid"]:
        return None
    different = [name for name in wanted if gave[name] != wanted[name]] or ["valid"]
    return Difference(
        "; ".join(f"{name} {json.dumps(gave.get(name, True))}" for name in different),
        "; ".join(f"{name} {json.dumps(wanted.get(name, False))}" for name in different),
    )


def check_check(case: dict[str, Any]) -> Difference | None:
    """Whether the rules are good."""
    loaded = _load(case)
    if not isinstance(loaded, Loaded):
        return _refused(loaded, "valid") if case["valid"] else None
    return None if case["valid"] else Difference("valid", f"refused: {json.dumps(case['errors'])}")


def _diagnosis(errors: Iterable[tuple[str, str, str, list[str]]]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Codes by rule and action in order, the details of equal ones gathered."""
    gathered: dict[tuple[str, str, str], list[str]] = {}
    for code, rule, action, details in errors:
        gathered.setdefault((code, rule, action), []).extend(details)
    return [(*key, tuple(sorted(set(details)))) for key, details in gathered.items()]


_DETAILED = frozenset({"priority", "tag", "field-key", "param-type", "param-required", "param-value", "param-empty"})
_STRUCTURAL = frozenset(
    {
        "continue-value",
        "dry-run-value",
        "ignore-errors-value",
        "no-action",
        "action-no-name",
        "actionner-missing",
        "actionner-form",
        "output-no-parameters",
        "priority",
        "tag",
        "field-key",
    }
)


def remark_of(case: dict[str, Any]) -> str | None:
    """Whether a refused file is refused with the codes that Talon's messages were given."""
    loaded = _load(case)
    if isinstance(loaded, Loaded) or case["valid"] or case.get("crash") or "quirk" in case:
        return None
    problems = [problem for problem in loaded if problem.code != "match-all"]
    if any(problem.code in _STRUCTURAL for problem in problems):
        problems = [problem for problem in problems if problem.code in _STRUCTURAL]
    gave = _diagnosis((p.code, p.rule, p.action, [p.detail] if p.code in _DETAILED else []) for p in problems)
    missing = {(e["rule"], e["action"]) for e in case["errors"] if e["code"] == "actionner-missing"}
    wanted = _diagnosis(
        _wanted(error)
        for error in case["errors"]
        if error["code"] != "param-kind-mismatch"
        # Of an actionner that is missing Talon says also that the empty text has not the form of one.
        and not (error["code"] == "actionner-form" and (error["rule"], error["action"]) in missing)
    )
    if wanted and wanted[0][0].startswith("yaml-"):
        gave = [(gave[0][0], "", "", ())]
    return None if gave == wanted else f"{case['id']} ({case['note']}): codes {gave}, Talon's {wanted}"


def _wanted(error: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    detail = error.get("detail", "") if error["code"] in _DETAILED else []
    details = detail if isinstance(detail, list) else [detail]
    return error["code"], error.get("rule", ""), error.get("action", ""), details


# ---------------------------------------------------------------- all of them


def deviation_of(case: dict[str, Any], event: bytes) -> Deviation | None:
    """How Stoop differs on one case, if it does."""
    kind = case["kind"]
    if kind == "decode":
        said = check_decode_case(case)
        difference = None if said is None else Difference(said, "as the case says", (said.partition(":")[0],))
    elif kind == "check":
        difference = check_check(case)
    else:
        difference = _check_event(check_match if kind == "match" else check_plan, case, event)
    if difference is None:
        return None
    reason = case.get("quirk") or listed_reason(case, difference.codes)
    return Deviation(case["id"], case.get("note", ""), difference.gave, difference.wanted, reason)


def _check_event(
    check: Callable[[dict[str, Any], bytes], Difference | None], case: dict[str, Any], event: bytes
) -> Difference | None:
    try:
        return check(case, event)
    except AlertError as error:
        return Difference(f"no alert: {error}", "an alert", (error.kind,))


def read_cases(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each case, and its event as the bytes that it is (numbers keep their form)."""
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    for line in content.split(b"\n"):
        if line.strip():
            raw = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            yield json.loads(line), bytes(raw.get("event", b"null"))


def run(path: Path) -> Report:
    """All cases of a file."""
    passed = 0
    deviations, remarks = [], []
    for case, event in read_cases(path):
        deviation = deviation_of(case, event)
        if deviation is not None:
            deviations.append(deviation)
            continue
        passed += 1
        remark = remark_of(case) if case["kind"] == "check" else None
        if remark is not None:
            remarks.append(remark)
    return Report(passed, tuple(deviations), tuple(remarks))


def main(arguments: list[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(prog="conformance", description="Compare Stoop with cases of Falco Talon.")
    parser.add_argument("file", type=Path, help="cases, one JSON object a line; .xz is unpacked")
    path = parser.parse_args(arguments).file
    try:
        report = run(path)
    except (OSError, lzma.LZMAError, json.JSONDecodeError, msgspec.DecodeError, KeyError) as error:
        print(f"{path}: not a file of cases: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if not report.passed and not report.deviations:
        print(f"{path}: there is no case in it", file=sys.stderr)  # noqa: T201
        return 2
    for line in (*report.deviations, *report.remarks, report):
        print(line)  # noqa: T201
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
