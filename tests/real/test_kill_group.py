"""process:kill for more than one process: a tree, an exec session, a container."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.actions.process.group import MAX_GROUP
from stoop.actions.process.sweep import SWEEP_SECONDS
from stoop.node import HeldProcess, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)
from tests.real.conftest import (
    PATIENCE_S,
    Box,
    MakeBox,
    MakeExec,
    MakeNamespaced,
    Spawn,
    alive,
    await_that,
    line,
    say,
    state,
    v1_mount,
    wait_descendants,
)

pytestmark = pytest.mark.real
root = pytest.mark.root

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
    spared = next(pid for pid in pids if host.descendants(pid))  # by its name it may be one before its exec
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


MANY = MAX_GROUP + 88

LARGE = f"i=0; while [ $i -lt {MANY} ]; do sleep 1000 & i=$((i + 1)); done; echo ready; wait"
"""More than are gathered in one step."""

EACH_KIND = pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])


@root
async def test_a_tree_too_large_for_another_signal_is_a_failure_that_says_so(
    host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box("v2")
    victim = spawn("sh", "-c", LARGE, preexec_fn=box.enter)
    assert line(victim) == "ready"
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree", signal="TERM"))
    assert outcome.verdict is Verdict.FAILED
    assert "scope: container" in outcome.reason
    assert len(outcome.details["pids"]) == kill.MAX_PIDS_TOLD


@root
@EACH_KIND
async def test_a_large_tree_dies_whole_and_the_rest_of_its_container_runs_on(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    beside = spawn("cat", preexec_fn=box.enter)
    victim = spawn("sh", "-c", LARGE, preexec_fn=box.enter)
    assert line(victim) == "ready"
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert outcome.verdict is Verdict.DONE, outcome.reason
    assert outcome.details["count"] == MANY + 1
    assert "unsettled" not in outcome.details
    await_that(lambda: box.pids() == {beside.pid}, "nobody else is left")
    assert not box.is_frozen()
    say(beside, "there?")
    assert line(beside) == "there?"


@root
@pytest.mark.parametrize("kind", ["v2", "v1"])
async def test_a_large_tree_in_a_container_that_somebody_froze_dies_and_the_others_stay_frozen(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    beside = spawn("cat", preexec_fn=box.enter)
    victim = spawn("sh", "-c", LARGE, preexec_fn=box.enter)
    assert line(victim) == "ready"
    box.freeze()
    with host.hold(victim.pid) as held:
        outcome = await done(context(host, held, scope="tree"))
    assert outcome.verdict is Verdict.DONE, outcome.reason
    await_that(lambda: box.pids() == {beside.pid}, "nobody else is left")
    assert box.is_frozen()


@root
@EACH_KIND
async def test_given_up_amid_a_large_tree_whoever_is_held_dies_and_the_rest_runs_on(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    beside = spawn("cat", preexec_fn=box.enter)
    victim = spawn("sh", "-c", LARGE, preexec_fn=box.enter)
    assert line(victim) == "ready"
    with host.hold(victim.pid) as held:
        ctx = context(host, held, scope="tree")
        begun = kill.begin(ctx)
        assert isinstance(begun, Begun)
        assert (begun.acted, box.is_frozen(), held.has_exited()) == (False, True, False)
        with trio.CancelScope() as scope:
            scope.cancel()
            await kill.verify(ctx, begun)
        assert scope.cancelled_caught
        outcome = kill.overdue(ctx, begun)
        assert outcome.verdict is Verdict.FAILED
        assert outcome.reason.startswith("a tree of ")
        assert MAX_GROUP <= len(begun.held[0].group.members) < MANY
        for each in (*begun.held, *begun.held):  # twice is harmless
            each.close()
        await held.wait_exited()
    assert not box.is_frozen()
    await_that(lambda: len(box.pids()) <= 1 + MANY - MAX_GROUP, "all that were held are dead")
    say(beside, "there?")
    assert line(beside) == "there?"


STORM = "print STDOUT qq(ready\n); STDOUT->flush; while (1) { defined(fork) or select(undef, undef, undef, 0.01) }"
"""Each forks for ever, and rests only while the cgroup is full."""

STORMING = 1000


@pytest.fixture
def bounded(make_box: MakeBox) -> Iterator[Box]:
    """A cgroup that no runtime made and no container is in, with room for STORMING processes."""
    pids = v1_mount("pids")
    if pids is None:
        pytest.skip("no pids controller of cgroup v1 is mounted here: a fork storm could not be bounded")
    made = make_box("v2", name="storm")
    directory = pids / f"stoop-test-{os.getpid()}-storm"
    directory.mkdir()
    (directory / "pids.max").write_text(str(STORMING))
    box = Box("", "", made.v2, directory)
    yield box
    assert made.v2 is not None
    (made.v2 / "cgroup.kill").write_text("1")
    await_that(lambda: not box.pids(), "the storm is over")
    await_that(partial(_gone, directory), f"{directory} is removed")


def _gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False
    return True


@root
async def test_a_fork_storm_on_the_host_is_ended_by_a_kill_of_its_tree(
    host: LinuxHost, spawn: Spawn, bounded: Box
) -> None:
    beside = spawn("sleep", "1000", preexec_fn=bounded.enter)
    victim = spawn("perl", "-MIO::Handle", "-e", STORM, preexec_fn=bounded.enter)
    await_that(lambda: len(bounded.pids()) >= STORMING - 10, f"{STORMING} processes")
    with host.hold(victim.pid) as held:
        ctx = context(host, held, scope="tree")
        begun = kill.begin(ctx)
        assert isinstance(begun, Begun)
        assert begun.deadline_s == SWEEP_SECONDS
        with trio.fail_after(SWEEP_SECONDS):
            outcome = await kill.verify(ctx, begun)
    assert outcome.verdict is Verdict.DONE, outcome.reason
    assert outcome.details["count"] >= STORMING - 10
    await_that(lambda: bounded.pids() == {beside.pid}, "nobody else is left")


async def test_overdue_tells_of_each_that_lives_on(host: LinuxHost, spawn: Spawn) -> None:
    deaf = spawn("sh", "-c", 'trap "" TERM; sleep 1000 & echo ready; wait')
    assert line(deaf) == "ready"
    (child,) = wait_descendants(deaf.pid, host, 1)
    with host.hold(deaf.pid) as held:
        ctx = context(host, held, signal="TERM", scope="tree")
        begun = kill.begin(ctx)
        assert isinstance(begun, Begun)
        await_that(lambda: {state(deaf.pid), state(child)} == {"S"}, "both run on")
        outcome = kill.overdue(ctx, begun)
        assert outcome.reason == f"signalled, 2 of 2 live on: pid {deaf.pid} state S, pid {child} state S"
        assert (await done(context(host, held, scope="tree"))).verdict is Verdict.DONE
        assert (await kill.verify(ctx, begun)).verdict is Verdict.DONE


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
