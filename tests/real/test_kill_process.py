"""process:kill on real processes: who dies, who lives, what is said of it."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.actions.process.group import MAX_GROUP
from stoop.errors import TargetGone
from stoop.spec import ActContext, Begun, HeldProcess, Outcome, ProcessFacts, Verdict
from tests.real.conftest import (
    PATIENCE_S,
    MakeBox,
    MakeExec,
    MakeNamespaced,
    Spawn,
    alive,
    await_that,
    comm,
    line,
    say,
    state,
)

pytestmark = pytest.mark.real
root = pytest.mark.root

SYS_EXIT = {"x86_64": 60, "aarch64": 93}

ZOMBIE_LEADER = """
import ctypes, sys, threading
def stay():
    print("ready", flush=True)
    threading.Event().wait()
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
"""

# Processes that fork as long as fewer than a limit were made; the count is in memory that they share.
BOMB = """
import mmap, os, select, signal, struct, sys
count, limit = mmap.mmap(-1, 8), int(sys.argv[1])
pause = select.poll()
print("ready", flush=True)
while True:
    made = struct.unpack("q", count[:8])[0]
    if made >= limit:
        signal.pause()
    count[:8] = struct.pack("q", made + 1)
    os.fork()
    pause.poll(1)
"""

TREE = 'sleep 1000 & setsid sleep 1001 & sh -c "sleep 1002 & wait" & echo ready; wait'


def nobody(facts: ProcessFacts) -> str:
    return ""


def context(
    host: LinuxHost, process: HeldProcess | None, protects: Callable[..., str] = nobody, **given: Any
) -> ActContext:
    return ActContext(
        host=host, params=kill.KillParameters(**given), process=process, container=None, protects=protects
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


def wait_descendants(pid: int, host: LinuxHost, count: int) -> tuple[int, ...]:
    await_that(lambda: len(host.descendants(pid)) >= count, f"{count} descendants of {pid}")
    return host.descendants(pid)


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
        assert held.state() == "S"
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
    if os.geteuid() != 0:
        pytest.skip("setting another uid needs root")
    victim = spawn("sleep", "1000", user=65534)
    program = f"""
import sys
from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.spec import ActContext
host = LinuxHost()
held = host.hold({victim.pid})
ctx = ActContext(host=host, params=kill.KillParameters(), process=held, container=None, protects=lambda facts: "")
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


# ---------------------------------------------------------------- tree


async def test_a_tree_dies_with_a_child_that_left_its_session(host: LinuxHost, spawn: Spawn) -> None:
    victim, neighbour = spawn("sh", "-c", TREE), spawn("sleep", "1000")
    assert line(victim) == "ready"
    pids = wait_descendants(victim.pid, host, 4)
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert outcome.verdict is Verdict.DONE
    assert outcome.details["pids"] == sorted({victim.pid, *pids})
    assert outcome.details["count"] == 5
    assert "can't be found" in outcome.details["note"]
    assert not [pid for pid in pids if alive(pid)]
    assert neighbour.poll() is None


