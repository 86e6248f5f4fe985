"""process:kill on real processes: who dies, who lives, what is said of it."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.errors import TargetGone
from stoop.node import HeldProcess, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)
from tests.real.conftest import (
    PATIENCE_S,
    SYS_EXIT,
    ZOMBIE_LEADER,
    Spawn,
    await_that,
    comm,
    line,
    say,
    state,
)

pytestmark = pytest.mark.real
root = pytest.mark.root


def nobody(facts: ProcessFacts) -> str:
    return ""


def context(
    host: LinuxHost, process: HeldProcess | None, protects: Callable[..., str] = nobody, **given: Any
) -> ActContext:
    return ActContext(
        host=host,
        params=kill.KillParameters(**given),
        process=process,
        container=None,
        protects=protects,
        protects_container=lambda container: "",
    )


async def done(ctx: ActContext) -> Outcome:
    """Begin and verify, within the default deadline."""
    begun = kill.begin(ctx)
    if isinstance(begun, Outcome):
        return begun
    with trio.move_on_after(PATIENCE_S):
        return await kill.verify(ctx, begun)
    return kill.overdue(ctx, begun)


def threads(pid: int) -> list[int]:
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


# ---------------------------------------------------------------- one process


async def test_the_process_dies_and_its_neighbour_lives(host: LinuxHost, spawn: Spawn) -> None:
    victim, neighbour = spawn("sleep", "1000"), spawn("sleep", "1000")
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held))
    assert (outcome.verdict, outcome.details["count"]) == (Verdict.DONE, 1)
    assert victim.wait(PATIENCE_S) == -signal.SIGKILL
    assert neighbour.poll() is None


async def test_one_that_has_exited_is_skipped(host: LinuxHost, spawn: Spawn) -> None:
    victim = spawn("cat")
    with host.hold(victim.pid) as held:
        victim.kill()
        await held.wait_exited()  # a zombie: it takes signals still
        assert await done(context(host, held)) == Outcome(Verdict.SKIPPED, "already exited")
        victim.wait()
        for scope in ("tree", "process"):
            assert (await done(context(host, held, scope=scope))).verdict is Verdict.SKIPPED


async def test_an_exec_after_the_alert_does_not_save_it(host: LinuxHost, spawn: Spawn) -> None:
    victim = spawn("sh", "-c", "read go; exec sleep 1000")
    await_that(lambda: comm(victim.pid) == "sh", "the name is set last in an exec")
    with host.hold(victim.pid) as held:
        say(victim)
        await_that(lambda: comm(victim.pid) == "sleep", "exec")
        assert (await done(context(host, held))).verdict is Verdict.DONE
        assert held.facts.comm == "sh"


async def test_a_first_thread_that_ended_does_not_hide_the_others(host: LinuxHost, spawn: Spawn) -> None:
    number = SYS_EXIT.get(platform.machine())
    if number is None:
        pytest.skip(f"no number of exit(2) for {platform.machine()}")
    victim = spawn(sys.executable, "-c", ZOMBIE_LEADER, str(number))
    assert line(victim) == "ready"
    await_that(lambda: state(victim.pid) == "Z", "the first thread has ended")
    with host.hold(victim.pid) as held:
        assert held.facts.exe == os.readlink(f"/proc/{victim.pid}/task/{threads(victim.pid)[1]}/exe")
        assert held.facts.mnt_ns == os.stat("/proc/self/ns/mnt").st_ino
        await_that(lambda: held.state() == "S", "the living thread waits")
        assert not held.has_exited()
        assert (await done(context(host, held))).verdict is Verdict.DONE
        with pytest.raises(TargetGone):
            host.hold(victim.pid)


async def test_term_is_done_when_it_has_ended_and_overdue_when_it_does_not(host: LinuxHost, spawn: Spawn) -> None:
    obedient = spawn("sleep", "1000")
    with host.hold(obedient.pid) as held:
        assert (await done(context(host, held, signal="TERM"))).verdict is Verdict.DONE
    deaf = spawn("sh", "-c", 'trap "" TERM; echo ready; read go')
    assert line(deaf) == "ready"
    with host.hold(deaf.pid) as held:
        ctx = context(host, held, signal=15)
        begun = kill.begin(ctx)
        assert isinstance(begun, Begun)
        with trio.move_on_after(0.05) as scope:
            await kill.verify(ctx, begun)
        assert scope.cancelled_caught
        outcome = kill.overdue(ctx, begun)
        assert (outcome.verdict, outcome.reason) == (Verdict.FAILED, "signalled, state S")
        # It is watched on: the same act is seen to have worked later.
        deaf.kill()
        assert (await kill.verify(ctx, begun)).verdict is Verdict.DONE


async def test_a_signal_that_need_not_end_it_is_done_when_delivered(host: LinuxHost, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    with host.hold(victim.pid) as held:
        assert await done(context(host, held, signal="stop")) == Outcome(
            Verdict.DONE, "delivered", {"signal": "STOP", "scope": "process", "count": 1}
        )
        await_that(lambda: held.state() == "T", "stopped")
        await done(context(host, held, signal="SIGCONT"))
        await_that(lambda: held.state() == "S", "continued")


def test_without_a_process_it_is_refused(host: LinuxHost) -> None:
    assert kill.begin(context(host, None)) == Outcome(Verdict.REFUSED, "no process is held")


@root
async def test_without_cap_kill_it_fails_and_says_what_is_needed(spawn: Spawn) -> None:
    victim = spawn("sleep", "1000", user=65534)
    program = f"""
