"""`stoop config print`, `stoop falco-config`, `stoop version`."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Annotated

import typer

import stoop
from stoop.cli import FINE
from stoop.cli.falco import Places, Way, falco_config
from stoop.cli.options import ConfigOption, JsonOption, load_config
from stoop.cli.screen import json_line, out, raw, text, warn
from stoop.config import Config, HttpIntake, printable
from stoop.intake.access import readers_besides

DEFAULT_SOCKET = "/run/stoop/falco.sock"
DEFAULT_EVENTS_FILE = "/var/log/falco/events.json"
DEPENDENCIES = (
    "trio",
    "msgspec",
    "httptools",
    "PyYAML",
    "structlog",
    "prometheus-client",
    "inotify-simple",
    "typer",
    "rich",
)


def print_config(config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Print every setting in effect, with its origin. Secrets are masked."""
    loaded = load_config(config)
    rows = printable(loaded)
    if as_json:
        for key, value, origin in rows:
            json_line({"key": key, "value": value, "origin": origin})
    else:
        width = max(len(key) for key, _, _ in rows)
        console = out()
        for key, value, origin in rows:
            console.print(text((f"{key:<{width}}", "bold"), "  ", value, (f"  # {origin}", "dim")))
    for line in (*loaded.warnings, *_exposed_token(loaded)):
        warn(line)
    return FINE


def _exposed_token(config: Config) -> list[str]:
    """What the agent will say of the token's file when it starts."""
    http = config.intake.http
    readers = readers_besides(http.token_file) if http is not None and http.token_file else ""
    if http is None or not readers:
        return []
    return [f"{http.token_file}: the token can be read by others: {readers} (chmod 600 it, and give senders a new one)"]


def print_falco_config(
    way: Annotated[
        Way | None,
        typer.Option("--way", help="How alerts come here. Default: all, the first one live.", show_default=False),
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Print what to write into Falco's configuration.

    How to connect, and the fields that say which process is meant.
    """
    loaded = load_config(config)
    http = loaded.intake.http or HttpIntake()
    unix, file = loaded.intake.unix, loaded.intake.file
    places = Places(
        socket=unix.path if unix is not None else DEFAULT_SOCKET,
        address=http.address,
        port=http.port or HttpIntake().port,
        events_file=file.path if file is not None else DEFAULT_EVENTS_FILE,
    )
    raw(falco_config(tuple(Way) if way is None else (way,), places))
    return FINE


def version() -> int:
    """Print the versions of Stoop and of what it stands on."""
    console = out()
    console.print(text((f"stoop {stoop.__version__}", "bold")))
    console.print(text(f"Python {platform.python_version()} ({platform.python_implementation()}, {sys.executable})"))
    console.print(text(f"{platform.system()} {platform.release()} {platform.machine()}"))
    for name in DEPENDENCIES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        console.print(text(f"{name} {found}"))
    return FINE
