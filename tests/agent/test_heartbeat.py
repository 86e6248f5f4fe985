"""The heartbeat's task on a clock that jumps, with a Falco that answers as a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from agent.heartbeat import SAID_EVERY_NS, TOUCH_SECONDS, Around, Heart
from stoop.alert import Alert, decode
from stoop.config import Heartbeat
from stoop.heartbeat import Beat, Heard
from stoop.metrics import Metrics
from stoop.skew import Skew
from stoop.testing import FakeClock, FakeLedger

SECOND_NS = 1_000_000_000
PID = 4321
PATH = "/run/stoop/heartbeat"
RULE = "Stoop heartbeat"

Jumps = trio.testing.MockClock


class TrioClock(FakeClock):
    """Both clocks go with trio's, which jumps to whatever is waited for; a test may step CLOCK_REALTIME (`now`)."""

    def _passed(self) -> int:
        return int(trio.current_time() * SECOND_NS)

    def now_ns(self) -> int:
        return self.now + self._passed()

    def mono_ns(self) -> int:
        return self.mono + self._passed()


def told(token: str, pid: int = PID, event_ns: int = 0, rule: str = RULE, path: str = PATH) -> Alert:
    fields = {"fd.name": f"{path}/{token}", "proc.pid": pid}
    at = {"time": "2026-10-01T00:00:00Z"} if event_ns else {}
    alert = decode(json.dumps({"rule": rule, "output_fields": fields, **at}).encode())
    alert.time_ns = event_ns
    return alert


