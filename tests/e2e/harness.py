"""A real `python -m agent.app` in a directory of its own. It may be killed and started again over what it left behind.

Alerts are made of one that Falco wrote (tests/data/falco.jsonl). What a test waits for, it waits for with a bound:
a pidfd, a pipe, a socket, or a look at a file every few ms.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from stoop.alert import alert_id, decode
from stoop.control import AnyRequest, Status, ask
from stoop.errors import UserError
from stoop.history import read

PATIENCE_S = 15.0
"""How long a test waits for what it asked for; then it has found a fault."""

NODE = "node-e2e"
FALCO_RULE = "Terminal shell in container"
RULE_NAME = "Kill a terminal shell"
RULE = f"""
- rule: {RULE_NAME}
  match: {{rules: [{FALCO_RULE}]}}
  allow_host: true
  actions: [{{action: Kill it, actionner: "process:kill"}}]
"""

GUARD = {"pid_namespace": "agent"}
"""So that the tests also run in a container, whose pids no Falco would number."""

FREE = {**GUARD, "max_targets": 0, "max_targets_total": 0, "dedup_window": "0s"}
"""No limit, and no alert is the repeat of another."""

MISSING = object()
"""As a field's value: the alert does not have it."""

STEPS = ("received", "decided", "acted", "verified")

_SAMPLES = Path(__file__).parents[1] / "data" / "falco.jsonl"


def _sample() -> dict[str, Any]:
    for line in _SAMPLES.read_text().splitlines():
        alert: dict[str, Any] = json.loads(line)
        if alert["rule"] == FALCO_RULE and "proc.pid" in alert["output_fields"]:
            return alert
    raise LookupError(f"no alert of {FALCO_RULE!r} with a pid in {_SAMPLES}")


SAMPLE = _sample()


