"""A step of the node's clock while the agent runs.

CLOCK_REALTIME has no namespace, so the agent alone is shown another one: libfaketime, between it and the C library,
adds what a file says. The clocks since boot are left as they are, as a step leaves them.

Whoever sends the alerts keeps the true clock, as Falco does, which reads it once, at its start. `followed` stands for a
Falco that was started after the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that

pytestmark = pytest.mark.real

SECOND_NS = 1_000_000_000
LIBRARY = "faketime/libfaketimeMT.so.1"
NOBODY = 4_194_000
"""A pid that no process has: the kernel gives them in turn, and has far to go."""

STEPPED = "the node's clock was stepped"


def library() -> str:
    """Where Debian's package `faketime` has put it; "" when it is not there."""
    return str(next(iter(sorted(Path("/usr/lib").glob(f"*/{LIBRARY}"))), ""))


@dataclass
class Stepped:
    """An agent whose clock can be set off the true one."""

    agent: Agent
    file: Path

    def step(self, by_s: int) -> None:
        """From now on its clock is so far off; return once it has noticed."""
        steps = self.agent.status()["clock"]["steps"]
        self.turn(by_s)
        await_that(lambda: self.agent.status()["clock"]["steps"] > steps, "the step is noticed")

    def turn(self, by_s: int) -> None:
        """The same, without waiting."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{by_s:+d}\n")
        fresh.replace(self.file)

    def is_believed(self, by_s: int) -> bool:
        """Send one alert about nobody by the old clock; whether its lag is taken for the step by now.

        On a busy machine one may take longer than Falco's own delay, and then says nothing.
        """
        self.answer(NOBODY, time.time_ns())
        return bool(round(self.agent.status()["clock"]["offset_ms"] / 1000) == -by_s)

    def start(self) -> None:
        """Start the agent, its clock true."""
        self.turn(0)
        self.agent.more_environment = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.agent.start()

    def answer(self, pid: int, at_ns: int) -> Row:
        """What comes of an alert that is stamped so."""
        before = len(self.agent.rows())
        self.agent.send(alert(pid, at_ns=at_ns))
        return self.agent.records(before + 1)[-1]


@pytest.fixture
def stepped(make_agent: MakeAgent, tmp_path: Path) -> Stepped:
    if not library():
        pytest.skip("libfaketime is missing (Debian: faketime): no clock can be stepped for one process alone")
    made = Stepped(make_agent(start=False), tmp_path / "clock")
    made.start()
    return made


@pytest.mark.parametrize("followed", [True, False], ids=["falco-restarted", "falco-goes-on"])
@pytest.mark.parametrize("by_s", [10, -10])
def test_after_a_step_the_one_meant_dies_and_old_alerts_expire(
    stepped: Stepped, spawn: Spawn, by_s: int, followed: bool
) -> None:
    """Falco that goes on by the old clock is 10 s off: without the step it would be a backlog, or another machine's."""
    old = spawn("sleep", "1000")
    first, second, bystander = (spawn("sleep", "1000") for _ in range(3))
    assert stepped.answer(first.pid, time.time_ns())["outcome"] == "done"
    stepped.step(by_s)
    await_that(lambda: STEPPED in stepped.agent.said(), "it is said")
    off_ns = by_s * SECOND_NS if followed else 0
    if not followed:
        await_that(lambda: stepped.is_believed(by_s), "one alert came at once")

    for victim in (second, spawn("sleep", "1000"), old):
        row = stepped.answer(victim.pid, time.time_ns() + off_ns)
        assert row["outcome"] == "done", row
        assert was_killed(victim)
    clock = stepped.agent.status()["clock"]
    assert (round(clock["offset_ms"] / 1000), clock["steps"]) == (0 if followed else -by_s, 1)

    for age_s, outcome in ((59, "refused"), (61, "expired")):  # the bystander began after both
        row = stepped.answer(bystander.pid, time.time_ns() + off_ns - age_s * SECOND_NS)
        assert row["outcome"] == outcome, row
    assert lives(bystander)


@pytest.mark.root
@pytest.mark.parametrize("by_s", [10, -10])
def test_after_a_step_a_newcomer_with_the_pid_lives(
    stepped: Stepped, spawn: Spawn, respawn: Callable[[int], None], by_s: int
) -> None:
    stepped.step(by_s)
    victim = spawn("sleep", "1000")
    event_ns = time.time_ns()
    victim.kill()
    victim.wait(PATIENCE_S)
    respawn(victim.pid)  # of another parent than the alert says
    row = stepped.answer(victim.pid, event_ns)
    assert row["outcome"] == "refused", row
    assert alive(victim.pid)


def test_the_first_alert_after_a_step_is_judged_by_it(stepped: Stepped, spawn: Spawn) -> None:
    """Also before the agent has looked at its clocks by itself, which it does once a second."""
    victim = spawn("sleep", "1000")
    stepped.turn(-10)
    row = stepped.answer(victim.pid, time.time_ns())
    assert row["outcome"] == "done", row
    assert was_killed(victim)
