"""The whole agent as a program: alerts in over real sockets, and what became of the world and of the record."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.agent import Agent, alert_line, running
from bench.victims import Victim
from stoop.control import Arm, SetMode, ask
from stoop.history import read
from stoop.spec import Mode

pytestmark = pytest.mark.real

PATIENCE_S = 10.0
GUARD = {"pid_namespace": "agent"}
FREE = {**GUARD, "max_targets": 0, "max_targets_total": 0, "dedup_window": "0s"}


@contextlib.contextmanager
def victims(count: int = 1) -> Iterator[list[Victim]]:
    """Processes of one executable; reaped afterwards whatever became of them."""
    found = [Victim() for _ in range(count)]
    try:
        yield found
    finally:
        for victim in found:
            victim.end()


def is_dead(victim: Victim, within_s: float = PATIENCE_S) -> bool:
    return bool(select.select([victim.pidfd], [], [], within_s)[0])


def lives(victim: Victim) -> bool:
    return not select.select([victim.pidfd], [], [], 0)[0]


def records(agent: Agent, count: int) -> list[dict[str, Any]]:
    """The journal's rows once there are so many: its writer is some ms behind."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        rows = list(read(agent.directory / "state"))
        if len(rows) >= count or time.monotonic() > deadline:
            return rows
        select.select([], [], [], 0.01)


def control(agent: Agent) -> str:
    return str(agent.directory / "state" / "control.sock")


def test_the_one_named_dies_and_a_bystander_lives() -> None:
    with victims(2) as (victim, bystander), running(guard=GUARD) as agent:
        with agent.connect() as sock:
            sock.sendall(alert_line(victim.pid, os.getpid()))
            assert is_dead(victim)
        (row,) = records(agent, 1)
        assert lives(bystander)
    assert {"alert", "run", "act", "rule", "action", "actionner", "outcome", "reason", "target", "timing_us"} <= set(
        row
    )
    assert (row["outcome"], row["rule"], row["actionner"]) == ("done", "Kill a terminal shell", "process:kill")
    assert row["target"]["pid"] == victim.pid
    steps = [row["timing_us"][step] for step in ("received", "decided", "acted", "verified")]
    assert steps == sorted(steps)
    assert agent.process.returncode == 0
    assert not Path(agent.socket_path).exists()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2, None, "4321", 2**63, True, 1.5])
def test_what_is_no_target_is_refused(pid: object) -> None:
    with running(guard=GUARD) as agent:
        fields = {"proc.pid": pid, "thread.tid": 7}
        with agent.connect() as sock:
            sock.sendall(alert_line(4321, os.getpid(), fields))
            (row,) = records(agent, 1)
    assert (row["outcome"], bool(row["reason"])) == ("refused", True)


def test_the_agent_and_its_helper_are_never_touched() -> None:
    with running(guard=FREE) as agent, agent.connect() as sock:
        for pid in agent.pids():
            sock.sendall(alert_line(pid, os.getpid()))
        rows = records(agent, 2)
        assert [row["reason"] for row in rows] == ["it is the agent itself or a parent of it"] * 2


def test_a_host_process_needs_the_rules_leave() -> None:
    rules = json.dumps(
        [
            {
                "rule": "Kill it",
                "match": {"rules": ["Terminal shell in container"]},
                "actions": [{"action": "kill", "actionner": "process:kill"}],
            }
        ]
    )
    with victims() as (victim,), running(rules, guard=GUARD) as agent, agent.connect() as sock:
        sock.sendall(alert_line(victim.pid, os.getpid()))
        (row,) = records(agent, 1)
        assert lives(victim)
    assert "allow_host" in row["reason"]


def test_a_protected_executable_of_the_host_is_spared(tmp_path: Path) -> None:
    program = tmp_path / "important"
    shutil.copy("/bin/sleep", program)
    guard = {**GUARD, "protected_executables": ["important"]}
    with subprocess.Popen([str(program), "600"]) as other, running(guard=guard) as agent, agent.connect() as sock:
        while os.readlink(f"/proc/{other.pid}/exe") != str(program):
            select.select([], [], [], 0.005)
        sock.sendall(alert_line(other.pid, os.getpid()))
        (row,) = records(agent, 1)
        assert other.poll() is None
        other.kill()
    assert "protected executable" in row["reason"]


