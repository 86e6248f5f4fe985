"""Is Falco still there, and awake? The heartbeat and the pacemaker, both off by default, as one part of the reflex."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from agent.beacon import Beacon
from agent.front import Front
from agent.heartbeat import Around, Heart
from agent.own import Own
from agent.pacemaker import OFF, Pacer
from stoop.config import Config, policy_of
from stoop.recorder import Recorder
from stoop.runs import Clocks
from stoop.skew import Skew


@dataclass(frozen=True)
class Body:
    """What both are wired to."""

    front: Front
    own: Own
    skew: Skew
    recorder: Recorder
    clocks: Clocks
    say: Callable[..., None]


class Vitals:
    """Wires both and speaks for them. The constructor starts nothing."""

    def __init__(self, config: Config, body: Body) -> None:
        self._metrics = body.recorder.metrics
        self.pacer = pacer = (
            Pacer(config.pacemaker, self._metrics, body.say, body.own.pacemaker)
            if config.pacemaker is not None
            else None
        )
        self.heart: Heart | None = None
        if config.heartbeat is not None:
            around = Around(
                clocks=body.clocks,
                skew=body.skew,
                metrics=self._metrics,
                say=body.say,
                pace=pacer.pace if pacer is not None else lambda: OFF,
                felt=pacer.felt if pacer is not None else lambda pace, lag_ns: None,
                ledger=body.recorder.ledger,
            )
            comparable = body.own.facts.pid_ns_is_root or policy_of(config.guard).any_pid_namespace
            pid = os.getpid() if comparable else 0
            self.heart = Heart(config.heartbeat, pid, Beacon(config.heartbeat.path), around)
            body.front.sift = self.heart.sift

    async def serve(self) -> None:
        """Beat and pace until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.pacer is not None:
                nursery.start_soon(self.pacer.serve)
            if self.heart is not None:
                nursery.start_soon(self.heart.serve)

    def count(self) -> None:
        """Set the gauges of now."""
        if self.heart is not None:
            self.heart.count()
        if self.pacer is not None:
            self.pacer.count()

    def status(self) -> dict[str, Any]:
        """For `stoop status` and the detail of /readyz: neither makes the agent unready. Null where it is off."""
        return {
            "heartbeat": self.heart.status() if self.heart is not None else None,
            "pacemaker": self.pacer.status() if self.pacer is not None else None,
        }