def stamp(at_ns: int) -> str:
    """A time as Falco writes it."""
    seconds, nanos = divmod(at_ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


def alert(pid: object, fields: Mapping[str, object] | None = None, *, at_ns: int = 0, rule: str = FALCO_RULE) -> bytes:
    """Falco's line about a process of the host, as of now or of `at_ns` (CLOCK_REALTIME)."""
    at_ns = at_ns or time.time_ns()
    held = SAMPLE["output_fields"] | {"container.id": "host", "k8s.ns.name": None, "k8s.pod.name": None}
    held |= {"proc.pid": pid, "evt.time": at_ns} | dict(fields or {})
    held = {name: value for name, value in held.items() if value is not MISSING}
    return json.dumps(SAMPLE | {"rule": rule, "time": stamp(at_ns), "output_fields": held}).encode() + b"\n"


def await_that(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something of another process that can't be waited on."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not seen within {patience_s:g} s: {what}"
        select.select([], [], [], 0.005)


def exited(pidfd: int, patience_s: float = PATIENCE_S) -> bool:
    """Whether the process ends within this time."""
    return bool(select.select([pidfd], [], [], patience_s)[0])


class Victim:
    """A process to be named. `end` reaps it, whatever became of it."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(argv or ("sleep", "1000"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        wanted = os.path.basename(argv[0] if argv else "sleep")
        await_that(lambda: os.readlink(f"/proc/{self.pid}/exe").endswith(wanted), f"{self.pid} runs {wanted}")

    def dies(self) -> bool:
        """Whether it is killed within the test's patience."""
        return exited(self.pidfd) and self.process.wait() == -signal.SIGKILL

    @property
    def lives(self) -> bool:
        """Whether it runs now."""
        return not exited(self.pidfd, 0)

    def end(self) -> None:
        """End and reap it."""
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)


class Agent:
    """One agent's directory, and the agent while it runs. `settings` are keys of stoop.yaml."""

    def __init__(self, directory: Path, rules: str = RULE, **settings: Any) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.rules = directory / "rules.yaml"
        self.config = directory / "stoop.yaml"
        self.log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.rules.write_text(rules)
        self.configure(**settings)

    def configure(self, **settings: Any) -> None:
        """Write stoop.yaml (JSON is YAML)."""
        base = {
            "node_name": NODE,
            "state_dir": str(self.state),
            "rules_files": [str(self.rules)],
            "metrics": {"address": "127.0.0.1", "port": 0},
            "guard": GUARD,
            "log_format": "json",
        }
        self.config.write_text(json.dumps(base | settings))

    # ------------------------------------------------------------ its life

    @property
    def command(self) -> list[str]:
        """How it is started."""
        return [sys.executable, "-m", "agent.app", "-c", str(self.config)]

    def launch(self, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Begin to start it."""
        assert self.process is None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=stdin, stdout=subprocess.PIPE, stderr=log)
        self._pidfd = os.pidfd_open(self.process.pid)
        return self.process

    def start(self, stdin: int | IO[bytes] = subprocess.DEVNULL) -> Agent:
        """Start it and wait for its `ready`, which is the first thing that it says."""
        process = self.launch(stdin)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_S)[0], f"not ready: {self.log()}"
        said = os.read(process.stdout.fileno(), 4096)
        assert said == b"ready\n", f"it said {said!r}: {self.log()}"
        return self

    def signal(self, number: int) -> None:
        """Send the reflex a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def ended(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        process = self.process
        assert process is not None
        assert exited(self._pidfd), f"it does not end: {self.log()}"
        self.process = None
        os.close(self._pidfd)
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """SIGKILL of the reflex alone; the helper then ends by itself."""
        self.signal(signal.SIGKILL)
        self.ended()

    def close(self) -> None:
        """End it if it runs still."""
        if self.process is not None:
            self.process.kill()
            self.ended()

    @property
    def pid(self) -> int:
        """The reflex's."""
        assert self.process is not None
        return self.process.pid

    # ------------------------------------------------------------ what it is told

    @property
    def socket_path(self) -> str:
        """Where alerts go."""
        return str(self.state / "falco.sock")

    def connect(self) -> socket.socket:
        """A sender's connection."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.socket_path)
        return sock

    def send(self, *lines: bytes) -> None:
        """Lines, on a connection of their own."""
        with self.connect() as sock:
            sock.sendall(b"".join(lines))

    def ask(self, request: AnyRequest) -> Any:
        """A request on the control socket."""
        return ask(str(self.state / "control.sock"), request)

    # ------------------------------------------------------------ what it tells

    def status(self) -> Any:
        """As `stoop status --json`."""
        return self.ask(Status())

    def history(self, **wanted: Any) -> list[dict[str, Any]]:
        """As `stoop history --json`; empty while there is no journal."""
        try:
            return list(read(self.state, **wanted))
        except UserError:
            return []

    def records(self, count: int, **wanted: Any) -> list[dict[str, Any]]:
        """Exactly so many records, once they are there: the journal's writer is some ms behind."""
        await_that(lambda: len(self.history(**wanted)) >= count, f"{count} records {wanted}")
        rows = self.history(**wanted)
        assert len(rows) == count, rows
        return rows

    def answer(self, line: bytes) -> dict[str, Any]:
        """Send one alert; the one record that came of it."""
        self.send(line)
        return self.records(1, alert=alert_id(decode(line), NODE))[0]

    def log(self) -> str:
        """What it has written to standard error, over all its lives."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of this event."""
        found: list[dict[str, Any]] = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                found += [entry] if entry.get("event") == event else []
        return found

    def await_log(self, event: str) -> dict[str, Any]:
        """The last line of this event, once there is one."""
        await_that(lambda: self.logged(event), f"log of {event!r}")
        return self.logged(event)[-1]

    def await_page(self) -> None:
        """Wait until metrics and health are served."""
        await_that(lambda: self.status()["metrics"], "metrics are served")

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the helper's."""
        self.await_page()
        port = self.status()["metrics"]["port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, sample: str) -> float | None:
        """The value of one sample, named with its labels as it is written."""
        for line in self.page("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return None

    def helper(self) -> int:
        """The helper's pid, once there is one."""
        await_that(lambda: self.status()["helper"]["pid"], "a helper")
        return int(self.status()["helper"]["pid"])

    def memory_kib(self, pid: int) -> int:
        """The most that was ever resident of a process (proc(5): VmHWM)."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@contextlib.contextmanager
def victims(count: int = 1, argv: Sequence[str] = ()) -> Iterator[list[Victim]]:
    """So many processes of one executable."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(Victim(*argv))
            stack.callback(found[-1].end)
        yield found