class Scene:
    """A Toucher whose files are seen by a Falco with this lag (seconds, None: it does not answer) and clock offset."""

    def __init__(self, interval_s: int = 30) -> None:
        self.lag: float | None = 0.012
        self.offset_ns = 0
        self.fault: OSError | RuntimeError | None = None
        self.hangs = False
        self.prepared = 0
        self.touched: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.felt: list[tuple[str, int]] = []
        self.pace = "off"
        self.clocks = TrioClock()
        self.ledger = FakeLedger()
        self.metrics = Metrics()
        self.skew = Skew()
        self.nursery: trio.Nursery | None = None
        around = Around(
            clocks=self.clocks,
            skew=self.skew,
            metrics=self.metrics,
            say=lambda level, event, **fields: self.said.append((level, event)),
            pace=lambda: self.pace,
            felt=lambda pace, lag_ns: self.felt.append((pace, lag_ns)),
            ledger=self.ledger,
        )
        settings = Heartbeat(path=PATH, interval_ns=interval_s * SECOND_NS)
        self.heart = Heart(settings, PID, self, around)

    async def prepare(self) -> None:
        self.prepared += 1

    async def touch(self, beat: Beat) -> None:
        if self.hangs:
            await trio.sleep_forever()
        if self.fault is not None:
            raise self.fault
        self.touched.append(beat.token)
        beat.begun_mono_ns, beat.begun_ns = self.clocks.mono_ns(), self.clocks.now_ns()
        beat.done_ns = beat.begun_ns + 40_000
        if self.lag is not None:
            assert self.nursery is not None
            self.nursery.start_soon(self._answer, beat, beat.begun_ns + 20_000 + self.offset_ns, self.lag)

    async def _answer(self, beat: Beat, event_ns: int, lag: float) -> None:
        await trio.sleep(lag)
        assert self.hear(told(beat.token, event_ns=event_ns)) == []

    def hear(self, *alerts: Alert, kind: str = "unix") -> list[Alert]:
        return self.heart.sift(list(alerts), kind, self.clocks.now_ns())

    async def run(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        nursery.start_soon(self.heart.serve)

    @property
    def alive(self) -> bool | None:
        return self.heart.beats.alive


async def passes(seconds: float) -> None:
    """On the clock that jumps."""
    await trio.sleep(seconds)


async def test_answers_come_and_the_clock_is_known(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    scene = Scene()
    scene.offset_ns = -3 * SECOND_NS
    await scene.run(nursery)
    await passes(1)
    assert (scene.alive, scene.skew.established) == (True, True)
    assert scene.skew.drift_ns == 3 * SECOND_NS + 20_000
    assert scene.heart.status()["lag_ms"] == {"off": {"beats": 1, "p50": pytest.approx(12), "max": pytest.approx(12)}}
    await passes(3600)
    assert 3600 / 33 < scene.heart.beats.counts[Heard.ANSWERED] < 3602 / 27
    assert scene.said == [("info", "Falco's feed is alive: a heartbeat came back")]


async def test_silence_and_its_end_are_one_line_each(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    scene = Scene()
    await scene.run(nursery)
    await passes(100)
    scene.lag = None
    await passes(40)
    assert scene.alive  # one missed beat is none
    await passes(600)
    assert (scene.alive, scene.skew.established) == (False, False)
    scene.heart.count()
    assert scene.metrics.samples()["feed_alive"] == [((), 0)]
    scene.lag = 0.001
    await passes(40)
    assert scene.alive
    assert [event.split(":")[0] for _, event in scene.said] == [
        "Falco's feed is alive",
        "Falco's feed is silent",
        "Falco's feed is alive",
    ]


async def test_the_lag_is_told_by_the_pacemakers_state(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    scene = Scene()
    await scene.run(nursery)
    await passes(100)
    scene.pace, scene.lag = "running", 0.0005
    await passes(100)
    lags = scene.heart.status()["lag_ms"]
    assert (lags["off"]["p50"], lags["running"]["p50"]) == (pytest.approx(12), pytest.approx(0.5))
    assert ("running", 500_000) in [(pace, round(lag, -3)) for pace, lag in scene.felt]
    names = {labels[0] for labels, _ in scene.metrics.samples()["heartbeat_seconds"]}
    assert names == {"off", "running"}


async def test_a_file_system_that_fails_or_hangs_is_not_falcos_silence(
    nursery: trio.Nursery, autojump_clock: Jumps
) -> None:
    scene = Scene()
    scene.fault = OSError(28, "No space left on device")
    await scene.run(nursery)
    await passes(300)
    assert (scene.alive, scene.heart.trouble) == (None, "No space left on device")
    scene.fault = RuntimeError("can't start new thread")
    await passes(40)
    assert (scene.alive, scene.heart.trouble) == (None, "can't start new thread")
    scene.fault, scene.hangs = None, True
    await passes(40 + TOUCH_SECONDS)
    assert (scene.alive, scene.heart.trouble) == (None, "the file system does not answer")
    scene.hangs = False
    await passes(40)
    assert (scene.alive, scene.heart.trouble) == (True, "")
    assert scene.said.count(("info", "the beacon can be touched")) == 1
    assert scene.prepared > 5  # the directory may be what is wrong


async def test_no_beat_reaches_the_rules_and_each_is_settled_once(nursery: trio.Nursery) -> None:
    scene = Scene()
    other = told("x", rule="Terminal shell in container")
    elsewhere = told("shadow", path="/etc")
    kinds: list[tuple[str, Callable[[], int]]] = [("unix", lambda: 2), ("http", lambda: 4), ("file", lambda: 4)]
    for kind, settled in kinds:
        rest = scene.hear(other, told("a" * 32), elsewhere, told("b" * 32, pid=9), kind=kind)
        assert rest == [other, elsewhere]
        assert scene.ledger.settled_alerts == settled()
    assert scene.alive is None


async def test_alerts_without_a_beat_are_handed_on_as_they_are() -> None:
    scene = Scene()
    alerts = [told("x", rule="Other") for _ in range(3)]
    assert scene.heart.sift(alerts, "unix", 0) is alerts


async def test_what_others_can_cause_is_said_once_a_minute(nursery: trio.Nursery, autojump_clock: Jumps) -> None:
    scene = Scene(interval_s=3600)
    scene.lag = None
    await scene.run(nursery)
    await trio.testing.wait_all_tasks_blocked()
    token = scene.touched[-1]
    nameless = decode(json.dumps({"rule": RULE, "output_fields": {}}).encode())
    for _ in range(1000):
        assert scene.hear(told(token, pid=9), nameless) == []
    assert len(scene.said) == 2
    await passes(SAID_EVERY_NS / 1e9)
    scene.hear(told(token, pid=9), nameless)
    assert len(scene.said) == 4
    counts: dict[Any, Any] = dict(scene.metrics.samples()["heartbeats_total"])
    assert counts["foreign",] == 1001
