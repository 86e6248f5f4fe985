"""Is Falco still there? A real agent, and a test that plays Falco: it sees the beacon's files and tells of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify, flags

from stoop.config_model import HEARTBEAT_RULE
from tests.e2e.conftest import KILL_IT, Agent, MakeAgent, alert, lives, stamp, was_killed
from tests.real.conftest import Spawn, await_that

pytestmark = pytest.mark.real

BEAT = {"interval": "1s"}

KILL_ALL = """
- rule: Kill whatever is told
  match: {priority: ">=Debug"}
  allow_host: true
  actions: [{action: Kill it, actionner: "process:kill"}]
"""

SECOND_NS = 1_000_000_000


def beat_alert(path: str | None, pid: int, offset_ns: int = 0, **fields: Any) -> bytes:
    """The alert of the rule that `stoop falco-config` prints, about this file."""
    event_ns = time.time_ns() + offset_ns
    said = {"evt.time": event_ns, "evt.type": "openat", "fd.name": path, "proc.name": "stoop-agent", **fields}
    return alert(pid, said, time=stamp(event_ns), rule=HEARTBEAT_RULE, priority="Debug", tags=["stoop", "heartbeat"])


class PlayedFalco:
    """Answers each new file in the beacon's directory while `answers` is true, `lag_s` later. `seen`: their paths."""

    def __init__(self, agent: Agent, offset_ns: int, feed: Path | None) -> None:
        self.feed = feed
        self.seen: list[str] = []
        self.answers = True
        self.lag_s = 0.0
        self._agent = agent
        self._offset_ns = offset_ns
        self._end = threading.Event()
        self.directory = agent.state_dir / "heartbeat"

    def serve(self, ready: threading.Event) -> None:
        """Until `end`. The directory is watched before the agent makes its first file."""
        with INotify() as watch, self._way() as send:
            watch.add_watch(self.directory, flags.CREATE)
            ready.set()
            while not self._end.is_set():
                for event in watch.read(timeout=50):
                    path = f"{self.directory}/{event.name}"
                    self.seen.append(path)
                    if self.answers:
                        line = beat_alert(path, self._agent.program.pid, self._offset_ns)
                        self._end.wait(self.lag_s)
                        send(line)

    @contextmanager
    def _way(self) -> Iterator[Callable[[bytes], object]]:
        """The agent's socket, or the file that it follows."""
        if self.feed is not None:
            with self.feed.open("ab", buffering=0) as file:
                yield file.write
        else:
            with self._agent.connect() as sock:
                yield sock.sendall

    def end(self) -> None:
        """Have `serve` return."""
        self._end.set()


@contextmanager
def played(agent: Agent, offset_ns: int = 0, feed: Path | None = None) -> Iterator[PlayedFalco]:
    """Falco, from now until the end of the block."""
    falco = PlayedFalco(agent, offset_ns, feed)
    falco.directory.mkdir(mode=0o700, exist_ok=True)
    ready = threading.Event()
    thread = threading.Thread(target=falco.serve, args=(ready,))
    thread.start()
    try:
        assert ready.wait(10)
        yield falco
    finally:
        falco.end()
        thread.join()


def heartbeat(agent: Agent) -> Mapping[str, Any]:
    part = agent.status()["heartbeat"]
    assert isinstance(part, dict)
    return part


def alive(agent: Agent) -> bool:
    return heartbeat(agent)["alive"] is True


def test_a_beat_that_comes_back_proves_the_feed_and_causes_no_act(make_agent: MakeAgent) -> None:
    agent = make_agent(KILL_ALL, heartbeat=BEAT)
    with played(agent):
        await_that(lambda: alive(agent), "a heartbeat")
        samples = agent.samples()
        assert samples["stoop_feed_alive"] == 1
        assert samples['stoop_heartbeats_total{result="answered"}'] >= 1
        assert samples['stoop_heartbeat_seconds_count{pacemaker="off"}'] >= 1
        lag = heartbeat(agent)["lag_ms"]["off"]
        assert 0 < lag["p50"] <= lag["max"] < 1000
        code, page = agent.get("readyz")
        assert (code, json.loads(page)["heartbeat"]["alive"]) == (200, True)
        assert agent.stoop("status").returncode == 0
    assert agent.stop() == 0
    assert agent.rows() == []
    assert "heartbeat came back" in agent.said()
    assert list((agent.state_dir / "heartbeat").iterdir()) == []


def test_silence_is_told_once_and_its_end_too(make_agent: MakeAgent) -> None:
    agent = make_agent(heartbeat=BEAT)
    with played(agent) as falco:
        await_that(lambda: alive(agent), "a heartbeat")
        falco.answers = False
        await_that(lambda: heartbeat(agent)["alive"] is False, "silence")
        assert agent.samples()["stoop_feed_alive"] == 0
        assert agent.samples()["stoop_heartbeats_missed_total"] >= 2
        code, page = agent.get("readyz")
        assert (code, json.loads(page)["heartbeat"]["alive"]) == (200, False)
        shown = agent.stoop("status")
        assert (shown.returncode, "heartbeats do not come back" in " ".join(shown.stdout.split())) == (1, True)
        falco.answers = True
        await_that(lambda: alive(agent), "the feed again")
    said = agent.said()
    assert said.count("feed is silent") == 1
    assert said.count("feed is alive") == 2


