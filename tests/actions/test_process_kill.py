"""process:kill: its parameters, and what it does to processes of our own, without any right."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.actions.process.group import Group
from stoop.node import ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("KILL", 9),
        ("SIGKILL", 9),
        ("kill", 9),
        (" SigTerm ", 15),
        (9, 9),
        ("9", 9),
        ("09", 9),
        (1, 1),
        (64, 64),
        ("64", 64),
        ("HUP", 1),
        ("RTMIN", int(signal.SIGRTMIN)),
        ("CLD", int(signal.SIGCHLD)),
    ],
)
def test_a_signal_by_name_or_number(given: str | int, number: int) -> None:
    assert kill.signal_number(given) == number
    assert not list(kill.check(kill.KillParameters(signal=given)))


@pytest.mark.parametrize(
    "given", ["", "SIG", "KIL", "SIGSIGKILL", 0, -9, 65, "0", "65", "-9", "9" * 5000, "٩", "KILL,TERM", "0x9", "9.0"]
)
def test_what_is_no_signal(given: str | int) -> None:
    assert kill.signal_number(given) is None
    (fault,) = kill.check(kill.KillParameters(signal=given))
    assert (fault.code, fault.parameter) == ("param-value", "signal")


def test_a_near_name_is_offered() -> None:
    (fault,) = kill.check(kill.KillParameters(signal="SIGKIL"))
    assert "did you mean KILL?" in fault.message


def test_parameters_from_a_file() -> None:
    assert msgspec.convert({}, kill.KillParameters) == kill.KillParameters("KILL", "process")
    assert msgspec.convert({"signal": 15, "scope": "tree"}, kill.KillParameters).signal == 15
    for wrong in ({"scope": "pod"}, {"signal": [9]}, {"signal": None}, {"signal": True}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, kill.KillParameters)


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    made = LinuxHost()
    yield made
    made.close()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait(10)


def nobody(facts: ProcessFacts) -> str:
    return ""


def context(host: LinuxHost, pid: int, params: kill.KillParameters) -> ActContext:
    return ActContext(
        host=host,
        params=params,
        process=host.hold(pid),
        container=None,
        protects=nobody,
        protects_container=lambda container: "",
    )


@pytest.mark.parametrize("scope", ["process", "tree"])
async def test_a_process_of_our_own_dies(scope: str, host: LinuxHost, victim: subprocess.Popen[bytes]) -> None:
    ctx = context(host, victim.pid, msgspec.convert({"scope": scope}, kill.KillParameters))
    begun = kill.begin(ctx)
    assert isinstance(begun, Begun)
    outcome = await kill.verify(ctx, begun)
    assert (outcome.verdict, outcome.reason, outcome.details["signal"]) == (Verdict.DONE, "", "KILL")
    assert victim.wait(10) == -signal.SIGKILL
    # Asked again it has nothing to do: the act is idempotent.
    assert kill.begin(ctx) == Outcome(Verdict.SKIPPED, "already exited")
    assert ctx.process is not None
    ctx.process.close()
    ctx.process.close()


@pytest.mark.parametrize("scope", ["session", "container"])
def test_a_scope_of_containers_refuses_what_is_in_none(
    scope: str, host: LinuxHost, victim: subprocess.Popen[bytes]
) -> None:
    ctx = context(host, victim.pid, msgspec.convert({"scope": scope}, kill.KillParameters))
    assert ctx.process is not None
    if ctx.process.facts.container_id:
        pytest.skip("the tests run in a container")
    outcome = kill.begin(ctx)
    assert isinstance(outcome, Outcome)
    assert outcome.verdict is Verdict.REFUSED
    ctx.process.close()
    assert victim.poll() is None


def test_parameters_that_nobody_checked_do_no_harm(host: LinuxHost, victim: subprocess.Popen[bytes]) -> None:
    ctx = context(host, victim.pid, kill.KillParameters(signal="NONE"))
    assert kill.begin(ctx) == Outcome(Verdict.REFUSED, "no signal 'NONE'")
    assert ctx.process is not None
    ctx.process.close()


def test_a_pid_that_came_to_mean_another_is_left_alone(host: LinuxHost, victim: subprocess.Popen[bytes]) -> None:
    """Between the list and the pidfd: what does not belong when it is held is not taken."""
    stranger = subprocess.Popen(["sleep", "1000"])
    ctx = context(host, victim.pid, kill.KillParameters(scope="tree"))
    assert ctx.process is not None
    group = Group(ctx, ctx.process, lambda facts, group: facts.ppid in group.members, resumes=True)
    try:
        group.gather(lambda group: [stranger.pid], "")
        assert (set(group.members), group.lost) == ({victim.pid}, {stranger.pid})
    finally:
        group.resume()
        group.close()
        ctx.process.close()
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait(10)