@root
@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
async def test_a_tree_in_a_container_leaves_the_rest_of_it_running(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    bystander = spawn("sleep", "1000", preexec_fn=box.enter)
    victim = spawn("sh", "-c", TREE, preexec_fn=box.enter)
    assert line(victim) == "ready"
    pids = wait_descendants(victim.pid, host, 4)
    with host.hold(victim.pid) as held:
        assert (held.facts.container_id, held.facts.pod_uid) == (box.container_id, box.pod_uid)
        outcome = await done(context(host, held, scope="tree"))
    assert (outcome.verdict, outcome.details["count"]) == (Verdict.DONE, 5)
    assert not [pid for pid in pids if alive(pid)]
    await_that(lambda: box.pids() == {bystander.pid}, "only the bystander is left")
    assert not box.is_frozen()


@root
@pytest.mark.parametrize("kind", ["plain", "v2"])
async def test_a_tree_that_forks_meanwhile_dies_whole(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box("v2", name="plain" if kind == "plain" else None)
    victim = spawn(sys.executable, "-c", BOMB, "100", preexec_fn=box.enter)
    assert line(victim) == "ready"
    wait_descendants(victim.pid, host, 8)
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert outcome.verdict is Verdict.DONE
    assert outcome.details["count"] > 8
    await_that(lambda: not box.pids(), "nobody is left")


@root
async def test_a_frozen_container_stays_frozen(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box("v2")
    spawn("sleep", "1000", preexec_fn=box.enter)
    victim = spawn("sh", "-c", "sleep 1000 & echo ready; wait", preexec_fn=box.enter)
    assert line(victim) == "ready"
    wait_descendants(victim.pid, host, 1)
    box.freeze()
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert (outcome.verdict, outcome.details["count"]) == (Verdict.DONE, 2)
    assert box.is_frozen()


@root
@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
async def test_a_container_that_dies_whole_is_thawed_too(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    with host.hold(victim.pid) as held:
        assert (await done(context(host, held, scope="tree"))).verdict is Verdict.DONE
    assert not box.is_frozen()


@root
async def test_whatever_happens_it_is_thawed(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    class Mishap(Exception):
        pass

    def protects(facts: ProcessFacts) -> str:
        assert box.is_frozen()
        raise Mishap

    box = make_box("v2")
    victim = spawn("sh", "-c", "sleep 1000 & echo ready; wait", preexec_fn=box.enter)
    assert line(victim) == "ready"
    wait_descendants(victim.pid, host, 1)
    with host.hold(victim.pid) as held, pytest.raises(Mishap):
        kill.begin(context(host, held, protects, scope="tree"))
    assert not box.is_frozen()
    assert victim.poll() is None


async def test_what_is_protected_in_a_tree_lives_with_all_below_it(host: LinuxHost, spawn: Spawn) -> None:
    victim = spawn("sh", "-c", 'sleep 1000 & sh -c "sleep 1001 & sleep 1002 & wait" & echo ready; wait')
    assert line(victim) == "ready"
    pids = wait_descendants(victim.pid, host, 4)
    spared = next(pid for pid in pids if comm(pid) == "sh")
    below = set(host.descendants(spared))

    def protects(facts: ProcessFacts) -> str:
        return "it is needed" if facts.pid == spared else ""

    try:
        with host.hold(victim.pid) as held:
            outcome = await done(context(host, held, protects, scope="tree"))
        assert outcome.verdict is Verdict.DONE
        assert {entry["pid"]: entry["reason"] for entry in outcome.details["spared"]} == {
            spared: "it is needed",
            **dict.fromkeys(below, "below one that is spared"),
        }
        assert outcome.details["count"] == 2
        assert {state(pid) for pid in (spared, *below)} <= {"S", "R"}  # not stopped
    finally:
        for pid in (*below, spared):
            os.kill(pid, signal.SIGKILL)


async def test_a_tree_gets_another_signal_and_runs_on(host: LinuxHost, spawn: Spawn) -> None:
    loop = "echo ready; while :; do sleep 0.01; done"
    victim = spawn("sh", "-c", f"""trap 'echo parent' USR1; sh -c "trap 'echo child' USR1; {loop}" & {loop}""")
    assert [line(victim), line(victim)] == ["ready", "ready"]
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree", signal="USR1"))
        assert (outcome.verdict, outcome.reason) == (Verdict.DONE, "delivered")
        # Their traps run: they were continued.
        assert {line(victim), line(victim)} == {"parent", "child"}
        assert (await done(context(host, held, scope="tree"))).verdict is Verdict.DONE


@root
async def test_a_tree_too_large_is_a_failure_that_says_so(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box("v2")
    many = f"i=0; while [ $i -lt {MAX_GROUP} ]; do sleep 1000 & i=$((i + 1)); done; echo ready; wait"
    victim = spawn("sh", "-c", many, preexec_fn=box.enter)
    assert line(victim) == "ready"
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert outcome.verdict is Verdict.FAILED
    assert "scope: container" in outcome.reason
    assert len(outcome.details["pids"]) == kill.MAX_PIDS_TOLD


# ---------------------------------------------------------------- session

INIT = 'setsid sleep 1000 & sh -c "sleep 1001 & wait" & wait'


@root
@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
async def test_a_session_dies_with_its_orphans_and_nobody_else(
    kind: str, host: LinuxHost, make_namespaced: MakeNamespaced, make_exec: MakeExec
) -> None:
    inside = make_namespaced(INIT, kind)
    own = {inside.init, *wait_descendants(inside.init, host, 3)}
    _, other = make_exec(inside, "echo ready; sleep 1003; :")
    # `sleep 1004` loses its parent: the container's init takes it. `sleep 1005` lives on below the shell.
    outer, entry = make_exec(inside, "sh -c 'sleep 1004 &'; sleep 1005 & echo ready; wait")
    assert line(outer) == "ready"
    await_that(lambda: len(inside.box.pids()) == len(own) + 5, "all have begun")
    (child,) = host.descendants(entry)
    with host.hold(child) as held:
        outcome = await done(context(host, held, scope="session"))
    assert outcome.verdict is Verdict.DONE
    assert outcome.details["count"] == 3
    assert entry in outcome.details["pids"]
    await_that(lambda: inside.box.pids() == own | {other, *host.descendants(other)}, "the others live")


@root
async def test_an_orphan_leads_to_its_session(
    host: LinuxHost, make_namespaced: MakeNamespaced, make_exec: MakeExec
) -> None:
    inside = make_namespaced("sleep 1000 & wait")
    outer, entry = make_exec(inside, "sh -c 'sleep 1004 & echo $(readlink /proc/self/ns/pid)'; read go")
    line(outer)
    await_that(lambda: len(inside.box.pids()) == 4, "all have begun")
    orphan = (inside.box.pids() - {inside.init, entry} - set(host.descendants(inside.init)[:1])).pop()
    assert orphan in host.descendants(inside.init)
    with host.hold(orphan) as held:
        outcome = await done(context(host, held, scope="session"))
    assert outcome.details["pids"] == sorted((entry, orphan))
    assert alive(inside.init)


@root
async def test_the_container_s_own_processes_are_no_session(host: LinuxHost, make_namespaced: MakeNamespaced) -> None:
    inside = make_namespaced(INIT)
    for pid in (inside.init, *wait_descendants(inside.init, host, 3)):
        with host.hold(pid) as held:
            outcome = await done(context(host, held, scope="session"))
        assert outcome.verdict is Verdict.REFUSED
        assert alive(pid)


async def test_a_process_of_the_host_has_no_session_scope(host: LinuxHost, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    with host.hold(victim.pid) as held:
        for scope in ("session", "container"):
            outcome = await done(context(host, held, scope=scope))
            assert (outcome.verdict, "no container" in outcome.reason) == (Verdict.REFUSED, True)
    assert victim.poll() is None


# ---------------------------------------------------------------- container


@root
@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
async def test_the_whole_container_by_one_of_its_processes(
    kind: str, host: LinuxHost, make_namespaced: MakeNamespaced, make_exec: MakeExec
) -> None:
    inside, neighbour = make_namespaced(INIT, kind), make_namespaced(INIT, kind)
    _, entry = make_exec(inside, "sleep 1003; :")
    with host.hold(entry) as held:
        outcome = await done(context(host, held, scope="container"))
    assert (outcome.verdict, outcome.details["scope"]) == (Verdict.DONE, "container")
    assert outcome.details["container_id"] == inside.box.container_id
    assert not inside.box.pids()
    assert alive(neighbour.init)


@root
async def test_another_signal_for_a_whole_container(host: LinuxHost, make_namespaced: MakeNamespaced) -> None:
    inside = make_namespaced("sleep 1000 & sleep 1001 & wait")
    first = wait_descendants(inside.init, host, 2)[0]
    with host.hold(first) as held:
        outcome = await done(context(host, held, scope="container", signal="STOP"))
        assert (outcome.verdict, outcome.details["count"]) == (Verdict.DONE, 3)
        await_that(lambda: held.state() == "T", "stopped")


# ---------------------------------------------------------------- pids given anew

# Starts `sleep` under the pid that a line of its input names (clone3(2), set_tid).
RESPAWN = """
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
child = 0
for line in sys.stdin:
    wanted = int(line)
    tids = ctypes.c_int(wanted)
    args = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    child = libc.syscall(435, args, len(args))
    if child == 0:
        os.execlp("sleep", "sleep", "1000")
    print(child if child > 0 else -ctypes.get_errno(), flush=True)
if child > 0:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.fixture
def respawn(spawn: Spawn) -> Iterator[Callable[[int], None]]:
    """Start `sleep` under a pid that has just become free."""
    program = spawn(sys.executable, "-c", RESPAWN)
    assert line(program) == "ready"

    def start(pid: int) -> None:
        say(program, str(pid))
        got = int(line(program))
        if got == -1:
            pytest.skip("clone3 with set_tid is not permitted here")
        assert got == pid

    yield start
    assert program.stdin is not None
    program.stdin.close()
    program.wait(PATIENCE_S)


@root
async def test_a_newcomer_with_the_same_pid_lives(
    host: LinuxHost, spawn: Spawn, respawn: Callable[[int], None]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("choosing a pid needs root")
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