@pytest.mark.parametrize("offset_s", [-3, 3])
def test_a_beat_tells_how_far_falcos_clock_is(make_agent: MakeAgent, spawn: Spawn, offset_s: int) -> None:
    """Falco sends no other alert; of those eight are needed for a clock behind (test_clock.py)."""
    agent = make_agent(KILL_IT, heartbeat=BEAT)
    victim = spawn("sleep", "1000")
    with played(agent, offset_s * SECOND_NS):
        # The first beat, unless the busy machine interrupted its touch.
        await_that(lambda: bool(agent.status()["clock"]["established"]), "a measured clock")
        clock = agent.status()["clock"]
        assert clock["offset_ms"] == pytest.approx(offset_s * 1000, abs=200)
        event_ns = time.time_ns() + offset_s * SECOND_NS
        agent.send(alert(victim.pid, {"evt.time": event_ns}, time=stamp(event_ns)))
        row = agent.records(1)[0]
    assert row["outcome"] == "done", row
    assert was_killed(victim)


def test_nobody_else_can_answer_for_falco(make_agent: MakeAgent, spawn: Spawn) -> None:
    """Falco is silent. An attacker opens files of such names in his container, and a bystander's pid is in the alerts;
    a beat that was seen is told again under another pid; and old beats are sent anew."""
    agent = make_agent(KILL_ALL, heartbeat=BEAT)
    bystander = spawn("sleep", "1000")
    with played(agent) as falco:
        await_that(lambda: alive(agent), "a heartbeat")
        falco.answers = False
        answered = falco.seen[0]
        await_that(lambda: heartbeat(agent)["missed"] >= 1, "a missed beat")
        unanswered = falco.seen[-1]
        agent.send(
            beat_alert(unanswered, bystander.pid),
            beat_alert(answered, agent.program.pid),
            beat_alert(f"{falco.directory}/{'a' * 32}", bystander.pid),
            beat_alert(f"{falco.directory}/../../etc/shadow", bystander.pid),
            beat_alert(None, bystander.pid),
        )
        await_that(lambda: heartbeat(agent)["alive"] is False, "silence all the same")
        samples = agent.samples()
        results = {
            name: samples[f'stoop_heartbeats_total{{result="{name}"}}'] for name in ("foreign", "repeated", "unknown")
        }
    assert results == {"foreign": 1, "repeated": 1, "unknown": 2}
    assert agent.rows() == []
    assert lives(bystander)


def test_a_rule_of_the_same_name_about_other_files_is_no_heartbeat(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(KILL_ALL, heartbeat=BEAT)
    victim = spawn("sleep", "1000")
    agent.send(beat_alert("/etc/shadow", victim.pid))
    assert was_killed(victim)


def test_a_beacon_that_others_may_enter_is_not_used(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False, heartbeat=BEAT)
    directory = agent.state_dir / "heartbeat"
    directory.mkdir(parents=True)
    agent.state_dir.chmod(0o700)
    directory.chmod(0o777)
    agent.start()
    await_that(lambda: "0700" in heartbeat(agent)["trouble"], "the refusal")
    assert list(directory.iterdir()) == []
    shown = agent.stoop("status")
    assert (shown.returncode, "beacon" in shown.stdout) == (1, True)
    directory.chmod(0o700)
    await_that(lambda: heartbeat(agent)["trouble"] == "", "the beacon in order")


def test_what_a_killed_agent_left_in_the_beacon_goes(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False, heartbeat=BEAT)
    directory = agent.state_dir / "heartbeat"
    directory.mkdir(parents=True)
    for path in (agent.state_dir, directory):
        path.chmod(0o700)
    (directory / os.urandom(16).hex()).touch()
    (directory / "a person's note").touch()
    agent.start()
    with played(agent):
        await_that(lambda: alive(agent), "a heartbeat")
    agent.stop()
    assert [path.name for path in directory.iterdir()] == ["a person's note"]


def test_answered_beats_are_not_counted_as_lost_by_the_next_agent(make_agent: MakeAgent) -> None:
    """Each is settled when it is taken out: after a SIGKILL the window of what may be lost holds none of them."""
    agent = make_agent(heartbeat=BEAT)
    with played(agent):
        await_that(lambda: alive(agent), "a heartbeat")
        agent.kill()
    agent.start()
    window = agent.status()["recovery"]["window"]
    assert window is None or window["at_most"] == 0


def test_beats_come_back_by_a_followed_file_too_and_tell_of_the_clock(make_agent: MakeAgent, tmp_path: Path) -> None:
    """Other alerts of a file say nothing of a clock, for they may be old. Those of an earlier agent are no answers."""
    feed = tmp_path / "events.json"
    feed.touch()
    agent = make_agent(KILL_ALL, heartbeat=BEAT, intake={"file": {"path": str(feed)}})
    with played(agent, 2 * SECOND_NS, feed):
        await_that(lambda: bool(agent.status()["clock"]["established"]), "a measured clock")
        assert agent.status()["clock"]["offset_ms"] == pytest.approx(2000, abs=200)
        agent.kill()
    agent.start()
    assert heartbeat(agent)["alive"] is None
    with feed.open("ab") as file:
        file.write(beat_alert(f"{agent.state_dir}/heartbeat/{'c' * 32}", agent.program.pid))
    await_that(lambda: agent.samples().get('stoop_heartbeats_total{result="unknown"}', 0) >= 1, "an unknown beat")
    assert heartbeat(agent)["alive"] is not True
    assert agent.rows() == []
