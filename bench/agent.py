"""Starts a real agent for a bench: its own state directory, its own sockets, nothing shared with a running one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoop.control import Status, ask

READY_SECONDS = 20.0
"""More than any start takes; a bench that waits longer has found a fault."""

RULE = """
- action: Kill it
  actionner: process:kill
- rule: Kill a terminal shell
  match:
    rules: [Terminal shell in container]
  allow_host: true
  actions: [{action: Kill it}]
"""


@dataclass(frozen=True)
class Agent:
    """A running agent."""

    process: subprocess.Popen[bytes]
    directory: Path
    ready_seconds: float

    @property
    def socket_path(self) -> str:
        """Where alerts go."""
        return str(self.directory / "state" / "falco.sock")

    @property
    def rules(self) -> Path:
        """Its rules file."""
        return self.directory / "rules.yaml"

    def status(self) -> Any:
        """What `stoop status --json` says."""
        return ask(str(self.directory / "state" / "control.sock"), Status())

    def pids(self) -> list[int]:
        """Reflex and helper."""
        helper = self.status()["helper"]["pid"]
        return [self.process.pid, *([helper] if helper else [])]

    def connect(self) -> socket.socket:
        """A sender's connection."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.socket_path)
        return sock


@contextlib.contextmanager
def running(rules: str = RULE, given: Path | None = None, **settings: Any) -> Iterator[Agent]:
    """An agent that is ready; ended afterwards, also on failure. `settings` are keys of stoop.yaml.

    `given`: a directory for it, of the caller's; else it gets one of its own.
    """
    with contextlib.ExitStack() as keep:
        directory = given or Path(keep.enter_context(tempfile.TemporaryDirectory(prefix="stoop-bench-")))
        config = {
            "state_dir": str(directory / "state"),
            "rules_files": [str(directory / "rules.yaml")],
            "metrics": {"address": "127.0.0.1", "port": 0},
            "guard": {"max_targets": 0, "max_targets_total": 0, "pid_namespace": "agent"},
            "log_format": "json",
            **settings,
        }
        (directory / "stoop.yaml").write_text(json.dumps(config))  # JSON is YAML
        (directory / "rules.yaml").write_text(rules)
        log = (directory / "log").open("wb")
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.app", "-c", str(directory / "stoop.yaml")],
            stdout=subprocess.PIPE,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
        try:
            _wait_ready(process, directory / "log")
            yield Agent(process, directory, time.perf_counter() - begun)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
            if process.stdout is not None:
                process.stdout.close()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_SECONDS
    seen = b""
    while b"ready\n" not in seen:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise RuntimeError(f"the agent was not ready in {READY_SECONDS:g} s: {log.read_text()}")
        data = os.read(process.stdout.fileno(), 4096)
        if not data:
            raise RuntimeError(f"the agent ended: {log.read_text()}")
        seen += data


def alert_line(
    pid: int, ppid: int, extra: Mapping[str, Any] | None = None, *, rule: str = "Terminal shell in container"
) -> bytes:
    """One alert in Falco's form (falco.md section 4) about this process, stamped now. `extra`: further fields."""
    now = time.time_ns()
    seconds, nanos = divmod(now, 10**9)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"
    alert = {
        "hostname": "bench",
        "output": f"{stamp[11:19]}.{nanos:09d}: Notice A shell was spawned in a container with an attached terminal "
        f"(evt_type=execve user=root process=sh proc_exepath=/bin/sh parent=runc command=sh terminal=34816 pid={pid})",
        "output_fields": {
            "container.id": "host",
            "evt.time": now,
            "evt.type": "execve",
            "proc.cmdline": "sh -c id",
            "proc.exepath": "/bin/sh",
            "proc.name": "sh",
            "proc.pid": pid,
            "proc.pname": "runc",
            "proc.ppid": ppid,
            "proc.tty": 34816,
            "proc.vpid": pid,
            "user.loginuid": -1,
            "user.name": "root",
            "user.uid": 0,
            **(extra or {}),
        },
        "priority": "Notice",
        "rule": rule,
        "source": "syscall",
        "tags": ["T1059", "container", "mitre_execution", "shell"],
        "time": stamp,
    }
    return json.dumps(alert, separators=(",", ":")).encode() + b"\n"
