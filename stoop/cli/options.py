"""Flags that several commands share, and what they mean: which configuration, which rules, which input."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from stoop import config
from stoop.config import Config
from stoop.errors import UserError

MAX_INPUT = 256 * 1024 * 1024
"""Bytes of one input read whole: a day of a busy node's alerts; what is larger is better split."""

SYSTEM_CONTROL = "/run/stoop/control.sock"
"""Where the agent of the machine listens when nobody configured anything."""

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The agent's stoop.yaml. Default: $STOOP_CONFIG, /etc/stoop/stoop.yaml if it is there, else defaults.",
        show_default=False,
    ),
]
RulesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rules",
        "-r",
        metavar="FILE",
        help="A rules file; give it again for more, merged in that order. Default: rules_files of the configuration.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value a line instead of text for a person.")]


def config_path(given: str | None) -> str | None:
    """The configuration file that counts: the flag, $STOOP_CONFIG, the default one if it is there; else None."""
    if given is not None:
        return given
    named = os.environ.get("STOOP_CONFIG")
    if named:
        return named
    return config.DEFAULT_PATH if Path(config.DEFAULT_PATH).exists() else None


def load_config(given: str | None, overrides: Mapping[str, str | Iterable[str]] | None = None) -> Config:
    """The configuration as the agent would see it. Raises ConfigError."""
    return config.load(
        config_path(given),
        os.environ,
        is_root=os.geteuid() == 0,
        hostname=socket.gethostname(),
        uid=os.geteuid(),
        overrides=overrides,
    )


def control_path(given: str | None) -> str:
    """Where the agent's control socket is.

    Whoever is not root has own defaults; where nothing says otherwise the machine's agent is the one meant.
    """
    loaded = load_config(given)
    path = loaded.control.path
    configured = loaded.origins.get("control.path", "default") != "default" or config_path(given) is not None
    if not configured and not Path(path).exists() and Path(SYSTEM_CONTROL).exists():
        return SYSTEM_CONTROL
    return path


def read_input(name: str) -> bytes:
    """The bytes of a file, or of standard input for `-`. Raises UserError for what can't be read or is too large."""
    if not name:
        raise UserError("the name of a file is empty", hint="is a variable of the shell not set?")
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=name) from error
    if len(data) > MAX_INPUT:
        raise UserError(f"more than {MAX_INPUT // 2**20} MiB", where=name, hint="split it")
    return data
