"""`stoop rules check` and `stoop rules print`, and how every command loads rules files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
import yaml

from stoop.catalogue import CATALOGUE
from stoop.cli import FINDINGS, FINE, USAGE
from stoop.cli.options import ConfigOption, RulesOption, config_path, load_config, read_input
from stoop.cli.screen import err, out, raw, text
from stoop.config import PodsFrom
from stoop.errors import Problem, RulesError, UserError
from stoop.extras import missing
from stoop.rules import ActionForm, Loaded, RuleForm, load

UNREADABLE = "unreadable"
"""The code of a problem that is no fault of what a file says: there is no such file, or it can't be read."""

FilesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="The same as --rules FILE.", show_default=False)
]


def check(files: FilesArgument = None, rules: RulesOption = None, config: ConfigOption = None) -> int:
    """Check rules files.

    Every problem is told with its place, and what is odd. Exit 1 when they can't be used, 2 when a file can't be read.
    Where there is a configuration, what it leaves unknown (pods.source) and a rule asks for is a problem too.
    """
    try:
        loaded = _fit_here(load_rules(rules_files([*(files or ()), *(rules or ())], config)), config)
    except RulesError as error:
        if all(problem.code == UNREADABLE for problem in error.problems):
            raise  # of the rules there is nothing to say
        for problem in (*error.warnings, *error.problems):
            _tell(problem)
        count = len(error.problems)
        err().print(text((f"{count} problem{'s' if count != 1 else ''}: these rules can't be used", "bold red")))
        return USAGE if any(problem.code == UNREADABLE for problem in error.problems) else FINDINGS
    for warning in loaded.warnings:
        _tell(warning)
    out().print(text(("rules file valid", "green"), f": {len(loaded.rules)} rules, digest {loaded.digest[:12]}"))
    return FINE


def _fit_here(loaded: Loaded, config: str | None) -> Loaded:
    """The same rules, if this node has what they need by its configuration. Raises RulesError.

    Without a configuration it is not known which node they are for: what they need is a warning then.
    """
    if not loaded.metadata:
        return loaded
    source = load_config(config).pods.source
    if source is PodsFrom.NONE:
        if config_path(config) is not None:
            raise RulesError(loaded.metadata, loaded.warnings)
        return msgspec.structs.replace(loaded, warnings=(*loaded.warnings, *map(_as_warning, loaded.metadata)))
    if source.is_asked and (lacking := missing("pods")):
        message = f"{lacking} is not installed, which pods.source: {source} needs"
        hint = "pip install 'stoop[pods]'"
        problems = [dataclasses.replace(problem, message=message, hint=hint) for problem in loaded.metadata]
        raise RulesError(problems, loaded.warnings)
    return loaded


def _as_warning(problem: Problem) -> Problem:
    return dataclasses.replace(problem, warning=True)


def print_rules(files: FilesArgument = None, rules: RulesOption = None, config: ConfigOption = None) -> int:
    """Print the rules in effect.

    Merged over all files, with what their actions inherit.
    """
    loaded = load_with_warnings([*(files or ()), *(rules or ())], config)
    raw("---")
    raw(yaml.safe_dump([_rule(form) for form in loaded.rules], sort_keys=False, allow_unicode=False, width=120))
    return FINE


def rules_files(rules: Sequence[str] | None, config: str | None) -> tuple[str, ...]:
    """The rules files that count: the flag's, else the configuration's. Raises UserError when there are none."""
    files = tuple(rules) if rules else load_config(config).rules_files
    if not files:
        raise UserError("no rules files", hint="name one with --rules")
    return files


def load_rules(files: Sequence[str]) -> Loaded:
    """Read and check these files. Raises RulesError with every problem; what can't be read is among them."""
    read, unreadable = [], []
    for name in files:
        try:
            read.append((name, read_input(name)))
        except UserError as error:
            unreadable.append(Problem(UNREADABLE, error.what, error.where, hint=error.hint))
    try:
        loaded = load(read, CATALOGUE, is_partial=bool(unreadable))
    except RulesError as error:
        raise RulesError([*unreadable, *error.problems], error.warnings) from error
    if unreadable:
        raise RulesError(unreadable, loaded.warnings)
    return loaded


def load_with_warnings(rules: Sequence[str] | None, config: str | None) -> Loaded:
    """The same for commands that go on to use them: warnings are told on stderr."""
    loaded = load_rules(rules_files(rules, config))
    for warning in loaded.warnings:
        _tell(warning)
    return loaded


def _tell(problem: Problem) -> None:
    mark = ("warning: ", "yellow") if problem.warning else ("error: ", "red")
    err().print(text(mark, str(problem)))


def _rule(form: RuleForm) -> dict[str, Any]:
    """A rule as it would stand in a file; what says nothing is left out."""
    match = {
        "rules": list(form.match.rules),
        "output_fields": list(form.match.output_fields),
        "priority": form.match.priority,
        "source": form.match.source,
        "tags": list(form.match.tags),
    }
    told = {
        "rule": form.rule,
        "description": form.description,
        "match": {key: value for key, value in match.items() if value},
        "continue": form.continue_,
        "dry_run": form.dry_run,
        "allow_host": form.allow_host or None,
        "match_all": form.match_all or None,
        "evidence_first": form.evidence_first,
        "notifiers": list(form.notifiers),
        "actions": [action_fields(action) for action in form.actions],
    }
    return {
        key: value for key, value in told.items() if value not in ("", None, [], {}) or key in ("continue", "dry_run")
    }


def action_fields(action: ActionForm) -> dict[str, Any]:
    """An action as it would stand in a file, with everything it inherits."""
    told = {
        "action": action.action,
        "description": action.description,
        "actionner": action.actionner,
        "continue": action.continue_,
        "ignore_errors": action.ignore_errors,
        "additional_contexts": list(action.additional_contexts),
        "parameters": plain_values(action.parameters),
        "output": None
        if action.output is None
        else {"target": action.output.target, "parameters": plain_values(action.output.parameters)},
    }
    return {key: value for key, value in told.items() if value not in ("", None, [], {})}


def plain_values(value: Any) -> Any:
    """Values of a rules file as YAML and JSON can hold them."""
    return msgspec.to_builtins(value, str_keys=True)
