"""Floods, full queues, no descriptors: others are served, nothing is lost silently, the agent goes on."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from agent.link import RESTART_SECONDS
from stoop.backlog import QUEUE_CAPACITY
from stoop.control import ControlError
from stoop.intake.limits import CONNECTIONS
from tests.e2e.conftest import Agent, MakeAgent, alert, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, await_that

pytestmark = pytest.mark.real

FLOOD = 5000
GONE = 4_194_000
"""A pid that nobody has (below the kernel's limit): each alert about it still has to be looked at."""

SOON = 1000
"""Of the flood's alerts so many may be answered first: those read before the other one came, and some turns more."""


def noise(count: int, **claims: object) -> list[bytes]:
    """Matching alerts of one container."""
    return [alert(GONE, {"container.id": "a" * 12, "evt.num": number, **claims}) for number in range(count)]


def small(line: bytes, *kept: str) -> bytes:
    """The same alert with no more than it needs: a hundred of them come with one read."""
    whole = json.loads(line)
    fields = {name: whole["output_fields"][name] for name in ("proc.pid", "container.id", *kept)}
    return json.dumps({"rule": whole["rule"], "time": whole["time"], "output_fields": fields}).encode() + b"\n"


@contextlib.contextmanager
def flooding(agent: Agent, lines: list[bytes]) -> Iterator[None]:
    """Another thread writes these, as fast as the agent takes them."""
    with agent.connect() as sock:
        thread = threading.Thread(target=sock.sendall, args=(b"".join(lines),))
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the flood was not taken"


def received(agent: Agent) -> int:
    return int(agent.status()["counts"]["received"])


def place_of(agent: Agent, pid: int) -> int:
    """How many records are before the one about it."""
    return [row["target"].get("pid") for row in agent.rows()].index(pid)


def test_another_container_is_answered_amid_a_flood_of_one(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    with flooding(agent, noise(FLOOD)):
        await_that(lambda: received(agent) > 0, "the flood has begun")
        agent.send(alert(victim.pid))
        before = received(agent)
        assert was_killed(victim)
    rows = agent.records(FLOOD + 1)
    assert before < FLOOD
    assert place_of(agent, victim.pid) - before < SOON
    told = collections.Counter(row["outcome"] for row in rows)
    assert (told.pop("done"), set(told) <= {"skipped", "expired"}) == (1, True)


def test_on_one_connection_too_another_containers_turn_comes_before_the_flood_is_over(
    make_agent: MakeAgent, spawn: Spawn
) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    lines = [small(line, "evt.num") for line in noise(3000)]
    agent.send(*lines, alert(victim.pid))
    assert was_killed(victim)
    agent.records(3001)
    assert place_of(agent, victim.pid) < 1500


def test_when_the_queue_is_full_the_busiest_expires_and_it_is_told(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    sent = 3 * QUEUE_CAPACITY
    lines = [small(line, "evt.num") for line in noise(sent)]
    agent.send(*lines, small(alert(victim.pid)))
    assert was_killed(victim)
    rows = agent.records(sent + 1)
    told = collections.Counter((row["outcome"], row["reason"]) for row in rows)
    expired = told.pop(("expired", "queue full"))
    assert told.pop(("done", "")) == 1
    assert {outcome for outcome, _ in told} == {"skipped"}
    assert max(collections.Counter(row["act"] for row in rows).values()) == 1
    samples = agent.samples()
    assert samples["stoop_queue_dropped_total"] == expired > 0
    assert samples["stoop_queue_length"] == 0
    assert samples['stoop_alerts_matched_total{rule="Kill a terminal shell"}'] == sent + 1 - expired


def test_unmatched_alerts_are_no_load(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    with flooding(agent, [alert(GONE, {"evt.num": number}, rule="Nobody's") for number in range(20_000)]):
        await_that(lambda: received(agent) > 0, "the flood has begun")
        agent.send(alert(victim.pid))
        assert was_killed(victim)
    assert [row["target"]["pid"] for row in agent.records(1)] == [victim.pid]


# ---------------------------------------------------------------- connections and descriptors


def test_more_connections_than_are_taken_leave_the_first_ones_served(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim, other = spawn("sleep", "1000"), spawn("sleep", "1000")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(agent.connect())
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CONNECTIONS + 40)]
        for sock in crowd:
            sock.connect(agent.socket_path)  # blocking: the backlog is shorter than the crowd
        crowd[-1].settimeout(PATIENCE_S)
        assert crowd[-1].recv(1) == b""  # the newest is closed
        first.sendall(alert(victim.pid))
        assert was_killed(victim)
    await_that(lambda: not agent.status()["feed"]["peers"], "their ends are seen")
    agent.send(alert(other.pid))
    assert was_killed(other)


@contextlib.contextmanager
def no_descriptors(agent: Agent) -> Iterator[list[socket.socket]]:
    """The agent has none left: its limit is lowered, and connections take what there is."""
    pid = agent.program.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    crowd: list[socket.socket] = []
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 4, before[1]))
        crowd += [agent.connect() for _ in range(20)]
        await_that(lambda: len(os.listdir(f"/proc/{pid}/fd")) >= highest, "its descriptors are used up")
        yield crowd
    finally:
        for sock in crowd:
            sock.close()
        if agent.program.poll() is None:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    """Readable once the process has ended."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def test_without_descriptors_it_lives_says_why_and_serves_again(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    with no_descriptors(agent) as crowd:
        crowd[0].sendall(alert(victim.pid))
        await_that(lambda: len(agent.rows()) > 0, "an outcome")
        (row,) = agent.records(1)
    if row["outcome"] != "done":  # one may have been free just then
        assert (row["outcome"], "RLIMIT_NOFILE" in row["reason"]) == ("refused", True), row
        agent.send(alert(victim.pid))
    assert was_killed(victim)
    assert agent.status()["ready"]


def test_a_helper_that_ends_while_there_is_no_descriptor_is_started_later(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    helper = agent.status()["helper"]["pid"]
    with pidfd_of(agent.program.pid) as pidfd, no_descriptors(agent) as crowd:
        os.kill(helper, signal.SIGKILL)
        await_that(lambda: not os.path.exists(f"/proc/{helper}"), "the helper is reaped")
        # More than one attempt to start another (RESTART_SECONDS) fails within this time, and must not end the agent.
        assert not select.select([pidfd], [], [], sum(RESTART_SECONDS[:2]) + 0.2)[0], agent.said()
        crowd[0].sendall(alert(GONE))
        agent.records(1)

    def is_back() -> bool:
        with contextlib.suppress(ControlError):
            status = agent.status()
            return bool(status["metrics"]) and status["helper"]["pid"] not in (0, helper)
        return False

    await_that(is_back, "another helper")
    agent.send(alert(victim.pid))
    assert was_killed(victim)