def test_a_missing_namespace_of_a_host_process_is_none_to_protect() -> None:
    rules = """
- rule: Kill it
  match: {rules: [Terminal shell in container], output_fields: ["k8s.ns.name!=kube-system"]}
  allow_host: true
  actions: [{action: kill, actionner: "process:kill"}]
"""
    with victims(2) as (victim, other), running(rules, guard=FREE) as agent, agent.connect() as sock:
        sock.sendall(alert_line(victim.pid, os.getpid(), {"k8s.ns.name": None}))
        assert is_dead(victim)
        sock.sendall(alert_line(other.pid, os.getpid(), {"k8s.ns.name": "kube-system"}))
        sock.sendall(alert_line(1, os.getpid(), {"k8s.ns.name": "default"}))
        rows = {row["outcome"] for row in records(agent, 2)}
        assert lives(other)
    assert rows == {"done", "refused"}


def test_an_exec_after_the_alert_saves_nobody() -> None:
    script = "import os,sys; sys.stdin.readline(); os.execv('/bin/sleep', ['renamed', '600'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        line = alert_line(shell.pid, os.getpid(), {"proc.exepath": sys.executable})
        shell.stdin.write(b"\n")
        shell.stdin.flush()
        while b"renamed" not in Path(f"/proc/{shell.pid}/cmdline").read_bytes():
            select.select([], [], [], 0.005)
        with running(guard=GUARD) as agent, agent.connect() as sock:
            sock.sendall(line)
            assert shell.wait(PATIENCE_S) == -signal.SIGKILL


def test_old_alerts_expire_also_when_all_of_them_are_old() -> None:
    with victims() as (victim,), running(guard=FREE) as agent, agent.connect() as sock:
        old = json.loads(alert_line(victim.pid, os.getpid()))
        for number in range(12):
            old["time"] = f"2020-01-02T03:04:05.{number:09d}Z"
            sock.sendall(json.dumps(old).encode() + b"\n")
        rows = records(agent, 12)
        assert lives(victim)
    assert {row["outcome"] for row in rows} == {"expired"}


def test_an_alert_of_another_clock_does_not_blind_the_agent() -> None:
    with victims() as (victim,), running(guard=GUARD) as agent, agent.connect() as sock:
        audit = json.loads(alert_line(1, 1, rule="Other"))
        audit |= {"source": "k8s_audit", "time": "2099-01-02T03:04:05.000000000Z"}
        sock.sendall(json.dumps(audit).encode() + b"\n" + alert_line(victim.pid, os.getpid()))
        assert is_dead(victim)


def test_modes_and_the_emergency_stop() -> None:
    with victims(3) as found, running(guard=FREE, mode="observe") as agent, agent.connect() as sock:
        for mode, victim in zip((None, Mode.OFF, Mode.ENFORCE), found, strict=True):
            if mode is not None:
                ask(control(agent), SetMode(mode, 3600.0))
            sock.sendall(alert_line(victim.pid, os.getpid()))
            records(agent, found.index(victim) + 1)
        assert [row["outcome"] for row in records(agent, 3)] == ["would", "skipped", "done"]
        assert [lives(victim) for victim in found] == [True, True, False]


def test_a_rule_that_hits_too_much_is_disarmed_until_it_is_armed(tmp_path: Path) -> None:
    programs = []
    for number in range(3):
        path = tmp_path / f"program{number}"
        shutil.copy("/bin/sleep", path)
        programs.append(subprocess.Popen([str(path), "600"]))
    try:
        for number, program in enumerate(programs):
            while not os.readlink(f"/proc/{program.pid}/exe").endswith(f"program{number}"):
                select.select([], [], [], 0.005)
        with running(guard={**GUARD, "max_targets": 2}) as agent, agent.connect() as sock:
            for number, program in enumerate(programs):
                sock.sendall(alert_line(program.pid, os.getpid()))
                records(agent, number + 1)
            assert [row["outcome"] for row in records(agent, 3)] == ["done", "done", "would"]
            assert "Kill a terminal shell" in agent.status()["disarmed"]
            ask(control(agent), Arm("Kill a terminal shell"))
            sock.sendall(alert_line(programs[2].pid, os.getpid()))
            assert programs[2].wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        for program in programs:
            program.kill()
            program.wait()


def test_bad_input_leaves_the_next_alert_alone() -> None:
    with victims() as (victim,), running(guard=GUARD) as agent, agent.connect() as sock:
        for bad in (b"\xff\xfe garbage", b'{"rule":', b"[" * 100_000, b"x" * 3_000_000, b'{"rule": 7}'):
            sock.sendall(bad + b"\n")
        sock.sendall(alert_line(victim.pid, os.getpid()))
        assert is_dead(victim)
        assert agent.status()["counts"]["refused"] == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: a foreign sender can't be tried")
