"""The node's evidence hands: jobs for workers, out of what an act wants. Nothing here looks into what a target made.

The workers' nursery is started with the first rule that takes evidence: a process more, for that alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import trio

from agent.capture import Stillness, run_still
from agent.jobs import READ, ProbeJob, Result, TidyJob
from agent.orders import Orders
from agent.programs import MAY_LACK, SYSDIG, SYSDIG_ACT, find, lacking
from agent.workers import Workers
from stoop import config_model
from stoop.captures import Captured, Still, Wanted
from stoop.evidence.limits import DIRECTORY, Limits
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.evidence.pins import unpin
from stoop.node import ContainerFacts, Lookup, ProcessFacts

TIDY_SECONDS = 60.0
"""For putting the store in order at the start: 2,000 names and one manifest, on a disk that may be busy."""

PROBE_SECONDS = 40.0
"""For trying sysdig: 15 s for each of two runs, and a place among the workers."""

MAX_UNDER_WAY = 64
"""Captures that go on by themselves; each keeps facts of its target. As many wait in `Workers` at most."""

STOPPED = "the agent stopped before it was done"


class Capturing:
    """A capture that is under way by itself (`stoop.node.Capture`)."""

    def __init__(self) -> None:
        self._read = trio.Event()
        self._ended = trio.Event()
        self._captured: Captured | None = None

    async def read(self) -> None:
        """Return once all was read of the target, or nothing more comes."""
        await self._read.wait()

    async def ended(self) -> None:
        """Return once nothing more comes."""
        await self._ended.wait()

    @property
    def captured(self) -> Captured | None:
        """What came of it; None while it is under way."""
        return self._captured

    def came(self, phase: str) -> None:
        """The worker has come so far."""
        if phase == READ:
            self._read.set()

    def end(self, captured: Captured) -> None:
        """Nothing more comes."""
        self._captured = captured
        self._read.set()
        self._ended.set()


class Evidence:
    """Takes evidence (`stoop.node.CaptureHands`) while it is served. The constructor starts nothing.

    `own`: is given the pids of nursery and workers whenever they change. `warn`: a log line. `tell`: is called when
    more became known of what is `unavailable`.
    """

    def __init__(
        self,
        config: config_model.Config,
        node: Lookup,
        boot_id: str,
        own: Callable[[frozenset[int]], None],
        warn: Callable[..., None],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        kept = config.evidence
        self._directory = f"{config.state_dir}/{DIRECTORY}"
        self._limits = Limits(max_bytes=kept.max_bytes, max_count=kept.max_count, max_age_s=kept.max_age_ns / 1e9)
        self._orders = Orders(config.node_name, boot_id, self._directory, self._limits, node)
        self._warn = warn
        self._own = own
        self._tell = tell
        self._nursery: trio.Nursery | None = None
        self._under_way = 0
        self.workers = Workers(warn=warn, changed=self._changed)
        self.store: dict[str, int] = {"bytes": 0, "bundles": 0}
        self.held: Callable[[], Iterable[str]] = tuple  # acts that hold files, and need their bundles
        self._sysdig_wanted = trio.Event()
        self._sysdig = ""  # why it does not work, as it was tried

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep workers, and put the store in order once. Captures that go on by themselves end with it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self.workers.serve)
            nursery.start_soon(self._tidy)
            nursery.start_soon(self._probe)

    def want_sysdig(self) -> None:
        """A rule needs it: it is tried once, since that loads a driver for a moment."""
        self._sysdig_wanted.set()

    def unavailable(self) -> dict[str, str]:
        """Why something can't be kept on this node, by actionner."""
        return ({SYSDIG_ACT: self._sysdig} if self._sysdig else {}) | lacking()

    async def take(
        self,
        wanted: Wanted,
        given: Sequence[ProcessFacts],
        container: ContainerFacts | None,
        still: Still | None = None,
    ) -> Captured:
        """Keep a bundle. Raises nothing for what becomes of it."""
        return await self._take(wanted, given, container, still, lambda phase: None)

    def begin(self, wanted: Wanted, given: Sequence[ProcessFacts], container: ContainerFacts | None) -> Capturing:
        """The same, under way by itself until it is done, its deadline, or the agent's end."""
        capturing = Capturing()
        if self._nursery is None:
            capturing.end(Captured(False, "its workers are not started yet"))
        elif self._under_way >= MAX_UNDER_WAY:
            capturing.end(Captured(False, f"{MAX_UNDER_WAY} captures are under way already"))
        else:
            self._under_way += 1
            self._nursery.start_soon(self._go_on, capturing, wanted, given, container)
        return capturing

    def release(self, act: str) -> None:
        """What it kept is as any other bundle from now on. One unlink(2) in our own directory."""
        unpin(self._directory, act)

    async def _go_on(
        self, capturing: Capturing, wanted: Wanted, given: Sequence[ProcessFacts], container: ContainerFacts | None
    ) -> None:
        captured = Captured(False, STOPPED)
        try:
            captured = await self._take(wanted, given, container, None, capturing.came)
        finally:
            self._under_way -= 1
            capturing.end(captured)

    async def _take(
        self,
        wanted: Wanted,
        given: Sequence[ProcessFacts],
        container: ContainerFacts | None,
        still: Still | None,
        progress: Callable[[str], None],
    ) -> Captured:
        actionner = wanted.about.actionner
        why = self.unavailable().get(actionner, "") if actionner in MAY_LACK else ""
        if why:
            return Captured(False, why, refused=True)
        job = self._orders.job(wanted, given, container)
        stillness = Stillness(lambda: True, still.thaw, still.for_s) if still is not None else NOT_STILL
        result = await run_still(self.workers, job, wanted.deadline_s, stillness, progress=progress)
        return self._told(result)

    def _told(self, result: Result) -> Captured:
        details = dict(result.details)
        self.store = details.pop("store", self.store)
        if "bundle" in details:
            details["path"] = f"{self._directory}/{details['bundle']}{SUFFIX}"
        return Captured(result.ok, result.reason, details, result.refused, result.gone)

    async def _probe(self) -> None:
        """Try sysdig, once a rule needs it and there is one."""
        await self._sysdig_wanted.wait()
        program = find(SYSDIG)
        if not program:
            return
        job = ProbeJob(key="sysdig", origin=Origin(), store=self._directory, program=program)
        result = await self.workers.run(job, PROBE_SECONDS)
        if not result.ok:
            self._sysdig = f"sysdig does not work here: {result.reason}"
            self._tell()

    async def _tidy(self) -> None:
        """Clear what killed writers left, let go of what is too much or too old."""
        job = TidyJob(
            key="the evidence store",
            origin=Origin(),
            store=self._directory,
            limits=self._limits,
            held=tuple(self.held()),
            before_ns=time.time_ns(),
        )
        result = await self.workers.run(job, TIDY_SECONDS)
        self._told(result)
        for note in result.details.get("notes", ()):
            self._warn("the evidence store was put in order", note=note)
        if not result.ok:
            self._warn("the evidence store can't be put in order", reason=result.reason)

    def _changed(self) -> None:
        self._own(self.workers.pids())

    def status(self) -> dict[str, Any]:
        """For `stoop status`: the store and the workers."""
        return {"store": self.store, "workers": self.workers.status()}

    def gauges(self) -> dict[str, float]:
        """Metrics by name."""
        status = self.workers.status()
        return {
            "evidence_bytes": self.store["bytes"],
            "evidence_bundles": self.store["bundles"],
            "workers_running": len(status["running"]),
            "workers_abandoned": sum(status["abandoned"].values()),
        }


NOT_STILL = Stillness(lambda: False, lambda: None, 0.0)
