"""A target stands still while it is read, no longer than it may, and never for ever: real cgroups, real workers."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from agent.capture import Stillness, box, run_still, whom
from agent.jobs import VOLATILE, Result
from agent.node.host import LinuxHost
from stoop.errors import ActFailed
from tests.real.conftest import Box, MakeBox, Spawn
from tests.work.conftest import Bench

pytestmark = [pytest.mark.root, pytest.mark.real]

DEADLINE_S = 20.0


def stillness(host: LinuxHost, made: Box, for_s: float, log: list[str]) -> Stillness:
    facts = host.find_container(made.container_id)

    def freeze() -> bool:
        log.append("freeze")
        return host.freeze(facts, True)

    def thaw() -> None:
        log.append("thaw")
        host.freeze(facts, False)

    return Stillness(freeze, thaw, for_s)


@pytest.fixture
def container(make_box: MakeBox, spawn: Spawn) -> Box:
    """Of two processes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes cgroups")
    made = make_box("v2")
    for _ in range(2):
        made.add(spawn("sleep", "600").pid)
    return made


async def test_thawed_as_soon_as_what_changes_was_read(bench: Bench, container: Box, host: LinuxHost) -> None:
    log: list[str] = []
    seen: list[tuple[str, bool]] = []
    job = bench.snapshot(container=box(host.find_container(container.container_id)))

    def progress(phase: str) -> None:
        seen.append((phase, container.is_frozen()))

    still = stillness(host, container, 5.0, log)
    result = await run_still(bench.workers, job, DEADLINE_S, still, progress=progress)
    assert result.ok
    assert log == ["freeze", "thaw"]
    assert seen[0] == (VOLATILE, False)
    assert 0 < result.details["frozen_ms"] < 5000
    _, parts = bench.only()
    assert len([name for name in parts if name.startswith("processes/")]) == 2


async def test_never_longer_than_it_may(bench: Bench, container: Box, host: LinuxHost, nursery: trio.Nursery) -> None:
    """Its worker stands still itself."""
    log: list[str] = []
    results: list[Result] = []
    job = bench.snapshot(container=box(host.find_container(container.container_id)))
    os.kill(bench.workers.pid, signal.SIGSTOP)

    async def run() -> None:
        results.append(await run_still(bench.workers, job, 1.0, stillness(host, container, 0.2, log)))

    nursery.start_soon(run)
    await bench.until(lambda: container.is_frozen(), "it is frozen")
    await bench.until(lambda: not container.is_frozen(), "it is thawed")
    assert not results
    await bench.until(lambda: bool(results), "the result")
    os.kill(bench.workers.pid, signal.SIGCONT)
    assert not results[0].ok
    assert 190 < results[0].details["frozen_ms"] < 900
    assert log == ["freeze", "thaw"]


async def test_thawed_when_cancelled(bench: Bench, container: Box, host: LinuxHost, nursery: trio.Nursery) -> None:
    log: list[str] = []
    scope = trio.CancelScope()
    job = bench.snapshot(container=box(host.find_container(container.container_id)))
    os.kill(bench.workers.pid, signal.SIGSTOP)

    async def run() -> None:
        with scope:
            await run_still(bench.workers, job, DEADLINE_S, stillness(host, container, 10.0, log))

    nursery.start_soon(run)
    await bench.until(lambda: container.is_frozen(), "it is frozen")
    scope.cancel()
    await bench.until(lambda: not container.is_frozen(), "it is thawed")
    assert log == ["freeze", "thaw"]
    os.kill(bench.workers.pid, signal.SIGCONT)


async def test_what_somebody_else_froze_stays_frozen(bench: Bench, container: Box, host: LinuxHost) -> None:
    log: list[str] = []
    container.freeze()
    job = bench.snapshot(container=box(host.find_container(container.container_id)))
    result = await run_still(bench.workers, job, DEADLINE_S, stillness(host, container, 1.0, log))
    assert result.ok
    assert "frozen_ms" not in result.details
    assert log == ["freeze"]
    assert container.is_frozen()


async def test_a_freezer_that_fails_is_told(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    def freeze() -> bool:
        raise ActFailed("it can't be frozen")

    with host.hold(spawn("sleep", "600").pid) as held:
        job = bench.snapshot(whom(held.facts))
        with pytest.raises(ActFailed):
            await run_still(bench.workers, job, DEADLINE_S, Stillness(freeze, lambda: None, 1.0))
        assert (await run_still(bench.workers, job, DEADLINE_S, Stillness(freeze, lambda: None, 0.0))).ok
