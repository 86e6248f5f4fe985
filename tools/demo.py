"""`make run`: start the agent, stage one attack, show the answer, go on listening.

    python -m tools.demo [--once]

Everything it writes is below `var/` of the checkout. The victim is a shell that this program starts and that waits for
input which never comes; a bystander of the same kind must live. Exit 0 only if the victim died and the bystander lives.
Every child ends with this program, whatever ends it (children.start).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from stoop import control
from stoop.cli import children
from stoop.cli.records import STEPS
from stoop.cli.running import agent_command, running_agent, show_records, wait_ready
from stoop.cli.screen import OUTCOME_STYLES, duration, err, out, plain, text
from stoop.errors import StoopError, UserError
from stoop.log import timestamp

ROOT = Path(__file__).resolve().parent.parent
VAR = ROOT / "var"
RULES = Path(__file__).resolve().with_name("demo-rules.yaml")

READY_S = 10.0
"""How long the agent may take to be ready, in seconds: twenty times the goal, on a loaded machine."""

DEATH_S = 5.0
"""How long the victim may live after the alert, in seconds: thousands of times the goal."""

SHELL = ("sh", "-c", "echo up; read never; exit 0")
"""The victim: says that it is up, then waits for a line on its input that never comes."""


@dataclass(frozen=True)
class Shell:
    """A shell of ours, and when it was started (CLOCK_REALTIME, ns)."""

    child: subprocess.Popen[bytes]
    started_ns: int

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid


def configuration() -> dict[str, Any]:
    """stoop.yaml of the demonstration: all below var/, short socket paths (relative to the checkout)."""
    return {
        "mode": "enforce",
        "state_dir": "var/state",
        "control": {"path": "var/control.sock"},
        "intake": {"unix": {"path": "var/falco.sock", "allow_uids": [os.geteuid()]}},
        "metrics": {"address": "127.0.0.1", "port": 0},
        # The victim is ours: Falco (we) and the agent number processes alike, also in a container.
        "guard": {"pid_namespace": "agent"},
    }


def alert(victim: Shell) -> dict[str, Any]:
    """What Falco says of the victim (falco.md section 4): the shape of 0.44, with the appended fields."""
    now_ns = time.time_ns()
    iso = f"{timestamp(now_ns)[:-1]}{now_ns % 1000:03d}Z"
    exe = os.path.realpath(f"/proc/{victim.pid}/exe")
    command = " ".join(SHELL)
    fields: dict[str, Any] = {
        "container.id": "host",
        "container.name": "host",
        "evt.arg.flags": "EXE_WRITABLE",
        "evt.num": 4711,
        "evt.rawtime": now_ns,
        "evt.time": now_ns,
        "evt.type": "execve",
        "k8s.ns.name": None,
        "k8s.pod.name": None,
        "proc.cmdline": command,
        "proc.exe_ino": os.stat(f"/proc/{victim.pid}/exe").st_ino,
        "proc.exepath": exe,
        "proc.name": "sh",
        "proc.pid": victim.pid,
        "proc.pid.ts": victim.started_ns,
        "proc.pname": "httpd",
        "proc.ppid": os.getpid(),
        "proc.tty": 0,
        "proc.vpid": victim.pid,
        "thread.tid": victim.pid,
        "user.loginuid": -1,
        "user.name": "www-data",
        "user.uid": os.geteuid(),
    }
    said = (
        f"Shell spawned by untrusted binary | process=sh proc_exepath={exe} parent=httpd command={command} terminal=0"
    )
    return {
        "hostname": socket.gethostname(),
        "output": f"{iso[11:-1]}: Notice {said}",
        "output_fields": fields,
        "priority": "Notice",
        "rule": "Run shell untrusted",
        "source": "syscall",
        "tags": ["T1059.004", "container", "host", "maturity_stable", "mitre_execution", "process", "shell"],
        "time": iso,
    }


@contextmanager
def shell() -> Iterator[Shell]:
    """A shell that waits; killed and reaped when left, whatever happened to it."""
    child = children.start(SHELL, dies_by=signal.SIGKILL, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started_ns = time.time_ns()
    try:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], READY_S)[0] or child.stdout.readline() != b"up\n":
            raise UserError("a shell did not start", hint="is there a `sh` on this machine?")
        yield Shell(child, started_ns)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def falco() -> Iterator[socket.socket]:
    """A connection to the agent's unix socket, as Falco has one from its start."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(READY_S)
        connection.connect(configuration()["intake"]["unix"]["path"])
        yield connection


