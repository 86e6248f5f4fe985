"""What captures left for an output: kept on disk with the act's record, sent by courier or worker, tried again.

One of each store is under way at a time, AT_ONCE in all. A store that fails waits, and with it all that goes there; the
others go on. What becomes of each is one record: sent, or given up.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from agent.dispatch import Dispatch
from agent.jobs import DeliverJob, Job, Result
from agent.letters import NOT_INSTALLED, Fate, Send, Sent, Setup, can_send
from stoop.config_model import Config
from stoop.deliveries import MAX_DELIVERIES, Delivery, delivery_of, pause_s
from stoop.delivery_files import delivery_files
from stoop.evidence.limits import DIRECTORY
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.rules import RuleSet
from stoop.rules.model import OutputForm
from stoop.runs import Clocks
from stoop.spec import (
    Outcome,
    Verdict,
)

AT_ONCE = 4
"""Under way at a time: each reads a bundle as fast as its store takes it, next to what the node is for."""

BASE_SECONDS = 120.0
SLOWEST = 128 * 1024
"""Bytes of the bundle a second: what is slower than that, beyond BASE_SECONDS, is tried again later."""

LONGEST_SECONDS = 6 * 3600.0

LOOK_SECONDS = 20.0
"""For looking at a folder."""

LOCAL = "local:file"

WHILE_ABSENT_NS = 60 * 10**9
"""So long a bundle may not be in its place yet: whoever writes it takes its place when it is whole."""

GONE = "the evidence store let go of the bundle before it could be sent"
TOO_OLD = "it could not be sent for 7 days"
FULL = f"{MAX_DELIVERIES} deliveries wait already: it stays in the node's own store only"

RunJob = Callable[[Job, float], Any]
"""`Workers.run`: a job and its deadline in seconds → an awaitable Result."""


@dataclass(slots=True)
class _Store:
    """How it is with one store. `next_at`: trio's clock."""

    tries: int = 0
    slowly: bool = False
    next_at: float = 0.0
    reason: str = ""
    busy: bool = False


