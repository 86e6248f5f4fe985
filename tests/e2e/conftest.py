"""A real agent as a program in a directory of its own, and real victims. What a test starts is gone after it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stoop.control import Status, ask
from stoop.history import read
from tests.real.conftest import (
    PATIENCE_S,
    Process,
    await_that,
    make_box,
    make_exec,
    make_namespaced,
    pytest_runtest_setup,
    respawn,
    spawn,
)

__all__ = ["make_box", "make_exec", "make_namespaced", "pytest_runtest_setup", "respawn", "spawn"]

START_S = 20.0
"""How long an agent may take to be ready on a busy machine; its own goal is 0.5 s."""

LIMITLESS = {"pid_namespace": "agent", "max_targets": 0, "max_targets_total": 0, "dedup_window": "0s"}
"""A guard that acts on whatever a test sends, however often."""

TERMINAL_SHELL = "Terminal shell in container"

KILL_IT = """
- rule: Kill a terminal shell
  match: {rules: [Terminal shell in container]}
  allow_host: true
  actions: [{action: Kill it, actionner: "process:kill"}]
"""

LEFT_OUT = frozenset({"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "STOOP_CONFIG", "NODE_NAME"})
"""Of the tests' environment: an agent is started as on a node, where nothing sets these."""

Row = dict[str, Any]


def stamp(at_ns: int) -> str:
    """A time (CLOCK_REALTIME) as Falco writes it."""
    seconds, nanos = divmod(at_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"


def alert(pid: object, fields: Mapping[str, Any] | None = None, *, at_ns: int = 0, **top: Any) -> bytes:
    """One line in Falco's form (falco.md section 4), of now or of `at_ns` (CLOCK_REALTIME).

    `fields` go into output_fields, `top` beside them.
    """
    event_ns = at_ns or time.time_ns()
    at = stamp(event_ns)
    value = {
        "hostname": "node-1",
        "output": f"{at[11:]}: Notice A shell was spawned in a container with an attached terminal (pid={pid})",
        "output_fields": {
            "container.id": "host",
            "evt.time": event_ns,
            "evt.type": "execve",
            "proc.cmdline": "sh -c id",
            "proc.name": "sh",
            "proc.pid": pid,
            "proc.pname": "runc",
            "proc.ppid": os.getpid(),  # of what `spawn` starts: without taskstats (not root) start times are coarse
            "user.name": "root",
            "user.uid": 0,
            **(fields or {}),
        },
        "priority": "Notice",
        "rule": TERMINAL_SHELL,
        "source": "syscall",
        "tags": ["T1059", "container", "mitre_execution", "shell"],
        "time": at,
        **top,
    }
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class Agent:
    """The files of one agent, and the program while it runs. Starts and stops as often as a test wants."""

    def __init__(self, directory: Path, rules: str, settings: Mapping[str, Any]) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.config = directory / "stoop.yaml"
        self.rules = directory / "rules.yaml"
        self.log = directory / "log"
        self.socket_path = str(self.state_dir / "falco.sock")
        self.control_path = str(self.state_dir / "control.sock")
        self.rules.write_text(rules)
        self.configure(settings)
        self.more_environment: dict[str, str] = {}
        self.prefix: tuple[str, ...] = ()
        self._program: subprocess.Popen[bytes] | None = None

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write stoop.yaml (JSON is YAML); keys of `guard` go over LIMITLESS."""
        config = {
            "state_dir": str(self.state_dir),
            "rules_files": [str(self.rules)],
            "metrics": {"address": "127.0.0.1", "port": 0},
            "log_format": "json",
            **settings,
            "guard": {**LIMITLESS, **settings.get("guard", {})},
        }
        self.config.write_text(json.dumps(config))

    @property
    def program(self) -> subprocess.Popen[bytes]:
        """The running program."""
        assert self._program is not None
        return self._program

    def command(self, *words: str) -> list[str]:
        """How it is started."""
        return [*self.prefix, sys.executable, "-m", "agent.app", "-c", str(self.config), *words]

    def environment(self) -> dict[str, str]:
        """What it and the commands get of ours."""
        ours = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        return ours | self.more_environment

    def launch(self, stdin: int | None = subprocess.DEVNULL) -> None:
        """Begin to start it."""
        with self.log.open("ab") as log:
            self._program = subprocess.Popen(
                self.command(), stdin=stdin, stdout=subprocess.PIPE, stderr=log, env=self.environment()
            )

    def start(self, stdin: int | None = subprocess.DEVNULL) -> None:
        """Start it, and return once it is ready."""
        self.launch(stdin)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return once it has said so."""
        feed = self.program.stdout
        assert feed is not None
        told = b""
        deadline = time.monotonic() + START_S
        while b"ready\n" not in told:
            left = deadline - time.monotonic()
            assert select.select([feed], [], [], max(0.0, left))[0], f"not ready: {self.said()}"
            data = os.read(feed.fileno(), 4096)
            assert data, f"ended at its start: {self.said()}"
            told += data

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the OOM killer does."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        program, self._program = self.program, None
        program.send_signal(number)
        try:
            return program.wait(PATIENCE_S)
        finally:
            program.kill()
            program.wait()
            for stream in (program.stdin, program.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def close(self) -> None:
        """After the test, whatever became of it."""
        if self._program is not None:
            self._end(signal.SIGTERM)

    def said(self) -> str:
        """Its log."""
        return self.log.read_text()

    def once(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The program where it ends by itself."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=START_S, check=False, env=self.environment()
        )

    def stoop(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A `stoop` command about this agent."""
        argv = [sys.executable, "-m", "stoop.cli", *words, "-c", str(self.config)]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=START_S, check=False, env=self.environment()
        )

    def connect(self) -> socket.socket:
        """A sender's connection; its waits are bounded."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.socket_path)
        return sock

    def send(self, *lines: bytes) -> None:
        """Alerts over a connection of their own."""
        with self.connect() as sock:
            sock.sendall(b"".join(lines))

    def status(self) -> Any:
        """What `stoop status --json` says."""
        return ask(self.control_path, Status())

    def rows(self) -> list[Row]:
        """The journal as it is now."""
        return list(read(self.state_dir))

    def records(self, count: int) -> list[Row]:
        """The journal once it has so many rows: its writer is some ms behind. Exactly so many."""
        await_that(lambda: len(self.rows()) >= count, f"{count} records; log: {self.said()[-2000:]}")
        found = self.rows()
        assert len(found) == count, found
        return found

    def get(self, page: str) -> tuple[int, str]:
        """A page of the metrics server: its status and its text."""
        bound = self.status()["metrics"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{bound['port']}/{page}", timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        _, text = self.get("metrics")
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


MakeAgent = Callable[..., Agent]


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[MakeAgent]:
    """`make_agent(rules, start=True, **settings)`: an agent that is ready; `settings` are keys of stoop.yaml."""
    made: list[Agent] = []

    def make(rules: str = KILL_IT, *, start: bool = True, **settings: Any) -> Agent:
        directory = tmp_path / f"agent{len(made)}"
        directory.mkdir()
        agent = Agent(directory, rules, settings)
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        agent.close()


def lives(process: Process) -> bool:
    """Whether it has not ended yet. Ask when what could have ended it has been recorded."""
    return process.poll() is None


def was_killed(process: Process) -> bool:
    """Wait until it has ended; whether SIGKILL did it."""
    return process.wait(PATIENCE_S) == -signal.SIGKILL