import sys
from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.spec import (ActContext,)
host = LinuxHost()
held = host.hold({victim.pid})
nobody = lambda facts: ""
ctx = ActContext(
    host=host, params=kill.KillParameters(), process=held, container=None, protects=nobody, protects_container=nobody
)
print(held.facts.uid, getattr(kill.begin(ctx), "reason", "begun"))
"""

    def run(*capabilities: str) -> str:
        bounds = ",".join(["-all", *(f"+{name}" for name in capabilities)])
        argv = ["setpriv", f"--bounding-set={bounds}", sys.executable, "-c", program]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S).stdout.strip()

    assert run("sys_ptrace") == (
        "65534 signal 9 to pid %d: Operation not permitted (CAP_KILL is needed)" % victim.pid  # noqa: UP031
    )
    assert run("kill") == ""  # can't be read, so it is refused by `hold`
    # The declared rights, and no others, are enough.
    assert {f"CAP_{name.upper()}" for name in ("kill", "sys_ptrace")} == set(kill.SPEC.node_rights)
    assert run("kill", "sys_ptrace") == "65534 begun"
    assert victim.wait(PATIENCE_S) == -signal.SIGKILL


# ---------------------------------------------------------------- pids given anew


@root
async def test_a_newcomer_with_the_same_pid_lives(
    host: LinuxHost, spawn: Spawn, respawn: Callable[[int], None]
) -> None:
    for _ in range(50):
        victim = spawn("sleep", "1000")
        with host.hold(victim.pid) as held:
            old = host.precise_start(held.facts)
            victim.kill()
            victim.wait(PATIENCE_S)
            respawn(victim.pid)
            assert kill.begin(context(host, held)) == Outcome(Verdict.SKIPPED, "already exited")
            assert held.state() == "X"
            with host.hold(victim.pid) as newcomer:
                new = host.precise_start(newcomer.facts)
                assert not newcomer.has_exited()
                assert sum(old) < new[0]
                assert held.facts.identity != newcomer.facts.identity
                same_tick = abs(new[0] - old[0]) < 10_000_000
        if same_tick:
            return  # told apart, though /proc gives both the same start
        # The next one needs the number free again.
        os.kill(victim.pid, signal.SIGKILL)
    pytest.skip("50 times no pid was given anew within one tick")


# ---------------------------------------------------------------- executables


async def test_the_executable_is_told_when_it_is_deleted(host: LinuxHost, spawn: Spawn, tmp_path: Path) -> None:
    copy = tmp_path / "miner"
    shutil.copy(shutil.which("sleep") or "", copy)
    known = os.stat(copy)
    victim = spawn(str(copy), "1000")
    await_that(lambda: comm(victim.pid) == "miner", "exec")
    copy.unlink()
    with host.hold(victim.pid) as held:
        assert held.facts.exe == f"{copy} (deleted)"
        facts = host.more_facts(held.facts)
        assert (facts.exe_ino, facts.exe_dev) == (known.st_ino, known.st_dev)
        assert (await done(context(host, held))).verdict is Verdict.DONE


async def test_the_executable_is_told_when_it_was_never_a_file(host: LinuxHost, spawn: Spawn) -> None:
    program = """
import os, sys
fd = os.memfd_create("payload", os.MFD_CLOEXEC)
with open(sys.argv[1], "rb") as file: os.write(fd, file.read())
os.execve(fd, ["sleep", "1000"], {})
"""
    victim = spawn(sys.executable, "-c", program, shutil.which("sleep") or "")
    await_that(lambda: os.readlink(f"/proc/{victim.pid}/exe").startswith("/memfd"), "exec")
    with host.hold(victim.pid) as held:
        assert held.facts.exe == "/memfd:payload (deleted)"
        assert host.more_facts(held.facts).exe_ino == os.stat(f"/proc/{victim.pid}/exe").st_ino
        assert (await done(context(host, held))).verdict is Verdict.DONE
