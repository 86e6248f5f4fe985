"""Old alerts, and Falco's clock before and behind ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from stoop.skew import ESTABLISHED
from tests.e2e.conftest import Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that

pytestmark = pytest.mark.real

SECOND_NS = 1_000_000_000


def stamp(at_ns: int) -> str:
    """A time as Falco writes it."""
    seconds, nanos = divmod(at_ns, SECOND_NS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


def told(pid: int, at_ns: int, **fields: object) -> bytes:
    """An alert of an event that Falco's clock saw then."""
    return alert(pid, {"evt.time": at_ns, **fields}, time=stamp(at_ns))


def answer(agent: Agent, line: bytes) -> Row:
    before = len(agent.rows())
    agent.send(line)
    return agent.records(before + 1)[-1]


def establish(agent: Agent, offset_ns: int) -> None:
    """Alerts that match nothing, until the agent believes how far Falco's clock is from ours."""
    with agent.connect() as sock:

        def believed() -> bool:
            now_ns = time.time_ns() + offset_ns
            sock.sendall(alert(4321, {"evt.num": now_ns}, time=stamp(now_ns), rule="Nobody's"))
            return bool(agent.status()["clock"]["established"])

        await_that(believed, f"{ESTABLISHED} delays that count")


# ---------------------------------------------------------------- age


@pytest.mark.parametrize(("age_s", "outcome"), [(59, "refused"), (61, "expired"), (10 * 365 * 86400, "expired")])
def test_what_is_older_than_the_configured_age_expires(
    make_agent: MakeAgent, spawn: Spawn, age_s: int, outcome: str
) -> None:
    agent = make_agent()
    bystander = spawn("sleep", "1000")  # it began after the event: a younger alert is not about it either
    row = answer(agent, told(bystander.pid, time.time_ns() - age_s * SECOND_NS))
    assert (row["outcome"], bool(row["reason"])) == (outcome, True)
    assert lives(bystander)


def test_when_all_alerts_are_old_each_of_them_expires(make_agent: MakeAgent, spawn: Spawn) -> None:
    """However many there are, their age is not taken for Falco's clock."""
    agent = make_agent()
    bystander = spawn("sleep", "1000")
    old_ns = time.time_ns() - 10 * 365 * 86400 * SECOND_NS
    agent.send(*(told(bystander.pid, old_ns + number * SECOND_NS) for number in range(2 * ESTABLISHED)))
    assert {row["outcome"] for row in agent.records(2 * ESTABLISHED)} == {"expired"}
    assert lives(bystander)


def test_without_an_age_an_old_alert_is_judged_by_whom_it_means(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(guard={"max_alert_age": "0s"})
    row = answer(agent, told(spawn("sleep", "1000").pid, time.time_ns() - 3600 * SECOND_NS))
    assert (row["outcome"], "given anew" in row["reason"]) == ("refused", True)


def test_an_alert_of_a_time_to_come_is_not_acted_on(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    bystander = spawn("sleep", "1000")
    row = answer(agent, told(bystander.pid, time.time_ns() + 3600 * SECOND_NS))
    assert (row["outcome"], "ahead" in row["reason"]) == ("expired", True)
    assert lives(bystander)


# ---------------------------------------------------------------- another clock


@pytest.mark.root
@pytest.mark.parametrize("offset_s", [-3, 3])
def test_with_a_clock_that_differs_the_one_meant_dies_and_a_newcomer_lives(
    make_agent: MakeAgent, spawn: Spawn, respawn: Callable[[int], None], offset_s: int
) -> None:
    """Falco's clock is 3 s behind or ahead: without the estimate the first would be taken for a newcomer, or a
    newcomer for the one meant."""
    agent = make_agent()
    offset_ns = offset_s * SECOND_NS
    establish(agent, offset_ns)
    assert round(agent.status()["clock"]["offset_ms"] / 1000) == offset_s
    assert round(agent.samples()["stoop_clock_offset_seconds"]) == offset_s

    victim = spawn("sleep", "1000")
    row = answer(agent, told(victim.pid, time.time_ns() + offset_ns, **{"proc.ppid": os.getpid()}))
    assert row["outcome"] == "done", row
    assert was_killed(victim)

    gone = spawn("sleep", "1000")
    line = told(gone.pid, time.time_ns() + offset_ns, **{"proc.ppid": os.getpid()})
    gone.kill()
    gone.wait(PATIENCE_S)
    respawn(gone.pid)
    row = answer(agent, line)
    assert row["outcome"] == "refused", row
    assert alive(gone.pid)
    os.kill(gone.pid, 9)  # ours: `respawn` started it


def test_before_it_is_established_a_clock_behind_only_spares(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    bystander = spawn("sleep", "1000")
    row = answer(agent, told(bystander.pid, time.time_ns() - 3 * SECOND_NS))
    assert row["outcome"] == "refused"
    assert lives(bystander)


def test_a_clock_of_another_machine_does_not_shift_ours(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    with agent.connect() as sock:
        for source, offset_s in (("k8s_audit", 3600), ("k8s_audit", -30), ("syscall", 3600), ("syscall", 60)):
            at_ns = time.time_ns() + offset_s * SECOND_NS
            sock.sendall(alert(4321, {}, time=stamp(at_ns), source=source, rule="Nobody's"))
        victim = spawn("sleep", "1000")
        sock.sendall(alert(victim.pid))
        assert was_killed(victim)
    assert agent.status()["clock"]["offset_ms"] == 0


def test_a_file_that_is_read_late_says_nothing_of_a_clock(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False)
    feed = agent.directory / "events.json"
    agent.configure({"intake": {"file": {"path": str(feed)}}})
    late = time.time_ns() - 20 * SECOND_NS
    feed.write_bytes(
        b"".join(alert(4321, {}, time=stamp(late + n * SECOND_NS), rule="Nobody's") for n in range(2 * ESTABLISHED))
    )
    agent.start()
    await_that(lambda: agent.status()["counts"]["received"] == 2 * ESTABLISHED, "read")
    assert agent.status()["clock"] == {"offset_ms": 0, "established": False, "steps": 0}
    victim = spawn("sleep", "1000")
    agent.send(alert(victim.pid))
    assert was_killed(victim)