def send(connection: socket.socket, said: dict[str, Any]) -> None:
    """One line of NDJSON, as Falco's program_output brings it."""
    connection.sendall(json.dumps(said, separators=(",", ":")).encode() + b"\n")


def exited(shell: Shell, within_s: float) -> bool:
    """Whether it exits within so many seconds, seen on a pidfd (pidfd_open(2)); it is not reaped."""
    pidfd = os.pidfd_open(shell.pid)
    try:
        watching = select.poll()
        watching.register(pidfd, select.POLLIN)
        return bool(watching.poll(within_s * 1000))
    finally:
        os.close(pidfd)


def find_record(records: control.Follow, pid: int) -> dict[str, Any] | None:
    """The record about this process, None when it does not come within DEATH_S seconds."""
    until = time.monotonic() + DEATH_S
    while not records.closed and (left := until - time.monotonic()) > 0:
        for record in records.read(left):
            target = record.get("target") or {}
            if pid in (target.get("pid"), target.get("claimed_pid")):
                return record
    return None


def attack() -> bool:
    """Stage it, show what happened; whether the victim died and the bystander lives."""
    followed = control.Follow(configuration()["control"]["path"])
    with followed as records, falco() as connection, shell() as victim, shell() as bystander:
        staged = f"a shell, pid {victim.pid}, and a bystander of the same kind, pid {bystander.pid}"
        out().print()
        out().print(text(("staged    ", "bold"), staged))
        said = alert(victim)  # its time is the event's: stamped last, so that nothing of ours counts as Falco's delay
        send(connection, said)
        died = exited(victim, DEATH_S)
        record = find_record(records, victim.pid)
        status = victim.child.wait(timeout=DEATH_S) if died else None
        lives = not exited(bystander, 0.0)
        show(said, record, victim.pid, status)
        _verdict(
            "the victim is dead", died and status == -signal.SIGKILL, f"pid {victim.pid}, exit seen on our own pidfd"
        )
        _verdict("the bystander lives", lives, f"pid {bystander.pid}")
    return died and lives


def show(said: Mapping[str, Any], record: Mapping[str, Any] | None, pid: int, status: int | None) -> None:
    """What was seen, which rule, what was done to whom, how long each step took."""
    console = out()
    console.print(text(("seen      ", "bold"), f"{said['priority']} · {said['rule']} · {said['output']}"))
    if record is None:
        console.print(text(("answer    ", "bold"), ("none: the agent recorded nothing about it", "bold red")))
        return
    target = record.get("target") or {}
    outcome = str(record.get("outcome"))
    whom = f"{target.get('comm', '?')}, pid {target.get('pid', pid)}, {target.get('exe', '')}, uid {target.get('uid')}"
    console.print(text(("rule      ", "bold"), str(record.get("rule"))))
    console.print(text(("done      ", "bold"), f"{record.get('action')} ({record.get('actionner')}) to {whom}"))
    if proven := target.get("proven_by"):
        console.print(text(("identity  ", "bold"), f"proven by {proven}"))
    reason = f": {record['reason']}" if record.get("reason") else ""
    verified = (record.get("timing_us") or {}).get("verified") is not None
    ending = ", verified" if verified else ", not verified"
    console.print(text(("outcome   ", "bold"), (outcome, OUTCOME_STYLES.get(outcome, "")), f"{ending}{reason}"))
    if status is not None:
        ended = signal.Signals(-status).name if status < 0 else f"exit {status}"
        console.print(text(("ended by  ", "bold"), ended))
    console.print(_steps(record))


