"""What asks the running agent over its control socket: `stoop status`, `stoop mode`, `stoop arm`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from stoop import control
from stoop.cli import FINDINGS, FINE
from stoop.cli.options import ConfigOption, JsonOption, control_path
from stoop.cli.screen import json_line, out, text, warn
from stoop.cli.status_text import findings, status_lines, until
from stoop.errors import UserError
from stoop.spec import (
    Mode,
)
from stoop.units import parse_duration


class ModeWord(enum.StrEnum):
    """The modes as words of the command line."""

    OFF = "off"
    OBSERVE = "observe"
    ENFORCE = "enforce"


def status(config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show how the running agent is. Exit 1 when something is not as it should be."""
    result = _mapping(control.ask(control_path(config), control.Status()))
    found = findings(result)
    if as_json:
        json_line(result)
    else:
        console = out()
        for line in status_lines(result):
            console.print(line)
        for finding in found:
            console.print(text(("! ", "bold red"), finding))
    return FINDINGS if found else FINE


def mode(
    to: Annotated[
        ModeWord,
        typer.Argument(metavar="off|observe|enforce", help="What the agent may do from now on.", show_default=False),
    ],
    for_: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="Only for this long, such as 30m or 1h; then back.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Change what the agent may do, at once.

    Without a restart, and kept over restarts. `off` is the emergency stop.
    """
    seconds = None if for_ is None else time_span(for_, "--for") / 1e9
    if seconds is not None and not 0 < seconds <= control.MAX_FOR_S:
        raise UserError(
            f"--for takes more than 0 and at most {control.MAX_FOR_S / 86400:g}d", hint="leave it out for good"
        )
    result = _mapping(control.ask(control_path(config), control.SetMode(Mode(to.value), seconds)))
    out().print(text("mode is now ", (result.get("mode", to.value), "bold"), until(result.get("until_ns"))))
    if result.get("kept") is False:
        raise UserError("the mode could not be written down: it ends with the agent", hint="is state_dir writable?")
    if result.get("synced") is False:
        warn("the disk has not confirmed it: a power cut may forget it (see the agent's log)")
    return FINE


def arm(
    rule: Annotated[
        str | None, typer.Argument(help="The rule's name, as `stoop status` shows it.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Arm every rule, and the limit over all rules.")] = False,
    config: ConfigOption = None,
) -> int:
    """Arm a rule again that disarmed itself.

    A rule does that when it would hit too many targets.
    """
    if (rule is None) == (not every):
        raise UserError("name one rule, or --all", hint="`stoop status` lists the disarmed ones")
    control.ask(control_path(config), control.Arm(control.EVERY_RULE if rule is None else rule))
    out().print(text("armed: ", ("every rule" if rule is None else rule, "bold")))
    return FINE


def time_span(given: str, flag: str) -> int:
    """A duration such as `90s` or `1h30m` in nanoseconds. Raises UserError."""
    try:
        return parse_duration(given)
    except ValueError as error:
        raise UserError(str(error), where=flag) from error


def _mapping(result: Any) -> Mapping[str, Any]:
    return result if isinstance(result, dict) else {}
