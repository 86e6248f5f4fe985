"""What an act reaches, and how long others wait for it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import KILL_IT, MakeAgent, alert, lives, was_killed
from tests.real.conftest import (
    MakeBox,
    MakeExec,
    MakeNamespaced,
    Process,
    Spawn,
    alive,
    await_that,
    comm,
    line,
    state,
)

pytestmark = pytest.mark.real
root = pytest.mark.root

TERM_IT = KILL_IT.replace('kill"}', 'kill", parameters: {signal: TERM}}')
SESSION = KILL_IT.replace('kill"}', 'kill", parameters: {scope: session}}')
DEAF = "trap '' TERM; echo ready; while :; do read go; done"


def deaf(spawn: Spawn) -> Process:
    """A shell that SIGTERM does not end."""
    program = spawn("sh", "-c", DEAF)
    assert line(program) == "ready"
    return program


def test_ten_named_at_once_all_die(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victims = [spawn("sleep", "1000") for _ in range(10)]
    bystanders = [spawn("sleep", "1000") for _ in range(3)]
    agent.send(*(alert(victim.pid) for victim in victims))
    assert all(map(was_killed, victims))
    rows = agent.records(10)
    assert {row["outcome"] for row in rows} == {"done"}
    assert {row["target"]["pid"] for row in rows} == {victim.pid for victim in victims}
    assert all(map(lives, bystanders))


def test_one_that_is_stopped_dies(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    victim.send_signal(signal.SIGSTOP)
    await_that(lambda: state(victim.pid) == "T", "stopped")
    agent.send(alert(victim.pid))
    assert was_killed(victim)


def test_one_that_does_not_end_is_failed_and_amended_once_it_has_ended(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(TERM_IT, guard={"act_deadline": "300ms"})
    victim = deaf(spawn)
    agent.send(alert(victim.pid))
    (row,) = agent.records(1)
    assert (row["outcome"], "signalled, state S" in row["reason"], row["timing_us"]["verified"]) == (
        "failed",
        True,
        None,
    )
    assert lives(victim)
    victim.kill()
    await_that(lambda: agent.rows()[0]["outcome"] == "done", "amended")
    (row,) = agent.records(1)
    assert row["amended"]
    assert "failed" in str(row["details"]["first"])


def test_a_stuck_act_holds_up_no_other_target(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(TERM_IT, guard={"act_deadline": "30s"})
    stuck, victim = deaf(spawn), spawn("sleep", "1000")
    agent.send(alert(stuck.pid))
    await_that(lambda: agent.status()["queue"]["lanes"] == 1, "the act is under way")
    agent.send(alert(stuck.pid, {"evt.num": 2}))  # waits in the lane
    begun = time.monotonic()
    agent.send(alert(victim.pid))
    assert victim.wait(10) == -signal.SIGTERM
    assert time.monotonic() - begun < 5
    (row,) = agent.records(1)
    assert row["target"]["pid"] == victim.pid
    assert agent.status()["queue"]["waiting"] == 1


def test_what_is_under_way_is_told_when_the_agent_stops(make_agent: MakeAgent, spawn: Spawn) -> None:
    """A stop waits for at most the grace period; what is not verified by then says so."""
    agent = make_agent(TERM_IT, guard={"act_deadline": "1s"})
    stuck = deaf(spawn)
    agent.send(alert(stuck.pid))
    await_that(lambda: agent.status()["queue"]["lanes"] == 1, "the act is under way")
    assert agent.stop() == 0
    (row,) = agent.records(1)
    assert row["outcome"] == "failed"
    agent.start()
    assert agent.status()["recovery"]["clean"]
    assert len(agent.rows()) == 1


@root
def test_an_exec_session_ends_whole_and_the_containers_own_work_goes_on(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced, make_exec: MakeExec
) -> None:
    """`kubectl exec`, and in it a child that left its parent: they end; what the container itself runs does not."""
    agent = make_agent(SESSION)
    inside = make_namespaced("sleep 1000 & wait")
    outer, entry = make_exec(inside, "(sleep 2000 &) ; echo begun; sleep 3000; :")
    assert line(outer) == "begun"
    await_that(lambda: len(inside.box.pids()) >= 5, "all of it runs")
    before = inside.box.pids()
    agent.send(alert(entry, {"container.id": inside.box.container_id[:12]}))
    (row,) = agent.records(1)
    assert row["outcome"] == "done", row
    await_that(lambda: not alive(entry), "the entry has ended")
    left = {pid for pid in before if alive(pid)}
    commands = {Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip() for pid in left}
    assert inside.init in left
    assert b"sleep 1000" in commands
    assert not commands & {b"sleep 2000", b"sleep 3000"}, commands


@root
@pytest.mark.parametrize("kind", ["v2", "v1"])
def test_a_paused_container_ends(make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox, kind: str) -> None:
    agent = make_agent(KILL_IT.replace("process:kill", "container:kill"))
    box = make_box(kind)
    inside = [spawn("sleep", "1000", preexec_fn=box.enter) for _ in range(3)]
    box.freeze()
    agent.send(alert(inside[0].pid, {"container.id": box.container_id[:12]}))
    assert all(map(was_killed, inside))
    (row,) = agent.records(1)
    assert row["outcome"] == "done", row


@root
def test_one_that_moved_out_of_its_containers_cgroup_is_killed(
    make_agent: MakeAgent, make_namespaced: MakeNamespaced
) -> None:
    """What an attacker with a writable cgroup file system can do: his namespaces still tell where he belongs."""
    agent = make_agent(KILL_IT.replace("  allow_host: true\n", ""))
    inside = make_namespaced("sleep 1000 & echo begun; wait")
    assert line(inside.outer) == "begun"
    (victim,) = inside.box.pids() - {inside.init}
    await_that(lambda: comm(victim) == "sleep", "exec")
    for directory in inside.box.directories:
        (directory.parents[3] / "cgroup.procs").write_text(str(victim))
    agent.send(alert(victim, {"container.id": inside.box.container_id[:12]}))
    (row,) = agent.records(1)
    assert row["outcome"] == "done", row
    assert not alive(victim)
