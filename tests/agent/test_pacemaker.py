"""The reflex's end of the pacemaker, with real processes: started, restarted, ended whatever state it is in."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.pacemaker import DOWN, RUNNING, Pacer
from stoop.config import Pacemaker
from stoop.metrics import Metrics
from tests.real.conftest import PATIENCE_S

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts in safe path mode (`-P`), so the checkout is named."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class Scene:
    """A pacer, and what it told."""

    def __init__(self) -> None:
        self.lives: list[int] = []
        self.said: list[str] = []
        self._told = trio.Event()
        self.metrics = Metrics()
        self.pacer = Pacer(
            Pacemaker(rate=100, adaptive=False),
            self.metrics,
            lambda level, event, **fields: self._tell(self.said, event),
            lambda pid: self._tell(self.lives, pid),
        )

    def _tell(self, what: list[Any], told: object) -> None:
        what.append(told)
        self._told.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pacer.serve)
            yield
            nursery.cancel_scope.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                self._told = trio.Event()
                await self._told.wait()


def gone(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], PATIENCE_S)[0])


async def test_it_runs_while_it_is_served_and_not_after() -> None:
    scene = Scene()
    assert scene.pacer.pace() == DOWN
    async with scene.serving():
        await scene.until(lambda: scene.pacer.pid > 0)
        pid = scene.pacer.pid
        pidfd = os.pidfd_open(pid)
        assert scene.pacer.pace() == RUNNING
        scene.pacer.count()
        assert scene.metrics.samples()["pacemaker_up"] == [((), 1)]
    ended = gone(pidfd)
    os.close(pidfd)
    assert ended
    assert (scene.lives, scene.pacer.pace(), scene.said) == ([pid, 0], DOWN, [])


async def test_one_that_is_killed_is_started_again() -> None:
    scene = Scene()
    async with scene.serving():
        await scene.until(lambda: scene.pacer.pid > 0)
        first = scene.pacer.pid
        os.kill(first, signal.SIGKILL)
        await scene.until(lambda: scene.pacer.pid not in (0, first))
        assert scene.pacer.status()["restarts"] == 1
    assert [bool(pid) for pid in scene.lives] == [True, False, True, False]
    assert scene.said == ["the pacemaker ended and is started again"]
    assert dict(scene.metrics.samples()["pacemaker_restarts_total"]) == {(): 1}


async def test_one_that_was_stopped_does_not_hold_up_the_end() -> None:
    scene = Scene()
    async with scene.serving():
        await scene.until(lambda: scene.pacer.pid > 0)
        pidfd = os.pidfd_open(scene.pacer.pid)
        os.kill(scene.pacer.pid, signal.SIGSTOP)
    ended = gone(pidfd)
    os.close(pidfd)
    assert (ended, scene.lives[-1]) == (True, 0)


async def test_the_end_may_come_before_it_has_begun() -> None:
    scene = Scene()
    with trio.fail_after(PATIENCE_S):
        async with scene.serving():
            await trio.lowlevel.checkpoint()
    assert scene.pacer.pid == 0
    assert [bool(pid) for pid in scene.lives] in ([], [True, False])


async def test_a_peer_that_is_no_pacemaker_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends what is no report, and would live on."""
    program = tmp_path / "peer"
    body = "import os, signal, sys\nos.write(int(sys.argv[4]), b'garbage')\nsignal.pause()\n"
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    scene = Scene()
    async with scene.serving():
        await scene.until(lambda: len(scene.lives) >= 3)
    assert [bool(pid) for pid in scene.lives[:3]] == [True, False, True]
    assert scene.lives[0] != scene.lives[2]


async def test_a_program_that_can_t_be_started_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    scene = Scene()
    async with scene.serving():
        await scene.until(lambda: scene.pacer.restarts >= 2)
    assert "No such file" in scene.pacer.trouble
    assert scene.lives == []
