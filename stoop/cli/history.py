"""`stoop history`: what was done, from the journal; with -f what is being done, from the running agent."""

from __future__ import annotations

import enum
import sys
import time
from typing import Annotated, Any

import typer

from stoop import control
from stoop.cli import FINE
from stoop.cli.live import time_span
from stoop.cli.options import ConfigOption, JsonOption, control_path, load_config
from stoop.cli.records import record_line
from stoop.cli.screen import json_line, out
from stoop.errors import UserError


class OutcomeWord(enum.StrEnum):
    """How an act may have ended, as words of the command line."""

    DONE = "done"
    SKIPPED = "skipped"
    REFUSED = "refused"
    FAILED = "failed"
    EXPIRED = "expired"
    WOULD = "would"


def history(  # noqa: PLR0913 - a command's flags are its parameters
    config: ConfigOption = None,
    as_json: JsonOption = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only this far back, such as 1h.", show_default=False)
    ] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="Only this rule.", show_default=False)] = None,
    outcome: Annotated[
        OutcomeWord | None, typer.Option("--outcome", help="Only this outcome.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the last N.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Then go on with what the agent does, until Ctrl-C.")
    ] = False,
) -> int:
    """Show what was done, one line an act.

    The oldest comes first.
    """
    since_ns = None if since is None else time.time_ns() - time_span(since, "--since")
    loaded = load_config(config)
    wanted = None if outcome is None else str(outcome.value)
    if not follow:
        _show_past(loaded.state_dir, as_json, since_ns=since_ns, rule=rule, outcome=wanted, limit=limit)
        return FINE
    # Followed first, then read: no record falls between the two, and what is in both is shown once.
    with control.Follow(control_path(config)) as live:
        shown = _show_past(loaded.state_dir, as_json, since_ns=since_ns, rule=rule, outcome=wanted, limit=limit)
        for record in live:
            wants = (rule is None or record.get("rule") == rule) and wanted in (None, record.get("outcome"))
            if wants and _key(record) not in shown:
                _show(record, as_json)
                sys.stdout.flush()
    raise UserError("the agent ended", hint="`stoop history` without -f reads its journal")


def _key(record: dict[str, Any]) -> tuple[Any, Any, Any]:
    details = record.get("details") or {}
    return record.get("act"), record.get("amended"), details.get("restarted_as")


def _show_past(state_dir: str, as_json: bool, **asked: Any) -> set[tuple[Any, Any, Any]]:
    """Show what the journal holds; which records it was."""
    # Only who asks for history pays for SQLite.
    from stoop.history import read

    shown = set()
    for record in read(state_dir, **asked):
        _show(record, as_json)
        shown.add(_key(record))
    return shown


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        json_line(record)
    else:
        out().print(record_line(record))
