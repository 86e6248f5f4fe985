"""A capture from the reflex's side: jobs out of held targets, and a target that stands still no longer than it must.

The freezer is the caller's. What is frozen here is thawed here, whatever becomes of the worker, the nursery or the act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import trio

from agent.jobs import MAX_PROCESSES, VOLATILE, Box, Job, Result, Whom
from agent.workers import Workers
from stoop.node import ContainerFacts, ProcessFacts


def whom(facts: ProcessFacts) -> Whom:
    """The process as a worker proves it."""
    return Whom(facts.pid, facts.birth)


def box(container: ContainerFacts) -> Box:
    """The container as a worker lists and proves it."""
    return Box(container.container_id, container.cgroup_v2, container.cgroup_freezer, container.init_pid)


def processes(facts: Sequence[ProcessFacts]) -> tuple[Whom, ...]:
    """Of a tree, the first one first."""
    return tuple(whom(each) for each in facts[:MAX_PROCESSES])


class Stillness(msgspec.Struct, frozen=True):
    """A way to have a target stand still. `freeze`: whether this changed it (else it is not thawed); both may raise
    StoopError. `for_s`: seconds, 0 for not at all."""

    freeze: Callable[[], bool]
    thaw: Callable[[], object]
    for_s: float


async def run_still(
    workers: Workers,
    job: Job,
    deadline_s: float,
    still: Stillness,
    *,
    fds: Sequence[int] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """`Workers.run` with the target frozen until what changes was read, for `still.for_s` at most.

    `Result.details["frozen_ms"]` is how long it stood still; absent when it did not. Raises what `still.freeze` raises.
    """
    if not still.for_s or not still.freeze():
        return await workers.run(job, deadline_s, fds=fds, progress=progress)
    begun = trio.current_time()
    frozen_s: float | None = None
    read = trio.Event()

    def thaw() -> None:
        nonlocal frozen_s
        if frozen_s is None:
            frozen_s = trio.current_time() - begun
            still.thaw()

    def came(phase: str) -> None:
        if phase == VOLATILE:
            thaw()
            read.set()
        progress(phase)

    async def at_most() -> None:
        with trio.move_on_after(still.for_s):
            await read.wait()
        thaw()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at_most)
            result = await workers.run(job, deadline_s, fds=fds, progress=came)
            read.set()
    finally:
        thaw()
    assert frozen_s is not None
    return msgspec.structs.replace(result, details=result.details | {"frozen_ms": round(frozen_s * 1000, 1)})
