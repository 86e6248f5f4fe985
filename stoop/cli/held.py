"""What is held, and giving it back: `stoop active`, `stoop undo`, `stoop extend`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from stoop import control
from stoop.cli import FINDINGS, FINE
from stoop.cli.live import time_span
from stoop.cli.options import ConfigOption, JsonOption, control_path, load_config
from stoop.cli.screen import OUTCOME_STYLES, json_line, out, plain, target_name, text, warn
from stoop.control import ControlError
from stoop.errors import UserError
from stoop.hold_files import hold_files
from stoop.holds import EVERY_HOLD, shown
from stoop.log import timestamp
from stoop.units import format_duration

SECOND_NS = 1_000_000_000

UNDO_ANSWER_S = 60.0
"""How long `stoop undo` waits: each undo gets 10 s, and 16 run at a time."""

NameArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="The run or act, or the beginning of its id.", show_default=False)
]


def active(config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show what is held now: frozen, stopped, limited, cut off; and until when.

    Without a running agent, what its state directory says. Exit 1 when something is not as it should be.
    """
    held = _held(config)
    for hold in held:
        if as_json:
            json_line(hold)
        else:
            out().print(_line(hold))
    if not held and not as_json:
        out().print("nothing is held")
    return FINDINGS if any(hold.get("trouble") for hold in held) else FINE


def undo(
    run: NameArgument = None,
    every: Annotated[bool, typer.Option("--all", help="Everything that is held.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Give back now what a run holds. Exit 1 when something could not be given back."""
    request = control.Undo(_name(run, every))
    results = control.ask(control_path(config), request, UNDO_ANSWER_S)
    failed = False
    for result in results if isinstance(results, list) else []:
        failed |= result.get("outcome") == "failed"
        if as_json:
            json_line(result)
        else:
            outcome = str(result.get("outcome", "?"))
            target = target_name(result.get("target") or {})
            said = f" {plain(result.get('action', '?'))} · {plain(target)} · {plain(result.get('reason', ''))}"
            out().print(text((f"{outcome:<8}", OUTCOME_STYLES.get(outcome, "")), said))
    if not results and not as_json:
        out().print("nothing is held")
    return FINDINGS if failed else FINE


def extend(
    run: NameArgument = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="From now on, such as 4h; 0 for ever.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything that is held.")] = False,
    config: ConfigOption = None,
) -> int:
    """Let what a run holds last longer, or shorter: so long from now."""
    if for_ is None:
        raise UserError("say how long: --for 4h", hint="`--for 0` holds it until `stoop undo`")
    seconds = time_span(for_, "--for") / SECOND_NS
    if seconds > control.MAX_FOR_S:
        raise UserError(f"--for takes at most {control.MAX_FOR_S / 86400:g}d", hint="`--for 0` for ever")
    for hold in control.ask(control_path(config), control.Extend(_name(run, every), seconds)):
        out().print(_line(hold))
    return FINE


def _name(run: str | None, every: bool) -> str:
    if (run is None) == (not every):
        raise UserError("name one run, or --all", hint="`stoop active` lists what is held")
    return EVERY_HOLD if run is None else run


def _held(config: str | None) -> list[dict[str, Any]]:
    try:
        held = control.ask(control_path(config), control.Active())
    except ControlError as error:
        holds, troubles = hold_files(Path(load_config(config).state_dir)).look()
        warn(f"{error}: what its state directory says")
        for trouble in troubles:
            warn(trouble)
        return shown(holds, time.monotonic_ns(), {})
    return held if isinstance(held, list) else []


def _line(hold: Mapping[str, Any]) -> Text:
    """`6f1c…  Freeze it · container:freeze · nginx/7c5f… · thawed in 42m (2026-…)`."""
    left = hold.get("left_s")
    ends = "held until `stoop undo`"
    if isinstance(left, int | float):
        rounded = format_duration(max(1, round(left)) * SECOND_NS)
        ends = f"{hold.get('then') or 'given back'} in {rounded} ({timestamp(int(hold.get('until_ns') or 0))})"
    line = text((str(hold.get("run", "?"))[:12], "bold"), f"  {hold.get('action', '?')}")
    for part in (hold.get("actionner", "?"), target_name(hold.get("target") or {}), ends):
        line.append(f" · {plain(part)}")
    if trouble := hold.get("trouble"):
        line.append(f" · {plain(trouble)}", "bold red")
    return line