@pytest.mark.parametrize("way", ["post", "stream", "socks"])
def test_curl_reaches_the_unix_socket_in_each_way(way: str) -> None:
    with victims() as (victim,), running(guard=GUARD) as agent:
        line = alert_line(victim.pid, os.getpid())
        path = agent.socket_path
        options = {
            "post": ["--unix-socket", path, "--data-binary", "@-"],
            "stream": ["--unix-socket", path, "-N", "-T", "."],
            "socks": ["--data-binary", "@-"],
        }[way]
        env = {**os.environ, "http_proxy": f"socks5h://localhost{path}"} if way == "socks" else dict(os.environ)
        subprocess.run(["curl", "-sS", *options, "http://stoop/"], input=line, env=env, check=True, timeout=PATIENCE_S)
        assert is_dead(victim)


def test_a_broken_rules_file_leaves_the_old_rules_in_force() -> None:
    with victims() as (victim,), running(guard=GUARD) as agent, agent.connect() as sock:
        agent.rules.write_text("- rule: [")
        deadline = time.monotonic() + PATIENCE_S
        while not agent.status()["rules"]["last_error"] and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        assert "rules.yaml:2:1" in agent.status()["rules"]["last_error"]
        metrics = agent.status()["metrics"]
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics['port']}/metrics", timeout=PATIENCE_S) as page:
            assert b'stoop_reloads_total{result="rejected"} 1' in page.read()
        sock.sendall(alert_line(victim.pid, os.getpid()))
        assert is_dead(victim)


def test_the_helpers_death_costs_no_act() -> None:
    with victims(2) as (first, second), running(guard=FREE) as agent, agent.connect() as sock:
        helper = agent.status()["helper"]["pid"]
        os.kill(helper, signal.SIGKILL)
        sock.sendall(alert_line(first.pid, os.getpid()))
        assert is_dead(first)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = agent.status()
            if status["helper"]["pid"] not in (0, helper) and status["metrics"]:
                break
            select.select([], [], [], 0.05)
        assert agent.status()["helper"]["restarts"] == 1
        sock.sendall(alert_line(second.pid, os.getpid()))
        assert is_dead(second)


def _again(agent: Agent) -> subprocess.Popen[bytes]:
    """The agent once more, over the same state."""
    command = [sys.executable, "-m", "agent.app", "-c", str(agent.directory / "stoop.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
def test_killed_amid_a_thousand_alerts_nothing_is_done_twice_and_the_loss_is_told(after_s: float) -> None:
    with victims(10) as found, running(guard=FREE, mode="observe") as agent:
        lines = [alert_line(found[n % 10].pid, os.getpid(), {"evt.num": n}) for n in range(1000)]
        with agent.connect() as sock:
            sock.sendall(b"".join(lines))
            select.select([], [], [], after_s)
            os.kill(agent.process.pid, signal.SIGKILL)
            agent.process.wait(PATIENCE_S)
        process = _again(agent)
        try:
            recovery = agent.status()["recovery"]
            before = len(list(read(agent.directory / "state")))
            with agent.connect() as sock:
                sock.sendall(b"".join(lines))
                rows = records(agent, 1000)
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
            assert process.stdout is not None
            process.stdout.close()
        counts = collections.Counter(row["act"] for row in rows)
    assert max(counts.values()) == 1
    assert len(rows) == 1000
    assert before == 1000 or not recovery["clean"]


def test_a_second_agent_on_the_same_socket_is_refused_with_the_pid_of_the_first() -> None:
    with running(guard=GUARD) as agent:
        command = [sys.executable, "-m", "agent.app", "-c", str(agent.directory / "stoop.yaml")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 2
    assert str(agent.process.pid) in second.stderr


def test_rules_that_can_not_be_used_end_the_start_with_every_problem(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- rule: one\n  match: {priority: '>=Nothing'}\n  actions: [{action: a, actionner: 'kubernetes:cordon'}]\n"
        "- rule: two\n  actions: [{action: b, actionner: 'no:such'}]\n"
    )
    config = tmp_path / "stoop.yaml"
    config.write_text(json.dumps({"state_dir": str(tmp_path / "state"), "metrics": None}))
    command = [sys.executable, "-m", "agent.app", "-c", str(config), "-r", str(rules)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert "rules.yaml:2:" in ended.stderr
    assert "ready" not in ended.stdout


def test_one_noisy_container_does_not_starve_another() -> None:
    with victims() as (victim,), running(guard=FREE) as agent:
        noise = b"".join(
            alert_line(4_000_000, os.getpid(), {"container.id": "a" * 12, "evt.num": n}) for n in range(3000)
        )
        with agent.connect() as noisy, agent.connect() as other:
            noisy.setblocking(False)
            sent = noisy.send(noise)
            other.sendall(alert_line(victim.pid, os.getpid()))
            assert is_dead(victim)
            assert sent > 0
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(agent.socket_path)
