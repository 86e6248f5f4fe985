"""The main job: the process that an alert names dies, nothing else does, and everything is told of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from stoop.control import Follow
from tests.e2e.conftest import KILL_IT, MakeAgent, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that, comm, line

pytestmark = pytest.mark.real

FIELDS = {"alert", "run", "act", "rule", "action", "actionner", "outcome", "reason", "target", "timing_us"}


def test_the_victim_dies_the_bystander_lives_and_all_of_it_is_told(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim, bystander = spawn("sleep", "1000"), spawn("sleep", "1000")
    with Follow(agent.control_path) as follow:
        agent.send(alert(victim.pid))
        assert was_killed(victim)
        (live,) = follow.read(PATIENCE_S)
    (row,) = agent.records(1)
    assert lives(bystander)
    assert row.keys() >= FIELDS
    assert {key: row[key] for key in FIELDS} == {key: live[key] for key in FIELDS}
    assert (row["outcome"], row["rule"], row["action"]) == ("done", "Kill a terminal shell", "Kill it")
    assert (row["actionner"], row["target"]["pid"]) == ("process:kill", victim.pid)
    steps = [row["timing_us"][step] for step in ("received", "decided", "acted", "verified")]
    assert steps == sorted(steps)
    assert steps[0] > 0
    printed = agent.stoop("history", "--json")
    assert (printed.returncode, json.loads(printed.stdout)) == (0, row)
    samples = agent.samples()
    assert samples['stoop_acts_total{action="process:kill",outcome="done"}'] == 1
    assert agent.status()["counts"]["outcomes"]["done"] == 1


def test_a_tree_dies_with_the_one_named(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(KILL_IT.replace('kill"}', 'kill", parameters: {scope: tree}}'))
    top = spawn("sh", "-c", "sleep 1000 & sh -c 'sleep 1001; :' & echo $!; wait")
    bystander = spawn("sleep", "1002")
    inner = int(line(top))
    await_that(lambda: comm(inner) == "sh", "the inner shell")
    agent.send(alert(top.pid))
    assert was_killed(top)
    (row,) = agent.records(1)
    assert (row["outcome"], alive(inner), lives(bystander)) == ("done", False, True), row


def test_told_to_stop_it_ends_in_order_and_leaves_no_socket(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    helper = agent.status()["helper"]["pid"]
    with agent.connect() as sock:
        sock.sendall(alert(victim.pid))
        assert was_killed(victim)
        assert agent.stop() == 0
        assert sock.recv(1) == b""  # an open connection does not hold it up
    assert not Path(agent.socket_path).exists()
    assert not Path(agent.control_path).exists()
    await_that(lambda: not Path(f"/proc/{helper}").exists(), "the helper ends with it")
    (row,) = agent.records(1)
    assert row["outcome"] == "done"
    agent.start()
    assert agent.status()["recovery"] == {"clean": True, "unfinished": 0, "window": None}


def helper_of(pid: int) -> int:
    """The helper's pid, as soon as it is one; 0 before. It is the child of a thread (proc(5): task/TID/children)."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread or the child has just ended
            for child in children.read_text().split():
                if b"agent.helper" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return 0


def test_told_to_stop_while_it_starts_it_ends(make_agent: MakeAgent) -> None:
    """Its helper is slow (here: stopped), so that it is not ready; it must not need SIGKILL for that."""
    agent = make_agent(start=False)
    agent.launch()
    await_that(lambda: helper_of(agent.program.pid) != 0, "its helper is started")
    pidfd = os.pidfd_open(helper_of(agent.program.pid))
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        await_that(lambda: Path(agent.control_path).is_socket(), "it waits for its rules")
        assert not agent.status()["ready"]
        assert agent.stop() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_a_stale_socket_is_replaced(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    agent.kill()
    assert Path(agent.socket_path).is_socket()
    agent.start()
    victim = spawn("sleep", "1000")
    agent.send(alert(victim.pid))
    assert was_killed(victim)


def test_a_second_agent_is_refused_and_told_who_is_there(make_agent: MakeAgent) -> None:
    agent = make_agent()
    second = agent.once()
    assert (second.returncode, str(agent.program.pid) in second.stderr) == (2, True)
    # With a state directory of its own it is the socket that is in use.
    other = make_agent(start=False, intake={"unix": {"path": agent.socket_path}})
    ended = other.once()
    assert (ended.returncode, str(agent.program.pid) in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(agent.socket_path)  # the first one was not disturbed


def test_the_socket_is_its_owners(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert os.stat(agent.socket_path).st_mode & 0o777 == 0o600
    assert os.stat(agent.state_dir).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("replaced", [False, True])
def test_a_socket_that_is_removed_under_it_is_told(make_agent: MakeAgent, replaced: bool) -> None:
    """It still listens, and nobody can connect: Falco would write into nothing, and the agent look ready."""
    agent = make_agent()
    assert agent.get("readyz")[0] == 200
    os.unlink(agent.socket_path)
    if replaced:
        Path(agent.socket_path).touch()
    await_that(lambda: agent.get("readyz")[0] == 503, "it is not ready")
    assert "removed or replaced" in agent.get("readyz")[1]
    assert agent.samples()['stoop_intake_up{intake="unix"}'] == 0
    status = agent.stoop("status")
    assert (status.returncode, "! intake unix can't be reached" in status.stdout) == (1, True)
    assert "an intake can't be reached any more" in agent.said()
    assert agent.get("healthz")[0] == 200
