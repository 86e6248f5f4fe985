"""`stoop run`: the agent in the foreground, with a line for each act as it happens."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from stoop import control
from stoop.cli import children
from stoop.cli.agent_log import shown_log
from stoop.cli.options import ConfigOption, RulesOption, config_path, load_config
from stoop.cli.records import record_line
from stoop.cli.screen import err, out, text

GRACE_S = 20.0
"""How long the agent may take to end in order, in seconds: its act deadline (10 s) and some more."""

AGENT = (sys.executable, "-P", "-m", "agent.app")
"""The agent's program by its entry point: the library never imports it."""


def run(config: ConfigOption = None, rules: RulesOption = None) -> int:
    """Run the agent in the foreground and show each act.

    Ctrl-C ends both. The exit code is the agent's.
    """
    loaded = load_config(config, {"rules_files": rules} if rules else None)
    # A machine that reads our stderr gets the agent's log as it is; a person gets each act once.
    for_person = sys.stderr.isatty()
    command = agent_command(config_path(config), rules or [])
    with ExitStack() as stack:
        agent = stack.enter_context(running_agent(command, stderr=subprocess.PIPE if for_person else None))
        if agent.stderr is not None:
            stack.enter_context(_log_of(agent))
        try:
            _attend(agent, loaded.control.path)
        except KeyboardInterrupt:
            err().print("ending …")
            children.stop(agent, GRACE_S)
        return agent.wait()


@contextmanager
def _log_of(agent: subprocess.Popen[bytes]) -> Iterator[None]:
    """Show the agent's log; when left, the agent is ended first, so that the log ends."""
    assert agent.stderr is not None
    with agent.stderr, shown_log(agent.stderr, sys.stderr.write):
        try:
            yield
        finally:
            children.stop(agent, GRACE_S)


def _attend(agent: subprocess.Popen[bytes], path: str) -> None:
    """Show each act until the agent ends. Raises ControlError when it can't be followed."""
    assert agent.stdout is not None
    if not wait_ready(agent.stdout, None):
        return
    err().print(text(("ready", "bold green"), f", control socket {path} (Ctrl-C ends it)"))
    with control.Follow(path) as records:
        show_records(records)


def agent_command(config: str | None, rules: list[str]) -> list[str]:
    """The command line of the agent for these files."""
    command = list(AGENT)
    if config is not None:
        command += ["-c", config]
    for file in rules:
        command += ["-r", file]
    return command


@contextmanager
def running_agent(command: list[str], *, stderr: int | IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The agent as a child that does not outlive us; its stdout is a pipe. Ended in order when left."""
    # Alerts may come over standard input; from a terminal they would stop the agent (SIGTTIN), so not from there.
    stdin = subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None
    agent = children.start(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)
    try:
        yield agent
    finally:
        children.stop(agent, GRACE_S)
        if agent.stdout is not None:
            agent.stdout.close()


def wait_ready(stdout: IO[bytes], limit_s: float | None) -> bool:
    """Whether the agent said `ready` on its stdout before it ended, and within `limit_s` seconds (None: no limit)."""
    buffer = b""
    waiting = select.poll()
    waiting.register(stdout.fileno(), select.POLLIN)
    until = None if limit_s is None else time.monotonic() + limit_s
    while waiting.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000):
        data = os.read(stdout.fileno(), 4096)
        if not data:
            return False
        buffer += data
        if b"ready" in buffer.split():
            return True
    return False


def show_records(records: control.Follow) -> None:
    """A line for each record until no more will come, and one where some were lost."""
    console = out()
    told = 0
    while not records.closed:
        for record in records.read(None):
            console.print(record_line(record))
        if records.lost > told:
            console.print(text((f"… {records.lost - told} more, too fast to show (`stoop history` has them)", "dim")))
            told = records.lost
