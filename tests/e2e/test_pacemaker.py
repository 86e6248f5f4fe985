"""The pacemaker beside a real agent: protected, restarted, gone with the agent, at rest on a busy node."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.pacing import LEAST_PAUSE
from tests.e2e.conftest import Agent, MakeAgent, alert
from tests.e2e.test_heartbeat import BEAT, KILL_ALL, played
from tests.real.conftest import PATIENCE_S, await_that

pytestmark = pytest.mark.real

PACE = {"rate": 500, "adaptive": False}

PING_PONG = """
import os, signal
(r, w), (back_r, back_w) = os.pipe(), os.pipe()
if os.fork() == 0:
    while True:
        os.write(back_w, os.read(r, 1))
while True:
    os.write(w, b".")
    os.read(back_r, 1)
"""
"""Two processes that wake each other: hundreds of thousands of task switches a second."""


def pacemaker(agent: Agent) -> dict[str, Any]:
    part = agent.status()["pacemaker"]
    assert isinstance(part, dict)
    return part


def started(agent: Agent, *not_these: int) -> int:
    await_that(lambda: pacemaker(agent)["pid"] not in (0, *not_these), "a pacemaker")
    return int(pacemaker(agent)["pid"])


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Its pidfd, which becomes readable when it has ended. Whatever is left of it then is ended."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], PATIENCE_S)[0])


def test_it_runs_beside_the_agent_and_heartbeats_are_told_by_its_state(make_agent: MakeAgent) -> None:
    agent = make_agent(heartbeat=BEAT, pacemaker=PACE)
    with watched(started(agent)) as pidfd, played(agent):
        await_that(lambda: "running" in agent.status()["heartbeat"]["lag_ms"], "a heartbeat beside it")
        await_that(lambda: pacemaker(agent)["rate"] > 0, "a report")
        found = pacemaker(agent)
        assert (found["state"], found["wanted"], found["restarts"], found["trouble"]) == ("running", 500, 0, "")
        assert found["rate"] <= 500 / LEAST_PAUSE
        assert 0 < found["cpu"] < 0.5
        samples = agent.samples()
        assert samples["stoop_pacemaker_up"] == 1
        assert samples["stoop_pacemaker_rate"] > 0
        assert samples['stoop_heartbeat_seconds_count{pacemaker="running"}'] >= 1
        shown = " ".join(agent.stoop("status").stdout.split())
        assert "(pacemaker running)" in shown
        assert "calls/s for" in shown
        assert agent.stop() == 0
        assert ended(pidfd)


@pytest.mark.root
def test_an_alert_that_names_it_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent(KILL_ALL, pacemaker=PACE)
    with watched(started(agent)) as pidfd:
        agent.send(alert(pacemaker(agent)["pid"]))
        (row,) = agent.records(1)
        assert (row["outcome"], "agent itself" in row["reason"]) == ("refused", True)
        assert not select.select([pidfd], [], [], 0)[0]


def test_one_that_was_killed_comes_back(make_agent: MakeAgent) -> None:
    agent = make_agent(pacemaker=PACE)
    first = started(agent)
    os.kill(first, signal.SIGKILL)
    with watched(started(agent, first)):
        assert pacemaker(agent)["restarts"] == 1
        assert agent.samples()["stoop_pacemaker_restarts_total"] == 1
        assert agent.said().count("the pacemaker ended and is started again") == 1


def test_it_does_not_outlive_a_killed_agent_even_when_it_was_stopped(make_agent: MakeAgent) -> None:
    agent = make_agent(pacemaker=PACE)
    pid = started(agent)
    await_that(lambda: Path(f"/proc/{pid}/cwd").readlink() == Path("/"), "a call")
    with watched(pid) as pidfd:
        os.kill(pid, signal.SIGSTOP)
        agent.kill()
        assert ended(pidfd)


@contextmanager
def busy_node() -> Iterator[None]:
    """Until the end of the block, on one processor: its neighbours still get theirs."""
    noise = subprocess.Popen([sys.executable, "-c", PING_PONG], process_group=0, preexec_fn=_one_processor)
    try:
        yield
    finally:
        os.killpg(noise.pid, signal.SIGKILL)
        noise.wait()


def _one_processor() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_on_a_busy_node_it_rests_until_a_heartbeat_feels_it(make_agent: MakeAgent) -> None:
    agent = make_agent(heartbeat=BEAT, pacemaker={"rate": 500, "adaptive": True})
    with watched(started(agent)), played(agent) as falco, busy_node():
        await_that(lambda: pacemaker(agent)["state"] == "resting", "rest")
        await_that(lambda: "resting" in agent.status()["heartbeat"]["lag_ms"], "a heartbeat meanwhile")
        falco.lag_s = 0.02  # as an idle reader's
        await_that(lambda: pacemaker(agent)["state"] == "running", "the end of the rest")