class Deliveries:
    """`serve` it. `run`: has a worker do a job. The constructor starts nothing."""

    def __init__(
        self, config: Config, recorder: Recorder, clocks: Clocks, say: Callable[..., None], own: Callable[[int], None]
    ) -> None:
        self._config = config
        self._evidence = f"{config.state_dir}/{DIRECTORY}"
        self._recorder = recorder
        self._clocks = clocks
        self._say = say
        self._files = delivery_files(Path(config.state_dir))
        self._waiting: dict[str, Delivery] = {}
        self._under_way: set[str] = set()
        self._tries: Counter[str] = Counter()
        self._stores: dict[str, _Store] = {}
        self._outputs: frozenset[str] = frozenset()
        self._folders: dict[str, str] = {}  # of the rules: what is wrong with each, "" for nothing
        self._changed = trio.Event()
        self._look = trio.Event()
        self.run: RunJob | None = None
        self.dispatch = Dispatch(lambda: setup_of(config), own, lambda event, **fields: say("warning", event, **fields))
        self.told: Callable[[], None] = lambda: None
        """Called when it became known that something can't be done on this node."""
        recorder.deliver = self.accept

    # ------------------------------------------------------------ what is to be sent

    def recover(self) -> None:
        """At a start: what an earlier life left is sent."""
        found, troubles = self._files.load()
        for trouble in troubles:
            self._say("error", "a delivery can't be read", problem=trouble)
        self._waiting = {delivery.key: delivery for delivery in found}
        if found:
            self._say("info", "evidence of the last life waits to be sent", count=len(found))

    @property
    def wanted(self) -> bool:
        """Whether something waits to be sent, or a rule has an output."""
        return bool(self._waiting) or bool(self._outputs)

    def accept(self, record: Record, output: OutputForm) -> Record:
        """Before an act's record is told: keep what is to be sent of it. The record says so, or why not."""
        delivery = delivery_of(record, output, self._config.node_name)
        if delivery is None or delivery.key in self._waiting or record.amends:
            return record
        told: dict[str, Any] = {"output": delivery.target, "object": delivery.place}
        trouble = FULL if len(self._waiting) >= MAX_DELIVERIES else self._files.keep(delivery)
        if trouble:
            told["not_sent"] = trouble
            self._recorder.metrics.inc("deliveries_total", (delivery.target, str(Verdict.FAILED)))
            self._say("error", "evidence is not sent", act=record.act, output=delivery.target, reason=trouble)
        else:
            self._waiting[delivery.key] = delivery
            self._changed.set()
        return msgspec.structs.replace(record, details=record.details | {"delivery": told})

    # ------------------------------------------------------------ what the rules need

    def use(self, rules: RuleSet) -> None:
        """The rules of now: which folders they name is looked at once a worker is there."""
        outputs = [step.output for rule in rules.rules for step in rule.form.actions if step.output is not None]
        self._outputs = frozenset(output.target for output in outputs)
        folders = {str(output.parameters.get("destination") or "") for output in outputs if output.target == LOCAL}
        self._folders = dict.fromkeys(sorted(folders), "")
        self._look.set()

    def unavailable(self) -> dict[str, str]:
        """By output that a rule has: why it can't be used on this node."""
        found = {}
        if not can_send():
            found = dict.fromkeys(("aws:s3", "minio:s3", "gcp:gcs"), NOT_INSTALLED)
        if not self._config.minio.endpoint:
            found.setdefault("minio:s3", "minio.endpoint is not set (stoop.yaml)")
        troubles = [trouble for trouble in self._folders.values() if trouble]
        found |= {LOCAL: "; ".join(troubles)} if troubles else {}
        return {target: reason for target, reason in found.items() if target in self._outputs}

    async def _look_at_folders(self) -> None:
        while True:
            await self._look.wait()
            self._look = trio.Event()
            for folder in list(self._folders):
                job = DeliverJob(
                    key=LOCAL,
                    origin=Origin(),
                    store=self._evidence,
                    folder=folder,
                    state_dir=self._config.state_dir,
                )
                result = await self._do(job, LOOK_SECONDS)
                if not result.ok and folder in self._folders:
                    self._folders[folder] = result.reason
                    self.told()

    # ------------------------------------------------------------ sending

    async def serve(self) -> None:
        """Send what waits, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.dispatch.serve)
            nursery.start_soon(self._look_at_folders)
            while True:
                self._changed = trio.Event()
                pause = self._begin_due(nursery)
                with trio.move_on_after(pause):
                    await self._changed.wait()

    def _begin_due(self, nursery: trio.Nursery) -> float:
        """Begin what can be; seconds until the next thing can."""
        now, now_ns = trio.current_time(), self._clocks.now_ns()
        for delivery in [delivery for delivery in self._waiting.values() if delivery.is_old(now_ns)]:
            if delivery.key not in self._under_way:
                why = self._store(delivery).reason
                self._end(delivery, Outcome(Verdict.FAILED, f"{TOO_OLD}: {why}" if why else TOO_OLD))
        next_at = now + 3600.0
        for delivery in self._in_turn():
            store = self._store(delivery)
            if store.busy or delivery.key in self._under_way:
                continue
            if store.next_at > now:
                next_at = min(next_at, store.next_at)
            elif len(self._under_way) < AT_ONCE:
                store.busy = True
                self._under_way.add(delivery.key)
                nursery.start_soon(self._try, delivery, store)
        return max(0.0, next_at - now)

    def _in_turn(self) -> Iterable[Delivery]:
        """The oldest of those tried least: one that is always refused holds up no other of its store."""
        return sorted(self._waiting.values(), key=lambda one: (self._tries[one.key], one.made_ns))

    def _store(self, delivery: Delivery) -> _Store:
        return self._stores.setdefault(delivery.store, _Store())

    async def _try(self, delivery: Delivery, store: _Store) -> None:
        sent = Sent(0, Fate.LATER, "the agent stopped")
        try:
            sent = await self._sent(delivery)
        finally:
            store.busy = False
            self._under_way.discard(delivery.key)
            self._changed.set()
        self._came(delivery, store, sent)

    def _came(self, delivery: Delivery, store: _Store, sent: Sent) -> None:
        tries = self._tries[delivery.key] + 1
        if sent.fate is Fate.SENT:
            if store.reason:
                self._say("info", "evidence is sent again", store=delivery.store)
            store.tries, store.next_at, store.reason = 0, 0.0, ""
            folder = str(delivery.parameters.get("destination") or "")
            if self._folders.get(folder):
                self._folders[folder] = ""
            self._recorder.metrics.inc("delivered_bytes_total", (delivery.target,), sent.bytes)
            details = {"bytes": sent.bytes, "sha256": sent.sha256, "tries": tries}
            self._end(delivery, Outcome(Verdict.DONE, sent.reason, details))
        elif sent.fate is Fate.NEVER:
            self._end(delivery, Outcome(Verdict.FAILED, sent.reason, {"tries": tries}))
        else:
            self._tries[delivery.key] = tries
            self._failed(delivery, store, sent)

    def _failed(self, delivery: Delivery, store: _Store, sent: Sent) -> None:
        self._recorder.metrics.inc("delivery_tries_total", (delivery.target,))
        slowly = sent.fate is Fate.MEND
        store.tries = store.tries + 1 if slowly is store.slowly else 1
        store.slowly = slowly
        pause = pause_s(store.tries, slowly, random.random())
        store.next_at = trio.current_time() + pause
        if sent.reason != store.reason:
            self._say(
                "error" if sent.fate is Fate.MEND else "warning",
                "evidence can't be sent and is tried again",
                store=delivery.store,
                object=delivery.object,
                reason=sent.reason,
                again_in_s=round(pause, 1),
            )
        store.reason = sent.reason

    def _end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Nothing more comes of it. Recorded before its file goes: a kill in between sends it once more."""
        self._recorder.delivered(delivery, outcome, self._clocks.now_ns())
        self._waiting.pop(delivery.key, None)
        self._tries.pop(delivery.key, None)
        if trouble := self._files.remove(delivery.key):
            self._say("warning", "a delivery's file stays, and it is sent again at the next start", problem=trouble)

    async def _sent(self, delivery: Delivery) -> Sent:
        path = f"{self._evidence}/{delivery.bundle}{SUFFIX}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            young = self._clocks.now_ns() - delivery.made_ns < WHILE_ABSENT_NS
            return Sent(0, Fate.LATER if young else Fate.NEVER, GONE)
        except OSError as error:
            return Sent(0, Fate.LATER, f"{path}: {error.strerror}")
        try:
            deadline_s = min(BASE_SECONDS + os.fstat(fd).st_size / SLOWEST, LONGEST_SECONDS)
            if delivery.target == LOCAL:
                return await self._copied(delivery, deadline_s)
            return await self.dispatch.send(self._letter(delivery, deadline_s), fd)
        finally:
            os.close(fd)

    def _letter(self, delivery: Delivery, deadline_s: float) -> Send:
        bucket, region = (str(delivery.parameters.get(word) or "") for word in ("bucket", "region"))
        return Send(0, delivery.target, bucket, region, delivery.object, delivery.part, deadline_s)

    async def _copied(self, delivery: Delivery, deadline_s: float) -> Sent:
        job = DeliverJob(
            key=LOCAL,
            origin=Origin(),
            store=self._evidence,
            folder=str(delivery.parameters.get("destination") or ""),
            state_dir=self._config.state_dir,
            name=delivery.name,
            bundle=delivery.bundle,
            part=delivery.part,
        )
        result = await self._do(job, deadline_s)
        details = result.details
        fate = Fate(details.get("fate", Fate.LATER))
        return Sent(0, fate, result.reason, details.get("bytes", 0), details.get("sha256", ""))

    async def _do(self, job: Job, deadline_s: float) -> Result:
        assert self.run is not None, "workers are there before anything is sent"
        result: Result = await self.run(job, deadline_s)
        return result

    # ------------------------------------------------------------ saying

    def status(self) -> dict[str, Any]:
        """For `stoop status`."""
        troubles = {name: store.reason for name, store in self._stores.items() if store.reason}
        waiting = sorted(self._waiting.values(), key=lambda one: one.made_ns)
        oldest_s = (self._clocks.now_ns() - waiting[0].made_ns) / 1e9 if waiting else 0.0
        return {"waiting": len(waiting), "oldest_s": oldest_s, "trouble": troubles, "courier": self.dispatch.pid}

    def waiting(self) -> Counter[str]:
        """How many, by output."""
        return Counter(delivery.target for delivery in self._waiting.values())


def setup_of(config: Config) -> Setup:
    """What the courier needs of the configuration."""
    aws, minio = config.aws, config.minio
    return Setup(
        aws_region=aws.region,
        aws_access_key=str(aws.access_key),
        aws_secret_key=str(aws.secret_key),
        aws_role_arn=aws.role_arn,
        aws_external_id=str(aws.external_id),
        gcp_credentials=str(config.gcp.credentials_path),
        minio_endpoint=minio.endpoint,
        minio_access_key=str(minio.access_key),
        minio_secret_key=str(minio.secret_key),
        minio_use_ssl=minio.use_ssl,
    )
