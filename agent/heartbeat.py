"""The heartbeat: touches the beacon, takes its alerts out of the feed, and says when they no longer come.

serve ─ touch (in a thread) ─▶ kernel ─▶ Falco ─▶ intake ─▶ sift ─▶ Beats: alive, lag, offset of the clocks
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from stoop.alert import Alert
from stoop.config import Heartbeat
from stoop.heartbeat import Answer, Beat, Beats, Heard, lags_ms, opener, pause_s, token_in
from stoop.metrics import Metrics
from stoop.recorder import Ledger
from stoop.respond import LIVE_INTAKES
from stoop.runs import Clocks
from stoop.skew import Skew

TOUCH_SECONDS = 5.0
"""A file system that takes longer hangs: this beat was none, and the next one is tried in its turn."""

SAID_EVERY_NS = 60_000_000_000
"""What somebody else can cause is said at most this often."""

HINT = "is Falco running, has it the rule that `stoop falco-config` prints, and do its alerts come here?"


class Toucher(Protocol):
    """What the heartbeat needs of the file system: `agent.beacon.Beacon`. Both raise OSError."""

    async def prepare(self) -> None: ...

    async def touch(self, beat: Beat) -> None: ...


@dataclass(frozen=True)
class Around:
    """The parts that the heartbeat speaks to.

    `pace`: the pacemaker's state of now; `felt` hears of each lag (ns) in a state.
    `ledger`: is told of the alerts that are taken out.
    """

    clocks: Clocks
    skew: Skew
    metrics: Metrics
    say: Callable[..., None]
    pace: Callable[[], str]
    felt: Callable[[str, int], None]
    ledger: Ledger


class Heart:
    """Knows whether the feed is alive. `pid`: the agent's own as Falco numbers it, 0 where that is not known."""

    def __init__(self, settings: Heartbeat, pid: int, toucher: Toucher, around: Around) -> None:
        self._settings = settings
        self._prefix = settings.path + "/"
        self._toucher = toucher
        self._around = around
        self._ready = False
        self._said_alive: bool | None = None
        self._said: dict[str, int] = {}
        self.beats = Beats(pid)
        self.trouble = ""

    # ------------------------------------------------------------ beating

    async def serve(self) -> None:
        """Beat until cancelled."""
        while True:
            await self.beat()
            await trio.sleep(pause_s(self._settings.interval_ns, random.random()))

    async def beat(self) -> None:
        """Touch the beacon once."""
        missed = self.beats.missed_total
        beat = self.beats.begin(os.urandom(16).hex())
        self._around.metrics.inc("heartbeats_missed_total", (), self.beats.missed_total - missed)
        trouble = "the file system does not answer"
        with trio.move_on_after(TOUCH_SECONDS):
            trouble = await self._touch(beat)
        if trouble:
            self._ready = False
            self.beats.untouched(beat)
            self._around.metrics.inc("heartbeats_total", ("untouched",))
        if trouble != self.trouble:
            level, event = (
                ("error", "the beacon can't be touched") if trouble else ("info", "the beacon can be touched")
            )
            self._around.say(level, event, path=self._settings.path, problem=trouble)
            self.trouble = trouble
        self._tell()

    async def _touch(self, beat: Beat) -> str:
        try:
            if not self._ready:
                await self._toucher.prepare()
                self._ready = True
            await self._toucher.touch(beat)
        except OSError as error:
            return error.strerror or str(error)
        except RuntimeError as error:  # no thread to be had now (pthread_create(3))
            return str(error)
        return ""

    # ------------------------------------------------------------ hearing

    def sift(self, alerts: list[Alert], kind: str, received_ns: int) -> list[Alert]:
        """The alerts of one read, without the heartbeat's: those cause no act. `received_ns`: CLOCK_REALTIME."""
        rule = self._settings.rule
        if all(alert.rule != rule for alert in alerts):
            return alerts
        rest = [alert for alert in alerts if alert.rule != rule or not self._takes(alert)]
        if kind in LIVE_INTAKES and len(rest) < len(alerts):
            self._around.ledger.settled(len(alerts) - len(rest), received_ns)
        self._tell()
        return rest

    def _takes(self, alert: Alert) -> bool:
        token = token_in(alert, self._prefix)
        if token is None:
            return False  # about a file elsewhere: a rule of the same name that is not ours to swallow
        if not token:
            self._say_rarely("warning", "an alert of the heartbeat's rule names no file: its output needs %fd.name")
            return True
        clocks = self._around.clocks
        pid = opener(alert)
        answer = self.beats.hear(token, pid, alert.time_ns, clocks.now_ns(), clocks.mono_ns())
        self._around.metrics.inc("heartbeats_total", (str(answer.heard),))
        self._weigh(answer, pid)
        return True

    def _weigh(self, answer: Answer, pid: int) -> None:
        around = self._around
        if answer.heard is Heard.FOREIGN:
            self._say_rarely("error", "another process opened the beacon's file", pid=pid)
        if answer.heard not in (Heard.ANSWERED, Heard.LATE):
            return
        pace = around.pace()
        self.beats.felt(pace, answer.lag_ns)
        around.felt(pace, answer.lag_ns)
        around.metrics.observe("heartbeat_seconds", (pace,), answer.lag_ns / 1e9)
        if answer.drift is not None and answer.heard is Heard.ANSWERED:
            around.skew.measure(*answer.drift)

    # ------------------------------------------------------------ saying

    def _tell(self) -> None:
        """One line each time that the feed comes alive or falls silent."""
        beats = self.beats
        if beats.alive is self._said_alive:
            return
        self._said_alive = beats.alive
        if beats.alive:
            self._around.say("info", "Falco's feed is alive: a heartbeat came back")
        else:
            self._around.skew.forget_measure()
            self._around.say(
                "error", "Falco's feed is silent: heartbeats do not come back", missed=beats.missed, hint=HINT
            )

    def _say_rarely(self, level: str, event: str, **fields: object) -> None:
        now = self._around.clocks.mono_ns()
        if event not in self._said or now - self._said[event] >= SAID_EVERY_NS:
            self._said[event] = now
            self._around.say(level, event, **fields)

    def count(self) -> None:
        """The gauges of now."""
        self._around.metrics.clear("feed_alive")
        if self.beats.alive is not None:
            self._around.metrics.set("feed_alive", (), 1 if self.beats.alive else 0)

    def status(self) -> dict[str, Any]:
        """For `stoop status` and the detail of /readyz. `last_s`: since the last answer, null without one."""
        beats = self.beats
        last_s = (self._around.clocks.mono_ns() - beats.last_mono_ns) / 1e9 if beats.last_mono_ns else None
        return {
            "alive": beats.alive,
            "missed": beats.missed,
            "missed_total": beats.missed_total,
            "last_s": last_s,
            "lag_ms": lags_ms(beats.lags),
            "trouble": self.trouble,
        }
