"""One bundle a run, by real workers: one after another, at the same time, and one that is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from agent.jobs import Result
from agent.node.host import LinuxHost
from stoop.evidence.chain import check_chain
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Store
from tests.real.conftest import Process, Spawn
from tests.work.conftest import Bench, whom

DEADLINE_S = 30.0
RUN = "ab" * 16


def of_run(job: Any, act: str) -> Any:
    """The same job, of an act of this run."""
    return msgspec.structs.replace(job, origin=Origin(run=RUN, act=act * 32, actionner="evidence:snapshot"))


def chain_of(bench: Bench) -> list[str]:
    with Store(bench.directory) as store:
        return check_chain(store)


async def test_two_at_a_time(bench: Bench, big: Callable[[int], Process], spawn: Spawn, host: LinuxHost) -> None:
    """A memory image that takes a while, and snapshots meanwhile: all are in one bundle, each in its own place."""
    large, small = whom(big(64).pid, host), whom(spawn("sleep", "600").pid, host)
    results: dict[str, Result] = {}

    async def capture(job: Any, act: str) -> None:
        results[act] = await bench.workers.run(of_run(job, act), DEADLINE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture, bench.memory(large), "1")
        await bench.running()
        nursery.start_soon(capture, bench.snapshot(small, key="b"), "2")
        nursery.start_soon(capture, bench.snapshot(small, key="c"), "3")
    assert all(result.ok for result in results.values()), results
    manifest, parts = bench.only()
    assert {each.details["bundle"] for each in results.values()} == {manifest.bundle}
    assert not any("apart" in each.details for each in results.values())
    folders = {act: results[act].details.get("folder", "") for act in results}
    assert len(set(folders.values())) == 3
    assert parts[f"{folders['1']}memory/{large.pid}.json"]
    for act in "23":
        assert json.loads(parts[f"{folders[act]}processes/{small.pid}.json"])["cmdline"] == ["sleep", "600"]
    assert {part.act for part in manifest.parts} == {act * 32 for act in results}
    assert (chain_of(bench), bench.leftovers()) == ([], [])


async def test_one_that_is_late_leaves_the_runs_bundle_as_it_was(
    bench: Bench, big: Callable[[int], Process], spawn: Spawn, host: LinuxHost
) -> None:
    small = whom(spawn("sleep", "600").pid, host)
    first = await bench.workers.run(of_run(bench.snapshot(small), "1"), DEADLINE_S)
    before = bench.only()
    job = of_run(bench.memory(whom(big(256).pid, host)), "2")
    result = await bench.workers.run(job, 0.2)
    assert (first.ok, result.ok) == (True, False)
    await bench.idle()
    assert bench.only() == before
    third = await bench.workers.run(of_run(bench.snapshot(small), "3"), DEADLINE_S)
    assert third.details["bundle"] == first.details["bundle"]
    assert [each.origin.act[0] for each in bench.only()[0].captures] == ["1", "3"]
    assert chain_of(bench) == []
