"""An agent that can get no thread and no process, as amid a fork bomb, lives on and acts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.app import WATCHDOG_TICKS
from tests.e2e.conftest import MakeAgent, alert, was_killed
from tests.e2e.test_pacemaker import started
from tests.real.conftest import Spawn, await_that

pytestmark = [pytest.mark.real, pytest.mark.root]

PIDS = Path("/sys/fs/cgroup/pids")
"""The v1 controller (Documentation/admin-guide/cgroup-v1/pids.rst)."""


@contextmanager
def without_threads(pid: int) -> Iterator[None]:
    """This process may start nothing more until the end of the block; it goes back to where it was."""
    here = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":pids:" in line)
    before = PIDS / here.split(":", 2)[2].lstrip("/")
    box = PIDS / f"stoop-test-{os.getpid()}"
    box.mkdir()
    try:
        (box / "pids.max").write_text("1")
        (box / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for each in (box / "cgroup.procs").read_text().split():
            (before / "cgroup.procs").write_text(each)
        box.rmdir()


@pytest.mark.skipif(
    not (PIDS / "cgroup.procs").exists(), reason="this machine has no cgroups of the layout v1 with pids"
)
def test_the_agent_acts_and_recovers(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(pacemaker={"rate": 100, "adaptive": False})
    first = started(agent)
    victim = spawn("sleep", "1000")
    with without_threads(agent.program.pid):
        os.kill(first, signal.SIGKILL)
        os.kill(agent.status()["helper"]["pid"], signal.SIGKILL)
        await_that(lambda: agent.status()["pacemaker"]["restarts"] >= 3, "pacemakers that can't be started")
        begun_s = agent.status()["uptime_s"]
        await_that(lambda: agent.status()["uptime_s"] > begun_s + WATCHDOG_TICKS + 1, "a turn of the watchdog")
        agent.send(alert(victim.pid))
        assert was_killed(victim)
    # Both come back when their pauses are over, of which some 4 s are left.
    started(agent, first)
    await_that(lambda: agent.status()["helper"]["pid"] > 0, "a helper")
    assert agent.records(1)[0]["outcome"] == "done"
