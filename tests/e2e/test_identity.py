"""A pid is a number: who has it now may be another one, and who was meant may look different by now."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

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

TICKS = os.sysconf("SC_CLK_TCK")


def stat_field(pid: int, number: int) -> int:
    """A field of /proc/PID/stat, counted as in proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[number - 3])


def parent(pid: int) -> int:
    return stat_field(pid, 4)


def start_ticks(pid: int) -> int:
    """When it began, in clock ticks since the boot: all that /proc tells."""
    return stat_field(pid, 22)


def event_ns_to_ticks(event_ns: int) -> int:
    """The same of an event's time."""
    since_boot_ns = event_ns - time.time_ns() + time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return since_boot_ns * TICKS // 10**9


@pytest.mark.root
def test_a_newcomer_with_the_pid_lives_also_within_the_tick(
    make_agent: MakeAgent, spawn: Spawn, respawn: Callable[[int], None]
) -> None:
    """Its parent and its program are those of the one meant: nothing but the time tells them apart."""
    agent = make_agent()
    same_tick = 0
    for number in range(ROUNDS):
        victim = spawn("sleep", "1000")
        event_ns = time.time_ns()
        victim.kill()
        victim.wait(PATIENCE_S)
        respawn(victim.pid)
        same_tick += start_ticks(victim.pid) == event_ns_to_ticks(event_ns)
        await_that(lambda pid=victim.pid: comm(pid) == "sleep", "exec")  # type: ignore[misc]
        same = {"proc.ppid": parent(victim.pid), "proc.exe_ino": os.stat(f"/proc/{victim.pid}/exe").st_ino}
        agent.send(alert(victim.pid, same, at_ns=event_ns))
        row = agent.records(2 * number + 1)[-1]
        assert (row["outcome"], str(victim.pid) in row["reason"]) == ("refused", True), row
        assert alive(victim.pid)
        # It is not spared for ever: an alert of now means it.
        agent.send(alert(victim.pid, same))
        assert agent.records(2 * number + 2)[-1]["outcome"] == "done"
        assert not alive(victim.pid)
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
