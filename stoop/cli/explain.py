"""`stoop explain`: which rules match an alert and why, and what would then be done."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.cli import FINDINGS, FINE
from stoop.cli.alerts import split
from stoop.cli.options import ConfigOption, JsonOption, RulesOption, load_config, read_input
from stoop.cli.replay import Settings, replay, would_act
from stoop.cli.replay_command import settings_of
from stoop.cli.rules import load_with_warnings, plain_values
from stoop.cli.screen import OUTCOME_STYLES, json_line, out, plain, text, warn
from stoop.errors import UserError
from stoop.log import timestamp
from stoop.record import Record
from stoop.rules import Loaded, RuleForm
from stoop.rules.explain import Answer, Check, Criterion, Explanation, explain_all

MARKS = {Answer.YES: ("✓", "green"), Answer.NO: ("✗", "red"), Answer.NEEDS: ("?", "yellow")}


def explain(
    alert: Annotated[str, typer.Argument(help="A file with one alert; - for standard input.", show_default=False)],
    rules: RulesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say which rules match an alert, and why.

    Each rule: matched, or which condition failed and with what value; then the plan. Exit 1 when no rule matches.
    """
    found = split(read_input(alert))
    if not found:
        raise UserError("there is no alert in it", where=alert)
    if len(found) > 1:
        warn(f"{len(found)} alerts in {alert}: the first is explained (`stoop replay` takes all)")
    decoded = decode(found[0])
    loaded = load_with_warnings(rules, config)
    explained = explain_all(loaded.rules, decoded)
    plan = _plan(decoded, loaded, explained, settings_of(load_config(config)))
    if as_json:
        json_line({"alert": _about(decoded), "rules": msgspec.to_builtins(explained), "plan": plan})
    else:
        _show(decoded, explained, plan)
    return FINE if any(explanation.acts for explanation in explained) else FINDINGS


def _about(alert: Alert) -> dict[str, Any]:
    return {
        "rule": alert.rule,
        "priority": alert.priority_text,
        "source": alert.source,
        "time": timestamp(alert.time_ns) if alert.time_ns else None,
        "hostname": alert.hostname,
        "tags": list(alert.tags),
        "output": alert.output,
    }


def _plan(alert: Alert, loaded: Loaded, explained: tuple[Explanation, ...], settings: Settings) -> list[dict[str, Any]]:
    """Every action of each rule that matches (or may), and what comes of it where the node confirms the alert."""
    told: defaultdict[tuple[str, str], deque[Record]] = defaultdict(deque)
    for _, _, record in replay([alert], loaded.rules, CATALOGUE, settings).records:
        told[record.rule, record.action].append(record)
    steps: list[dict[str, Any]] = []
    for form, explanation in zip(loaded.rules, explained, strict=True):
        if explanation.acts:
            steps += [_step(form, index, told) for index in range(len(form.actions))]
    return steps


def _step(form: RuleForm, index: int, told: Mapping[tuple[str, str], deque[Record]]) -> dict[str, Any]:
    action = form.actions[index]
    # Actions of one name are carried out, and recorded, in the order of the rule.
    records = told[form.rule, action.action]
    record = records.popleft() if records else None
    outcome, reason = ("", "not reached") if record is None else (str(record.verdict), record.reason)
    return {
        "rule": form.rule,
        "action": action.action,
        "actionner": action.actionner,
        "parameters": plain_values(action.parameters),
        "output": None if action.output is None else action.output.target,
        "continue": action.continue_,
        "ignore_errors": action.ignore_errors,
        "dry_run": form.dry_run,
        "acts": record is not None and would_act(record),
        "outcome": outcome,
        "reason": reason,
    }


# ---------------------------------------------------------------- for a person


def _show(alert: Alert, explained: tuple[Explanation, ...], plan: list[dict[str, Any]]) -> None:
    console = out()
    about = _about(alert)
    console.print(text(("alert  ", "bold"), f"{about['priority']} · {alert.rule} · {about['time'] or 'no time'}"))
    console.print(text(("       ", ""), (alert.output, "dim")))
    for explanation in explained:
        _show_rule(console, explanation)
    console.print(text(("plan", "bold"), "" if plan else "  nothing: no rule matches"))
    for number, step in enumerate(plan, 1):
        console.print(_plan_line(number, step))


def _show_rule(console: Console, explanation: Explanation) -> None:
    said = {Answer.YES: "matches", Answer.NO: "does not match", Answer.NEEDS: "may match"}[explanation.answer]
    if explanation.stopped_by:
        said = f"is not looked at: {explanation.stopped_by} matches and has continue: false"
    mark = ("-", "dim") if explanation.stopped_by else MARKS[explanation.answer]
    console.print(text(mark, " ", (explanation.rule, "bold"), f"  {said}"))
    for criterion in explanation.criteria:
        _show_criterion(console, criterion)
    if explanation.needs:
        console.print(text(f"    the alert does not tell {', '.join(explanation.needs)}: the agent asks the node"))


def _show_criterion(console: Console, criterion: Criterion) -> None:
    line = text("    ", MARKS[criterion.answer], f" {criterion.name}")
    if criterion.name != "output_fields":
        line.append_text(text(f": {criterion.found!r}" if criterion.found else ": empty"))
        if criterion.answer is Answer.NO:
            line.append_text(text(f", wanted {' or '.join(map(repr, criterion.wanted))}"))
    console.print(line)
    for number, entry in enumerate(criterion.entries):
        if number:
            console.print("      or", style="dim")
        for check in entry:
            console.print(_check_line(check))


def _check_line(check: Check) -> Text:
    line = text("      ", MARKS[check.answer], f" {check.condition}")
    if check.value is None:
        line.append("  the alert has no such field", "dim")
    elif check.answer is not Answer.YES or "!=" in check.condition:
        value = "null" if check.value == "<nil>" else plain(repr(check.value))
        line.append(f"  {'the node says' if check.told else 'it is'} {value}", "dim")
    return line


def _plan_line(number: int, step: dict[str, Any]) -> Text:
    parameters = f" {step['parameters']}" if step["parameters"] else ""
    line = text(f"  {number}. ", (step["rule"], "bold"), f": {step['action']} ({step['actionner']}{parameters})")
    if step["acts"]:
        line.append_text(text(" → ", ("would be done", OUTCOME_STYLES["would"])))
    elif step["outcome"]:
        line.append_text(text(" → ", (step["outcome"], OUTCOME_STYLES[step["outcome"]]), f": {step['reason']}"))
    else:
        line.append_text(text(f" → {step['reason']}"))
    if not step["continue"]:
        line.append(", then this rule ends", "dim")
    return line
