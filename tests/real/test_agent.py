"""The whole agent against containers' processes and pids given anew. Root only: it makes cgroups and namespaces."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.agent import Agent, alert_line, running
from bench.victims import Victim
from stoop.history import read

pytestmark = [pytest.mark.real, pytest.mark.root]

PATIENCE_S = 10.0
GUARD = {"pid_namespace": "agent", "max_targets": 0, "max_targets_total": 0, "dedup_window": "0s"}
NO_HOST = """
- rule: Kill it
  match: {rules: [Terminal shell in container]}
  actions: [{action: kill, actionner: "process:kill"}]
"""
WHOLE = NO_HOST.replace("process:kill", "container:kill")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def is_dead(process: subprocess.Popen[Any]) -> bool:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def rows(agent: Agent, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := list(read(agent.directory / "state"))) < count and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    return found


def test_a_containers_process_that_calls_itself_kubelet_is_killed(
    make_box: Callable[..., Any], spawn: Callable[..., Any], tmp_path: Path
) -> None:
    disguised = tmp_path / "kubelet"
    shutil.copy("/bin/sleep", disguised)
    box = make_box("v2")
    victim = spawn(str(disguised), "1000", preexec_fn=box.enter)
    outside = spawn(str(disguised), "1000")
    with running(NO_HOST, guard=GUARD) as agent, agent.connect() as sock:
        sock.sendall(alert_line(victim.pid, os.getpid(), {"container.id": box.container_id[:12]}))
        assert is_dead(victim)
        sock.sendall(alert_line(outside.pid, os.getpid(), {"container.id": box.container_id[:12]}))
        found = rows(agent, 2)
        assert outside.poll() is None
    by_pid = {row["target"]["pid"]: row for row in found}
    assert (by_pid[victim.pid]["outcome"], by_pid[outside.pid]["outcome"]) == ("done", "refused")
    assert by_pid[victim.pid]["target"]["container_id"] == box.container_id


def test_a_namespace_that_nobody_can_tell_is_not_passed(
    make_box: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    rules = NO_HOST.replace("container]}", 'container], output_fields: ["k8s.ns.name!=kube-system"]}')
    box = make_box("v2")
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    with running(rules, guard=GUARD) as agent, agent.connect() as sock:
        sock.sendall(alert_line(victim.pid, os.getpid(), {"container.id": box.container_id[:12], "k8s.ns.name": None}))
        (row,) = rows(agent, 1)
        assert victim.poll() is None
        sock.sendall(alert_line(victim.pid, os.getpid(), {"k8s.ns.name": "default"}))
        assert is_dead(victim)
    assert (row["outcome"], "k8s.ns.name" in row["reason"]) == ("refused", True)


@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
def test_a_whole_container_ends_and_nothing_outside(
    make_box: Callable[..., Any], spawn: Callable[..., Any], kind: str
) -> None:
    box = make_box(kind)
    inside = [spawn("sleep", "1000", preexec_fn=box.enter) for _ in range(3)]
    outside = spawn("sleep", "1000")
    with running(WHOLE, guard=GUARD) as agent, agent.connect() as sock:
        sock.sendall(alert_line(inside[0].pid, os.getpid(), {"container.id": box.container_id[:12]}))
        assert all(map(is_dead, inside))
        (row,) = rows(agent, 1)
        assert outside.poll() is None
    assert row["outcome"] == "done"


def _newcomer(pid: int) -> Victim | None:
    """A process with this number, which has just become free; None when another one got it first."""
    LAST_PID.write_text(str(pid - 1))
    found = Victim()
    if found.pid == pid:
        return found
    found.end()
    return None


def test_who_got_the_pid_anew_lives_also_within_the_same_tick() -> None:
    """Same parent, same executable, mostly within the 10 ms tick of the event: only the µs tell them apart."""
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("ns_last_pid can't be written here: no pid can be given anew on purpose")
    with running(guard=GUARD) as agent, agent.connect() as sock:
        newcomers = []
        for _ in range(20):
            victim = Victim()
            line = alert_line(victim.pid, os.getpid())
            victim.end()
            newcomer = _newcomer(victim.pid)
            if newcomer is not None:
                sock.sendall(line)
                newcomers.append(newcomer)
        assert newcomers, "no pid was given anew in 20 tries"
        found = rows(agent, len(newcomers))
        alive = [not select.select([newcomer.pidfd], [], [], 0)[0] for newcomer in newcomers]
        for newcomer in newcomers:
            newcomer.end()
    assert all(alive)
    assert {row["outcome"] for row in found} == {"refused"}


def test_without_descriptors_the_agent_lives_and_serves_again(spawn: Callable[..., Any]) -> None:
    victim = spawn("sleep", "1000")
    with running(guard=GUARD) as agent:
        subprocess.run(["prlimit", f"--pid={agent.process.pid}", "--nofile=40:40"], check=True)
        crowd = [agent.connect() for _ in range(60)]
        for sock in crowd:
            sock.close()
        deadline = time.monotonic() + PATIENCE_S
        with agent.connect() as sock:
            while victim.poll() is None and time.monotonic() < deadline:
                sock.sendall(alert_line(victim.pid, os.getpid()))
                select.select([], [], [], 0.1)
        assert victim.wait(PATIENCE_S) == -signal.SIGKILL
