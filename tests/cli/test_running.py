"""`stoop run` and the demonstration with a real agent. Everything is in a directory of the test's own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from stoop import control
from stoop.cli.children import start, stop
from stoop.cli.running import wait_ready

LIMIT_S = 30.0
"""How long anything here may take, in seconds: the machine may be busy with other tests."""

ROOT = Path(__file__).resolve().parents[2]

RULES = """\
- rule: Kill what is named
  match: {rules: [Test]}
  allow_host: true
  actions: [{action: Kill it, actionner: "process:kill"}]
"""


@pytest.fixture
def config(write: Callable[..., str], tmp_path: Path) -> str:
    rules = write("rules.yaml", RULES)
    return write(
        "stoop.yaml",
        f"state_dir: {tmp_path}/state\nrules_files: [{rules}]\nmetrics: null\nguard: {{pid_namespace: agent}}\n"
        f"intake: {{unix: {{allow_uids: [{os.geteuid()}]}}}}\n",
    )


def read_until(pipe: IO[bytes], wanted: bytes) -> bytes:
    """What a pipe gives up to these bytes; fails after LIMIT_S seconds or at its end."""
    data = b""
    until = time.monotonic() + LIMIT_S
    while wanted not in data:
        assert select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0], data
        got = os.read(pipe.fileno(), 65536)
        assert got, data
        data += got
    return data


@pytest.fixture
def stoop_run(config: str) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(
        [sys.executable, "-m", "stoop.cli", "run", "-c", config],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    yield program
    program.terminate()
    program.communicate(timeout=LIMIT_S)


@pytest.mark.real
def test_run_shows_each_act_and_ends_with_ctrl_c(
    stoop_run: subprocess.Popen[bytes], config: str, tmp_path: Path, alert: Callable[..., dict[str, Any]], stoop: Any
) -> None:
    assert stoop_run.stderr is not None
    assert stoop_run.stdout is not None
    read_until(stoop_run.stderr, b"(Ctrl-C ends it)")
    assert stoop("status", "-c", config).code == 0
    with subprocess.Popen(["sleep", "600"]) as victim:
        try:
            now_ns = time.time_ns()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
            fields = {"proc.pid": victim.pid, "proc.ppid": os.getpid(), "container.id": "host", "k8s.ns.name": None}
            said = alert(rule="Test", time=f"{stamp}.{now_ns % 10**9:09d}Z", fields=fields)
            file = tmp_path / "alert.json"
            file.write_text(json.dumps(said))
            assert stoop("send", file, "-c", config).code == 0
            shown = read_until(stoop_run.stdout, b"\n").decode()
            assert "done" in shown
            assert f"Kill what is named · process:kill · sleep[{victim.pid}]" in shown
            assert victim.wait(timeout=LIMIT_S) == -signal.SIGKILL
        finally:
            victim.kill()
    stoop_run.send_signal(signal.SIGINT)
    assert stoop_run.wait(timeout=LIMIT_S) == 0
    assert stoop("status", "-c", config).code == 2
    (record,) = stoop("history", "-c", config, "--json").lines
    assert (record["outcome"], record["target"]["pid"]) == ("done", victim.pid)


@pytest.mark.real
def test_on_a_terminal_the_log_is_text(config: str) -> None:
    ours, theirs = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "stoop.cli", "run", "-c", config],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = read_until(terminal, b"(Ctrl-C ends it)")
        program.send_signal(signal.SIGINT)
        shown += read_until(terminal, b"told to stop")
        assert program.wait(timeout=LIMIT_S) == 0
    assert b" INF rules in force count=1" in shown
    assert b'{"time"' not in shown


@pytest.mark.real
def test_a_refused_start_is_told_and_ends_with_2(write: Callable[..., str], tmp_path: Path) -> None:
    rules = write("rules.yaml", "- rule: a\n  actions: [{action: x}]\n")
    config = write("stoop.yaml", f"state_dir: {tmp_path}/state\nrules_files: [{rules}]\nmetrics: null\n")
    ran = subprocess.run(
        [sys.executable, "-m", "stoop.cli", "run", "-c", config], capture_output=True, cwd=ROOT, timeout=LIMIT_S
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert f"{rules}:2:".encode() in ran.stderr
    assert b"Traceback" not in ran.stderr


@pytest.mark.real
def test_the_agent_does_not_outlive_a_killed_run(stoop_run: subprocess.Popen[bytes], config: str, stoop: Any) -> None:
    assert stoop_run.stderr is not None
    read_until(stoop_run.stderr, b"(Ctrl-C ends it)")
    agent = stoop("status", "-c", config, "--json").lines[0]["pid"]
    pidfd = os.pidfd_open(agent)
    try:
        stoop_run.kill()
        watching = select.poll()
        watching.register(pidfd, select.POLLIN)
        assert watching.poll(LIMIT_S * 1000)
    finally:
        os.close(pidfd)


@pytest.mark.real
def test_the_demonstration(tmp_path: Path) -> None:
    checkout = tmp_path / "c"
    for name in ("stoop", "agent", "tools"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--once"],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=2 * LIMIT_S,
    )
    told = ran.stdout.decode()
    assert (ran.returncode, ran.stderr) == (0, b""), told
    for said in (
        "Run shell untrusted",
        "Kill a shell that an untrusted program started",
        "done, verified",
        "ended by  SIGKILL",
        "✓ the victim is dead",
        "✓ the bystander lives",
    ):
        assert said in told
    assert {path.name for path in checkout.iterdir()} == {"stoop", "agent", "tools", "var"}
    assert not os.path.exists(checkout / "var" / "control.sock")


def test_a_child_is_ended_by_force_when_it_must() -> None:
    child = start(["sh", "-c", "trap '' TERM; echo up; read never"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    with child.stdout, child.stdin:
        assert child.stdout.readline() == b"up\n"
        assert stop(child, 0.05) == -signal.SIGKILL
        assert stop(child, 0.05) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("script", "ready"), [("echo ready", True), ("printf 're'; printf 'ady\\n'", True), ("echo already", False)]
)
def test_ready_is_a_word_of_its_own(script: str, ready: bool) -> None:
    child = start(["sh", "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert wait_ready(child.stdout, LIMIT_S) is ready
    stop(child, LIMIT_S)


def test_ready_is_not_waited_for_ever() -> None:
    child = start(["sh", "-c", "read never"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    with child.stdout, child.stdin:
        assert wait_ready(child.stdout, 0.05) is False
        stop(child, LIMIT_S)


def test_what_was_lost_is_told(agent: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from stoop.cli.running import show_records

    agent.answers["follow"] = {"ok": True}
    agent.records = [{"rule": "R", "outcome": "done"}]
    with control.Follow(str(agent.directory / "control.sock")) as records:
        records.lost = 7
        show_records(records)
    assert "… 7 more, too fast to show" in capsys.readouterr().out
