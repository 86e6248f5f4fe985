"""A journal that can't be written, read or found: acts go on, and it is said."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent, MakeAgent, alert, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, await_that

pytestmark = pytest.mark.real


def journal_error(agent: Agent) -> str:
    return str(agent.status()["journal"]["error"])


def kills(agent: Agent, spawn: Spawn, count: int = 1) -> None:
    """So many processes are named, and die."""
    victims = [spawn("sleep", "1000") for _ in range(count)]
    agent.send(*(alert(victim.pid) for victim in victims))
    assert all(map(was_killed, victims))


@contextlib.contextmanager
def full_disk(agent: Agent) -> Iterator[None]:
    """No file of the reflex may grow (setrlimit(2): RLIMIT_FSIZE): what it writes fails with EFBIG."""
    program = agent.program
    before = resource.prlimit(program.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        if program.poll() is None:
            resource.prlimit(program.pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_no_act_and_nothing_is_lost_when_there_is_room_again(
    make_agent: MakeAgent, spawn: Spawn
) -> None:
    agent = make_agent()
    kills(agent, spawn)
    agent.records(1)
    with full_disk(agent):
        kills(agent, spawn, 10)
        await_that(lambda: journal_error(agent) != "", "it is in the status")
        kills(agent, spawn, 10)
        await_that(lambda: agent.status()["journal"]["lag"] == 20, "20 records wait")
        await_that(lambda: agent.samples()["stoop_journal_lag_records"] == 20, "a metric says so")
        assert len(agent.rows()) == 1
        await_that(lambda: "the journal can't be written: acts go on" in agent.said(), "it is said")
        assert "journal" in agent.stoop("status").stdout
    kills(agent, spawn)
    rows = agent.records(22)
    assert {row["outcome"] for row in rows} == {"done"}
    await_that(lambda: not journal_error(agent), "the trouble is over")
    assert agent.status()["journal"]["lost"] == 0


def test_killed_while_the_disk_is_full_the_acts_are_in_the_ring(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    with full_disk(agent):
        kills(agent, spawn, 10)
        await_that(lambda: journal_error(agent) != "", "it is in the status")
        await_that(lambda: agent.status()["queue"]["lanes"] == 0, "all are verified")
        agent.kill()
    agent.start()
    assert agent.status()["recovery"]["unfinished"] == 10
    rows = agent.records(10)
    assert {(row["outcome"], row["target"]["pid"] > 0, row["details"]["recovered"]) for row in rows} == {
        ("done", True, True)
    }


def test_it_ends_in_order_with_a_full_disk(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    with full_disk(agent):
        kills(agent, spawn, 3)
        await_that(lambda: journal_error(agent) != "", "it is in the status")
        assert agent.stop() == 0
    agent.start()
    assert agent.status()["recovery"]["clean"] is False
    assert len(agent.records(3)) == 3


def test_without_a_state_directory_it_acts_and_says_so(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False)
    sockets = agent.directory / "sockets"
    agent.socket_path, agent.control_path = str(sockets / "falco.sock"), str(sockets / "control.sock")
    agent.configure(
        {
            "state_dir": "/proc/no-such-place/state",
            "control": {"path": agent.control_path},
            "intake": {"unix": {"path": agent.socket_path}},
        }
    )
    agent.start()
    kills(agent, spawn)
    await_that(lambda: journal_error(agent) != "", "it is in the status")
    assert "state directory can't be made" in agent.said()
    assert "it ends with the agent" in agent.stoop("mode", "observe").stderr
    assert agent.status()["mode"] == "observe"


@pytest.mark.parametrize("name", ["journal.db", "ring"])
@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_a_broken_file_is_set_aside_and_does_not_hold_up_the_start(
    make_agent: MakeAgent, spawn: Spawn, name: str, garbage: bytes
) -> None:
    agent = make_agent()
    kills(agent, spawn)
    agent.records(1)
    agent.kill()
    (agent.state_dir / name).write_bytes(garbage)
    (agent.state_dir / f"{name}-wal").unlink(missing_ok=True)  # with it SQLite would mend the file
    agent.start()
    kills(agent, spawn)
    await_that(lambda: any(row["outcome"] == "done" for row in agent.rows()), "recorded")
    assert journal_error(agent) == ""
    if garbage:
        assert [path.name for path in agent.state_dir.glob("*.corrupt-1")] == [f"{name}.corrupt-1"]
    assert agent.status()["recovery"]["clean"] is False


def test_a_state_directory_of_another_kind_refuses_the_start(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False)
    agent.state_dir.write_text("a file")
    ended = agent.once()
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False), ended.stderr
    agent.state_dir.unlink()
    agent.state_dir.mkdir()
    agent.state_dir.chmod(0o777)
    ended = agent.once()
    assert (ended.returncode, "others may write" in ended.stderr) == (2, True), ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_log_that_can_not_be_written_stops_nothing(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False)
    agent.log.touch()
    with Path("/dev/full").open("wb") as full:
        program = subprocess.Popen(agent.command(), stdout=subprocess.PIPE, stderr=full, env=agent.environment())
    with program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            kills(agent, spawn, 5)
            assert len(agent.records(5)) == 5
            assert agent.status()["helper"]["restarts"] == 0
            program.send_signal(signal.SIGTERM)
            assert program.wait(PATIENCE_S) == 0
        finally:
            program.kill()