def _steps(record: Mapping[str, Any]) -> Table:
    """µs for each step, since the alert was read and since the event."""
    meaning = {
        "received": "alert read from the socket",
        "decided": "matched, proven, allowed",
        "acted": "signal sent",
        "verified": "exit seen",
    }
    timing = record.get("timing_us") or {}
    table = Table(
        "step", "", "since it was read", "since the event", box=None, header_style="dim", padding=(0, 2, 0, 0)
    )
    for column in table.columns[2:]:
        column.justify = "right"
    read = timing.get("received")
    for step in STEPS:
        at = timing.get(step)
        since_read = None if at is None or read is None else at - read
        table.add_row(step, text((meaning[step], "dim")), duration(since_read), duration(at))
    return table


def _verdict(claim: str, holds: bool, detail: str) -> None:
    mark = ("✓ ", "bold green") if holds else ("✗ ", "bold red")
    out().print(text(mark, (claim if holds else f"NOT SO: {claim}", "bold"), f"  {detail}"))


def listen(agent: subprocess.Popen[bytes]) -> None:
    """Say how to go on, then show each act until Ctrl-C or the agent's end."""
    stoop = _stoop_command()
    console = out()
    console.print()
    console.print(text(("listening ", "bold"), "until Ctrl-C. From the checkout, in another terminal:"))
    for command, why in (
        (f"{stoop} send ALERT.json --now -c var/stoop.yaml", "an alert of your own"),
        (f"{stoop} history -c var/stoop.yaml", "what was done"),
        (f"{stoop} status -c var/stoop.yaml", "how the agent is"),
        (f"{stoop} falco-config -c var/stoop.yaml", "how to wire Falco"),
    ):
        console.print(text("  ", (command, "cyan"), (f"  # {why}", "dim")))
    with control.Follow(configuration()["control"]["path"]) as records:
        show_records(records)
    agent.wait()
    raise UserError(f"the agent ended by itself with status {agent.returncode}", hint="its log is var/agent.log")


def _stoop_command() -> str:
    """How to call `stoop` from the checkout with the Python that runs this."""
    script = Path(sys.executable).with_name("stoop")
    if not script.exists():
        return f"{sys.executable} -m stoop.cli"
    return str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else str(script)


def demonstrate(once: bool) -> int:
    """Everything, in order. Returns the exit code; raises UserError for what keeps it from running."""
    os.chdir(ROOT)
    VAR.mkdir(mode=0o700, exist_ok=True)
    (VAR / "stoop.yaml").write_text(
        "# stoop.yaml of `make run`, written anew by tools/demo.py\n" + yaml.safe_dump(configuration())
    )
    rules = str(RULES.relative_to(ROOT))
    with (
        (VAR / "agent.log").open("wb") as log,
        running_agent(agent_command("var/stoop.yaml", [rules]), stderr=log) as agent,
    ):
        assert agent.stdout is not None
        begun = time.monotonic()
        if not wait_ready(agent.stdout, READY_S):
            log_text = (VAR / "agent.log").read_text(errors="replace")
            for line in log_text.splitlines():
                err().print(text(("agent: ", "dim"), line))
            raise UserError(
                f"the agent was not ready within {READY_S:g} s", hint="its log is above and in var/agent.log"
            )
        took_ms = (time.monotonic() - begun) * 1000
        out().print(
            text(
                ("agent     ", "bold"),
                f"pid {agent.pid}, ready after {took_ms:.0f} ms, rules {rules}, log var/agent.log",
            )
        )
        well = attack()
        if not once:
            listen(agent)
    return 0 if well else 1


def main() -> int:
    """The command line. Exit 0: the victim died and the bystander lives; 1: not so; 2: it could not be tried."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description="Start the agent and stage one attack.")
    parser.add_argument("--once", action="store_true", help="end after the attack instead of listening on")
    arguments = parser.parse_args()
    try:
        return demonstrate(arguments.once)
    except StoopError as error:
        for line in str(error).splitlines():
            err().print(text(("demo: ", "bold red"), plain(line)))
        return 2
    except KeyboardInterrupt:
        out().print("ended")
        return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
