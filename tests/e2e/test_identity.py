"""A pid is a number: who has it now may be another one, and who was meant may look different by now."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import MakeAgent, alert, lives, was_killed
from tests.real.conftest import (
    PATIENCE_S,
    SYS_EXIT,
    ZOMBIE_LEADER,
    Spawn,
    alive,
    await_that,
    comm,
    line,
    say,
    state,
)

pytestmark = pytest.mark.real

ROUNDS = 20
"""Pids given anew in one test: most of them within one tick of the event."""

TICK_NS = 10_000_000


@pytest.mark.root
def test_a_newcomer_with_the_pid_lives_also_within_the_tick(
    make_agent: MakeAgent, spawn: Spawn, respawn: Callable[[int], None]
) -> None:
    agent = make_agent()
    same_tick = 0
    for number in range(1, ROUNDS + 1):
        victim = spawn("sleep", "1000")
        said, event_ns = alert(victim.pid, {"evt.num": number}), time.time_ns()
        victim.kill()
        victim.wait(PATIENCE_S)
        respawn(victim.pid)
        same_tick += time.time_ns() // TICK_NS == event_ns // TICK_NS
        agent.send(said)
        row = agent.records(number)[-1]
        assert row["outcome"] == "refused", row
        assert alive(victim.pid)
        os.kill(victim.pid, 9)  # ours: `respawn` started it
    if not same_tick:
        pytest.skip(f"{ROUNDS} times no pid was given anew within one tick")


@pytest.mark.root
def test_a_newcomer_long_after_the_event_lives_and_its_predecessor_is_said_to_be_gone(
    make_agent: MakeAgent, spawn: Spawn, respawn: Callable[[int], None]
) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    said = alert(victim.pid, {"proc.vpid": victim.pid, "proc.ppid": os.getpid()})
    victim.kill()
    victim.wait(PATIENCE_S)
    agent.send(said)
    (row,) = agent.records(1)
    assert row["outcome"] == "skipped"
    respawn(victim.pid)
    agent.send(said.replace(b'"Notice"', b'"Error"').replace(b'"root"', b'"toor"'))
    assert agent.records(2)[-1]["outcome"] == "refused"
    assert alive(victim.pid)


def test_an_exec_after_the_alert_saves_nobody(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sh", "-c", "read go; exec sleep 1000")
    await_that(lambda: comm(victim.pid) == "sh", "started")
    said = alert(victim.pid, {"proc.exepath": "/bin/sh"})
    say(victim)
    await_that(lambda: comm(victim.pid) == "sleep", "exec")
    agent.send(said)
    assert was_killed(victim)


def test_a_first_thread_that_ended_does_not_hide_the_others(make_agent: MakeAgent, spawn: Spawn) -> None:
    number = SYS_EXIT.get(platform.machine())
    if number is None:
        pytest.skip(f"no number of exit(2) for {platform.machine()}")
    agent = make_agent()
    victim = spawn(sys.executable, "-c", ZOMBIE_LEADER, str(number))
    assert line(victim) == "ready"
    await_that(lambda: state(victim.pid) == "Z", "the first thread has ended")
    assert lives(victim)
    agent.send(alert(victim.pid))
    assert was_killed(victim)
    (row,) = agent.records(1)
    assert row["outcome"] == "done"


def test_one_that_has_exited_is_skipped(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("true")
    await_that(lambda: state(victim.pid) == "Z", "a zombie that nobody has waited for")
    agent.send(alert(victim.pid))
    (row,) = agent.records(1)
    assert (row["outcome"], row["reason"]) == ("skipped", "already exited")
