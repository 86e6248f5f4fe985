"""`stoop replay`: what rules would have done about alerts of the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from stoop import guard
from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.cli import FINDINGS, FINE
from stoop.cli.alerts import split
from stoop.cli.options import ConfigOption, JsonOption, RulesOption, load_config, read_input
from stoop.cli.records import record_line
from stoop.cli.replay import Replayed, Settings, summarize
from stoop.cli.replay import replay as replay_alerts
from stoop.cli.rules import load_with_warnings
from stoop.cli.screen import err, json_line, out, text
from stoop.config import Config, policy_of
from stoop.errors import AlertError, UserError
from stoop.log import timestamp
from stoop.record import Record

MAX_TOLD = 10
"""Lines that are no alerts, told one by one; the rest is only counted."""


def replay(
    file: Annotated[str, typer.Argument(help="Alerts as NDJSON; - for standard input.", show_default=False)],
    rules: RulesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what rules would have done about alerts of the past.

    To whom, how often, what the guard refuses, which limits trip; nothing is touched. The node is taken to confirm what
    the alerts say. Exit 1 when a limit trips or a line is no alert.
    """
    loaded = load_with_warnings(rules, config)
    alerts, bad = _decoded(split(read_input(file)))
    if not alerts and not bad:
        raise UserError("there is no alert in it", where=file)
    replayed = replay_alerts(alerts, loaded.rules, CATALOGUE, settings_of(load_config(config)))
    if as_json:
        _print_json(replayed, bad)
    else:
        _print_text(replayed, bad)
    return FINDINGS if bad or replayed.trips else FINE


def settings_of(config: Config) -> Settings:
    """What of the configuration decides."""
    return Settings(config.node_name, policy_of(config.guard), config.guard.dedup_window_ns)


def _decoded(lines: Sequence[bytes]) -> tuple[list[Alert], list[str]]:
    """The alerts, and a line for each that is none."""
    alerts: list[Alert] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            alerts.append(decode(line))
        except AlertError as error:
            bad.append(f"alert {number}: {error.reason}")
    return alerts, bad


def _public(record: Record, number: int, time_ns: int) -> dict[str, Any]:
    # Nothing happened, so there is no timing.
    return {"number": number, "time": _time(time_ns), **record.public(), "timing_us": None}


def _time(time_ns: int) -> str | None:
    return timestamp(time_ns) if time_ns else None


def _print_json(replayed: Replayed, bad: Sequence[str]) -> None:
    for number, time_ns, record in replayed.records:
        json_line(_public(record, number, time_ns))
    json_line(
        {
            "summary": {
                "alerts": replayed.alerts,
                "unmatched": replayed.unmatched,
                "repeats": replayed.repeats,
                "rules": msgspec.to_builtins(summarize(replayed)),
                "limits": [
                    {"rule": trip.rule, "reason": trip.reason, "alert": trip.alert, "time": _time(trip.time_ns)}
                    for trip in replayed.trips
                ],
                "not_alerts": list(bad),
            }
        }
    )


def _print_text(replayed: Replayed, bad: Sequence[str]) -> None:
    console = out()
    for number, time_ns, record in replayed.records:
        line = text((f"{number:>5}  ", "dim"))
        line.append_text(record_line(_public(record, number, time_ns)))
        console.print(line)
    for problem in bad[:MAX_TOLD]:
        err().print(text(("not an alert: ", "yellow"), problem))
    if len(bad) > MAX_TOLD:
        err().print(text(("not an alert: ", "yellow"), f"{len(bad) - MAX_TOLD} more"))
    said = f"{replayed.alerts} alerts, {replayed.unmatched} matched by no rule"
    if replayed.repeats:
        said += f", {replayed.repeats} repeats only counted"
    console.print(text((said, "bold")))
    for summary in summarize(replayed):
        console.print(text(f"{summary.rule}: ", (f"acts {summary.acts}, targets {summary.targets}", "cyan")))
        for reason, count in summary.not_done.items():
            console.print(text(f"    {count} × {reason}"))
    for trip in replayed.trips:
        whose = "all rules" if trip.rule == guard.ALL_RULES else trip.rule
        console.print(text(("limit: ", "bold red"), f"{whose} disarmed at alert {trip.alert}: {trip.reason}"))
