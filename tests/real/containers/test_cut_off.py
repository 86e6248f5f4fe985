"""SIGKILL of the agent before each system call that changes something: what it changed is held, and comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.real.conftest import PATIENCE_S, await_that
from tests.real.containers.on_node import AgentOnNode, MakeOnNode, Scene, acts_of, make_on_node, rule, scene

__all__ = ["make_on_node", "scene"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace(1) (apt-get install strace)"),
]

CALLS = {
    "process:suspend": ("rename", "write", "pidfd_send_signal"),
    "container:freeze": ("rename", "write", "pwrite64"),
    "container:limit": ("rename", "write"),
}
"""The journal's file is written and takes its place; a signal is sent, a freezer switched, a control file written."""

MAX_CALLS = 40
"""More than any act makes of one kind."""


@contextlib.contextmanager
def killed_before(pid: int, call: str, count: int) -> Iterator[None]:
    """A process gets SIGKILL as one of its threads enters its `count`th such call from now on (strace(1), inject)."""
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={count}")
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", os.devnull, *inject, "-p", str(pid)])
    try:
        await_that(lambda: all(map(is_traced, Path(f"/proc/{pid}/task").iterdir())), "each of its threads is traced")
        yield
    finally:
        tracer.terminate()  # it lets go of whom it traces
        tracer.wait(PATIENCE_S)


def is_traced(task: Path) -> bool:
    return "TracerPid:\t0\n" not in (task / "status").read_text()


def has_ended(agent: AgentOnNode, known: int) -> bool:
    """Whether it was killed, or has carried out one act more than those known."""
    return agent.program.poll() is not None or done(agent) > known


def done(agent: AgentOnNode) -> int:
    return sum(row["outcome"] == "done" for row in acts_of(agent))


@pytest.mark.parametrize("actionner", CALLS)
def test_killed_before_each_change(actionner: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(actionner))
    before = scene.whole()
    kills = {call: killed_before_each(call, actionner, agent, scene) for call in CALLS[actionner]}
    assert scene.whole() == before
    assert kills["rename"] >= 1
    assert sum(kills.values()) >= 3, kills


def killed_before_each(call: str, actionner: str, agent: AgentOnNode, scene: Scene) -> int:
    """One act after the other, killed before its first such call, its second and so on, until one is done: how many."""
    before = scene.whole()
    for count in range(1, MAX_CALLS):
        known = done(agent)
        with killed_before(agent.program.pid, call, count):
            agent.send(scene.alert(actionner))
            await_that(partial(has_ended, agent, known), f"{call} {count}")
        lives = agent.program.poll() is None
        if not lives:
            agent.kill()
            taken = scene.whole() != before
            assert agent.active() or not taken, (call, count)
            agent.start()
        assert {row["outcome"] for row in agent.undo()} <= {"done", "skipped"}, (call, count)
        assert scene.whole() == before, (call, count)
        assert agent.active() == [], (call, count)
        if lives:
            return count - 1
    raise AssertionError(f"more than {MAX_CALLS} times {call}")
