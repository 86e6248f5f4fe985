"""`stoop history`: what was done, from the journal; with -f what is being done, from the running agent."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stoop import control
from stoop.cli import FINE
from stoop.cli.live import time_span
from stoop.cli.options import ConfigOption, JsonOption, control_path, load_config
from stoop.cli.records import record_line
from stoop.cli.screen import json_line, out
from stoop.errors import UserError
from stoop.history import read

OutcomeWord = enum.StrEnum("OutcomeWord", ["done", "skipped", "refused", "failed", "expired", "would"])  # type: ignore[misc]


def history(  # noqa: PLR0913 - a command's flags are its parameters
    config: ConfigOption = None,
    as_json: JsonOption = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only this far back, such as 1h.", show_default=False)
    ] = None,
    rule: Annotated[str | None, typer.Option("--rule", help="Only this rule.", show_default=False)] = None,
    outcome: Annotated[OutcomeWord | None, typer.Option("--outcome", help="Only this outcome.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most the last N.", metavar="N")] = 1000,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then go on with what the agent does, until Ctrl-C.")] = False,
) -> int:
    """What was done: one line an act, the oldest first."""
    since_ns = None if since is None else time.time_ns() - time_span(since, "--since")
    loaded = load_config(config)
    wanted = None if outcome is None else str(outcome.value)
    # Followed first, so that no record falls between what was read and what follows.
    live = control.Follow(control_path(config)) if follow else None
    if live is None:
        _show_past(loaded.state_dir, as_json, since_ns=since_ns, rule=rule, outcome=wanted, limit=limit)
        return FINE
    with live:
        _show_past(loaded.state_dir, as_json, since_ns=since_ns, rule=rule, outcome=wanted, limit=limit)
        for record in live:
            if (rule is None or record.get("rule") == rule) and (wanted is None or record.get("outcome") == wanted):
                _show(record, as_json)
    raise UserError("the agent ended", hint="`stoop history` still reads its journal")


def _show_past(state_dir: str, as_json: bool, **asked: Any) -> None:
    if not Path(state_dir).is_dir():
        raise UserError("there is no journal: no such directory", where=state_dir, hint="is -c the agent's configuration?")
    for record in read(state_dir, **asked):
        _show(record, as_json)


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        json_line(record)
    else:
        out().print(record_line(record))
