"""SIGKILL of reflex, helper or both amid alerts: nothing is done twice, the journal is whole, the loss is told."""

from __future__ import annotations

import collections
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stoop.alert import alert_id, decode
from stoop.engine import act_id, run_id
from stoop.errors import UserError
from stoop.ring import Intent, open_ring
from tests.e2e.conftest import KILL_IT, Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that

pytestmark = pytest.mark.real

ALERTS = 1000
NAMED = 8
"""Processes that the alerts are about, in turn."""

DRY = """
- rule: Kill a terminal shell
  match: {rules: [Terminal shell in container]}
  allow_host: true
  dry_run: true
  actions: [{action: Kill it, actionner: "process:kill"}]
"""

OK = b"HTTP/1.1 200"


@dataclass
class Sending:
    """Alerts posted one after the other on one connection, as far as the agent answered them."""

    lines: list[bytes]
    sent_ns: list[int] = field(default_factory=list)
    answered_ns: list[int] = field(default_factory=list)

    def post(self, agent: Agent, until: int) -> socket.socket:
        """Write all of it, and read until so many are answered. Later answers are read by `rest`."""
        sock = agent.connect()
        for line in self.lines:
            sock.setblocking(False)
            self._write(sock, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(line), line))
            self.sent_ns.append(time.time_ns())
            if len(self.answered_ns) >= until:
                break
        sock.settimeout(PATIENCE_S)
        while len(self.answered_ns) < until:
            assert self.read(sock), "the agent closed the connection"
        return sock

    def rest(self, sock: socket.socket) -> None:
        """What it answered before it ended."""
        with sock:
            sock.settimeout(PATIENCE_S)
            while self.read(sock):
                pass

    def _write(self, sock: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                sock.settimeout(PATIENCE_S)
                assert self.read(sock), "the agent closed the connection"
                sock.setblocking(False)

    def read(self, sock: socket.socket) -> bool:
        """Some more answers; False at the connection's end."""
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return False
        self.answered_ns += [time.time_ns()] * data.count(OK)  # an answer cut in two is not counted: that is no loss
        return bool(data)


def rows_of(agent: Agent) -> list[Row]:
    """The journal, none where its file was not made yet."""
    try:
        return agent.rows()
    except UserError:
        return []


def once_each(rows: list[Row]) -> bool:
    """At most one outcome an act."""
    return max(collections.Counter(row["act"] for row in rows).values(), default=0) <= 1


def helper_of(agent: Agent) -> int:
    """The helper's pid."""
    return int(agent.status()["helper"]["pid"])


def lines_about(pids: list[int], count: int) -> list[bytes]:
    return [alert(pids[number % len(pids)], {"evt.num": number}) for number in range(count)]


@pytest.mark.parametrize(("who", "answered"), [("reflex", 1), ("reflex", 500), ("both", 300), ("both", 900)])
def test_killed_amid_a_thousand_alerts_the_loss_is_told_and_nothing_is_done_twice(
    make_agent: MakeAgent, spawn: Spawn, who: str, answered: int
) -> None:
    agent = make_agent(DRY)
    named = [spawn("sleep", "1000").pid for _ in range(NAMED)]
    sending = Sending(lines_about(named, ALERTS))
    helper = helper_of(agent)
    sock = sending.post(agent, answered)
    if who == "both":
        os.kill(helper, signal.SIGKILL)
    agent.kill()
    sending.rest(sock)
    await_that(lambda: not Path(f"/proc/{helper}").exists(), "the helper does not outlive the reflex")
    before = rows_of(agent)

    agent.start()
    recovery = agent.status()["recovery"]
    recovered = agent.rows()
    window = recovery["window"] or {"from_ns": 0, "to_ns": 0, "at_most": 0}
    lost = len(sending.answered_ns) - len(recovered)
    assert len(recovered) == len(before) + recovery["unfinished"]
    assert lost <= window["at_most"] <= len(sending.sent_ns) + 1  # one may have been taken before we noted it as sent
    assert recovery["clean"] is (lost == 0 and not window["at_most"])
    if lost:
        # The journal has the first ones; which were lost, by their places: the last ones that were answered.
        assert window["from_ns"] <= sending.answered_ns[-1]
        assert window["to_ns"] >= sending.sent_ns[len(sending.answered_ns) - lost]

    agent.send(*sending.lines)
    rows = agent.records(ALERTS)
    assert once_each(rows)
    assert {row["outcome"] for row in rows} == {"would"}
    assert agent.stop() == 0
    agent.start()
    assert agent.status()["recovery"] == {"clean": True, "unfinished": 0, "window": None}
    assert len(agent.rows()) == ALERTS


@pytest.mark.parametrize("answered", [1, 20, 40])
def test_killed_amid_real_kills_the_record_is_true(make_agent: MakeAgent, spawn: Spawn, answered: int) -> None:
    agent = make_agent()
    named = [spawn("sleep", "1000") for _ in range(48)]
    sending = Sending(lines_about([process.pid for process in named], len(named)))
    sock = sending.post(agent, answered)
    agent.kill()
    sending.rest(sock)
    dead = {process.pid for process in named if not alive(process.pid)}
    agent.start()
    rows = agent.rows()
    assert once_each(rows)
    assert {row["target"]["pid"] for row in rows if row["outcome"] == "done"} <= dead
    # Whoever died is in the journal: what is signalled has its place in the ring before.
    assert {row["target"]["pid"] for row in rows} >= dead
    agent.send(*sending.lines)
    assert all(map(was_killed, named))
    await_that(lambda: {row["target"].get("pid") for row in agent.rows()} >= {p.pid for p in named}, "all recorded")
    assert once_each(agent.rows())


def test_the_helpers_death_costs_no_act_and_it_comes_back(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    named = [spawn("sleep", "1000") for _ in range(20)]
    helper = helper_of(agent)
    agent.send(*(alert(process.pid) for process in named[:10]))
    os.kill(helper, signal.SIGKILL)
    agent.send(*(alert(process.pid) for process in named[10:]))
    assert all(map(was_killed, named))
    assert [row["outcome"] for row in agent.records(20)] == ["done"] * 20

    def is_back() -> bool:
        status = agent.status()
        return bool(status["metrics"]) and status["helper"]["pid"] not in (0, helper)

    await_that(is_back, "another helper that serves metrics")
    assert agent.status()["helper"]["restarts"] == 1
    assert agent.samples()['stoop_acts_total{action="process:kill",outcome="done"}'] == 20
    assert agent.get("readyz")[0] == agent.get("healthz")[0] == 200
    agent.rules.write_text(DRY)
    await_that(lambda: agent.samples().get('stoop_reloads_total{result="ok"}') == 1, "it checks rules too")


def test_a_helper_that_is_killed_amid_a_thousand_alerts_costs_none(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(DRY)
    sending = Sending(lines_about([spawn("sleep", "1000").pid for _ in range(NAMED)], ALERTS))
    helper = helper_of(agent)
    sock = sending.post(agent, 300)
    os.kill(helper, signal.SIGKILL)
    with sock:
        while len(sending.answered_ns) < len(sending.sent_ns):
            assert sending.read(sock)
    agent.send(*sending.lines[len(sending.sent_ns) :])
    assert once_each(agent.records(ALERTS))
    assert agent.program.poll() is None


def test_a_reflex_that_is_stopped_fails_its_health_and_serves_on(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    with agent.connect() as sock:
        os.kill(agent.program.pid, signal.SIGSTOP)
        try:
            sock.sendall(alert(victim.pid))
        finally:
            os.kill(agent.program.pid, signal.SIGCONT)
        assert was_killed(victim)


# ---------------------------------------------------------------- killed between the plan and the act


HUP_IT = KILL_IT.replace('kill"}', 'kill", parameters: {signal: HUP}}')
NODE = "node-1"


def planned(agent: Agent, said: bytes, pid: int) -> str:
    """The ring as it is left by an agent that was killed just before it would have signalled; the act's id."""
    agent.state_dir.mkdir(mode=0o700, exist_ok=True)
    ring, _ = open_ring(agent.state_dir, time.time_ns())
    known = alert_id(decode(said), NODE)
    run = run_id(known, "Kill a terminal shell")
    names = (act_id(run, 0), run, known, "Kill a terminal shell", "Kill it", "process:kill", "of another boot")
    slot = ring.reserve(Intent(*names, pid=pid, received_ns=time.time_ns(), decided_ns=time.time_ns()))
    assert slot >= 0
    ring.close(orderly=False)
    return act_id(run, 0)


def test_a_kill_that_may_not_have_been_is_done_when_its_alert_comes_again(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False, node_name=NODE)
    victim = spawn("sleep", "1000")
    said = alert(victim.pid)
    act = planned(agent, said, victim.pid)
    agent.start()
    assert agent.status()["recovery"]["unfinished"] == 1
    (row,) = agent.records(1)
    assert (row["act"], row["outcome"], row["amended"]) == (act, "failed", False)
    assert lives(victim)

    agent.send(said)
    assert was_killed(victim)
    await_that(lambda: agent.rows()[0]["outcome"] == "done", "the record is amended")
    agent.send(said)  # a third time it is a repeat
    row, repeat = agent.records(2)
    assert (repeat["outcome"], repeat["reason"]) == ("skipped", f"duplicate of {act}")
    assert (row["act"], row["amended"], row["target"]["pid"]) == (act, True, victim.pid)
    assert row["details"]["first"].startswith("failed: the agent ended before it could say")
    agent.stop()
    agent.start()
    assert agent.status()["recovery"] == {"clean": True, "unfinished": 0, "window": None}


def test_a_kill_that_has_been_after_all_is_not_forgotten(make_agent: MakeAgent, spawn: Spawn) -> None:
    """The signal was sent, only that was not written down: there is nothing to do, and the record says whom it was."""
    agent = make_agent(start=False, node_name=NODE)
    victim = spawn("sleep", "1000")
    said = alert(victim.pid)
    planned(agent, said, victim.pid)
    victim.kill()
    victim.wait(PATIENCE_S)
    agent.start()
    agent.send(said)
    await_that(lambda: agent.rows()[0]["outcome"] == "skipped", "the record is amended")
    (row,) = agent.records(1)
    assert (row["target"]["pid"], row["target"]["identity"]) == (victim.pid, "of another boot")
    assert row["details"]["first"].startswith("failed: the agent ended before it could say")


def test_a_signal_that_may_count_is_not_sent_again(make_agent: MakeAgent, spawn: Spawn) -> None:
    """Sent twice HUP is not HUP once: what may have been done stays `failed`, and a person is told."""
    agent = make_agent(HUP_IT, start=False, node_name=NODE)
    bystander = spawn("sleep", "1000")  # HUP would end it
    said = alert(bystander.pid)
    planned(agent, said, bystander.pid)
    agent.start()
    agent.send(said)
    await_that(lambda: agent.rows()[0]["repeats"] == 1, "counted")
    (row,) = agent.records(1)
    assert (row["outcome"], row["amended"]) == ("failed", False)
    assert lives(bystander)


def test_killed_twice_before_the_same_act_it_is_tried_a_third_time(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False, node_name=NODE)
    victim = spawn("sleep", "1000")
    said = alert(victim.pid)
    for _ in range(2):
        planned(agent, said, victim.pid)
        agent.start()
        (row,) = agent.records(1)
        assert row["outcome"] == "failed"
        assert agent.status()["recovery"]["unfinished"] == 1
        agent.kill()
    agent.start()
    agent.send(said)
    agent.send(said)
    await_that(lambda: agent.rows()[0]["repeats"] >= 1, "both came")
    assert (agent.rows()[0]["outcome"], lives(victim)) == ("failed", True)  # this start found nothing under way
    agent.kill()
    planned(agent, said, victim.pid)
    agent.start()
    agent.send(said)
    assert was_killed(victim)
    await_that(lambda: agent.rows()[0]["outcome"] == "done", "the record is amended")
