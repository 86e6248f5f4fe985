"""process:kill of a tree that is larger than one step gathers, and of one that forks as fast as it can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from agent.node.host import LinuxHost
from stoop.actions.process import kill
from stoop.actions.process.group import MAX_GROUP
from stoop.actions.process.sweep import SWEEP_SECONDS
from stoop.spec import Begun, Verdict
from tests.real.conftest import Box, MakeBox, Spawn, await_that, line, say, v1_mount
from tests.real.test_kill_group import context, done

pytestmark = [pytest.mark.root, pytest.mark.real]

MANY = MAX_GROUP + 88

LARGE = f"i=0; while [ $i -lt {MANY} ]; do sleep 1000 & i=$((i + 1)); done; echo ready; wait"
"""More than are gathered in one step."""

EACH_KIND = pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])


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
