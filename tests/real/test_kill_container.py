"""container:kill on real cgroups: v2, v1, and v2 beside v1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.node import cgroup
from agent.node.cgroup import Cgroups
from agent.node.containers import Containers
from agent.node.host import LinuxHost
from agent.node.procfs import Procfs
from stoop.actions.container import kill
from stoop.errors import TargetGone, TargetRefused
from stoop.node import ContainerFacts, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)
from tests.real.conftest import (
    CGROUP_ROOT,
    PATIENCE_S,
    Box,
    MakeBox,
    MakeExec,
    MakeNamespaced,
    Spawn,
    alive,
    await_that,
    line,
    state,
)

pytestmark = [pytest.mark.real, pytest.mark.root]

EACH_KIND = pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])

BOMB = """
import os, select
pause = select.poll()
print("ready", flush=True)
for _ in range(8):
    os.fork()
    pause.poll(2)
pause.poll()
"""


def context(host: LinuxHost, container: ContainerFacts | None, protected: str = "") -> ActContext:
    def protects(facts: ProcessFacts) -> str:
        return protected

    return ActContext(
        host=host,
        params=None,
        process=None,
        container=container,
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


# ---------------------------------------------------------------- who dies


@EACH_KIND
async def test_all_of_it_dies_and_the_neighbour_lives(
    kind: str, host: LinuxHost, make_namespaced: MakeNamespaced, make_exec: MakeExec
) -> None:
    script = "setsid sleep 1000 & sh -c 'sleep 1001 &'; wait"
    inside, neighbour = make_namespaced(script, kind), make_namespaced(script, kind)
    make_exec(inside, "sleep 1003; :")
    await_that(lambda: len(inside.box.pids()) >= 5, "all have begun")
    container = host.find_container(inside.box.container_id[:12])
    assert (container.container_id, container.pod_uid) == (inside.box.container_id, inside.box.pod_uid)
    assert container.init_pid == inside.init
    assert set(container.members) == inside.box.pids()
    outcome = await done(context(host, container))
    assert (outcome.verdict, outcome.details["count"]) == (Verdict.DONE, len(container.members))
    assert not inside.box.pids()
    assert alive(neighbour.init)
    assert not inside.box.is_frozen()


@EACH_KIND
async def test_what_it_put_into_cgroups_below_its_own_dies_too(
    kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box(kind)
    below = Box(box.container_id, box.pod_uid, box.v2 and box.v2 / "a/b", box.freezer and box.freezer / "a/b")
    for directory in below.directories:
        directory.mkdir(parents=True)
    victim, hidden = spawn("sleep", "1000", preexec_fn=box.enter), spawn("sleep", "1000", preexec_fn=below.enter)
    container = host.find_container(box.container_id)
    assert set(container.members) == {victim.pid, hidden.pid}
    assert (await done(context(host, container))).verdict is Verdict.DONE
    assert [victim.wait(PATIENCE_S), hidden.wait(PATIENCE_S)] == [-9, -9]


@EACH_KIND
async def test_one_that_forks_meanwhile_dies_whole(kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box(kind)
    assert line(spawn(sys.executable, "-c", BOMB, preexec_fn=box.enter)) == "ready"
    await_that(lambda: len(box.pids()) >= 16, "they fork")
    outcome = await done(context(host, host.find_container(box.container_id)))
    assert outcome.verdict is Verdict.DONE
    assert not box.pids()


@EACH_KIND
async def test_a_paused_one_dies(kind: str, host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box(kind)
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    box.freeze()
    assert (await done(context(host, host.find_container(box.container_id)))).verdict is Verdict.DONE
    assert victim.wait(PATIENCE_S) == -9


async def test_where_v2_has_the_directory_but_not_the_processes(
    host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box("hybrid")
    only_v1 = Box(box.container_id, box.pod_uid, None, box.freezer)
    victim = spawn("sleep", "1000", preexec_fn=only_v1.enter)
    container = host.find_container(box.container_id)
    assert container.cgroup_v2
    assert container.init_pid == victim.pid
    assert (await done(context(host, container))).verdict is Verdict.DONE
    assert victim.wait(PATIENCE_S) == -9


class OlderCgroups(Cgroups):
    """Those of a kernel before 5.14: without `cgroup.kill`."""

    def kill(self, directory: str) -> bool:
        return False


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
@pytest.mark.parametrize("paused", [False, True])
async def test_without_cgroup_kill(kind: str, paused: bool, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box(kind)
    containers = Containers(Procfs("/proc"), OlderCgroups(str(CGROUP_ROOT)))
    assert line(spawn(sys.executable, "-c", BOMB, preexec_fn=box.enter)) == "ready"
    await_that(lambda: len(box.pids()) >= 8, "they fork")
    if paused:
        box.freeze()
    container = containers.find(box.container_id)
    containers.kill(container)
    with trio.fail_after(PATIENCE_S):
        await containers.wait_empty(container)
    containers.index.close()
    assert not box.pids()
    assert not box.is_frozen()


# ---------------------------------------------------------------- who is spared


@EACH_KIND
async def test_never_the_agent_s_own_cgroup_nor_one_above_it(kind: str, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box(kind)
    below = Box(box.container_id, box.pod_uid, box.v2 and box.v2 / "a", box.freezer and box.freezer / "a")
    for directory in below.directories:
        directory.mkdir()
    program = """
import sys
from agent.node import cgroup
from agent.node.cgroup import Cgroups
from agent.node.containers import Containers
from agent.node.host import LinuxHost
from agent.node.procfs import Procfs
from stoop.errors import TargetRefused
host = LinuxHost()
container = host.find_container(sys.argv[1])
for act in (host.kill_container, lambda container: host.freeze(container, True)):
    try:
        act(container)
    except TargetRefused as error:
        print(error.reason, flush=True)
"""
    agent = spawn(sys.executable, "-c", program, box.container_id, preexec_fn=below.enter)
    assert [line(agent), line(agent)] == ["the agent itself is in that cgroup"] * 2
    assert agent.wait(PATIENCE_S) == 0


async def test_one_whose_init_is_protected(host: LinuxHost, make_namespaced: MakeNamespaced) -> None:
    inside = make_namespaced("sleep 1000 & wait")
    container = host.find_container(inside.box.container_id)
    outcome = await done(context(host, container, "it is needed"))
    assert outcome == Outcome(Verdict.REFUSED, "the container's init: it is needed")
    assert alive(inside.init)


async def test_none_and_an_empty_one(host: LinuxHost, make_box: MakeBox) -> None:
    assert (await done(context(host, None))).verdict is Verdict.REFUSED
    box = make_box("v2")
    container = host.find_container(box.container_id)
    assert (await done(context(host, container))).verdict is Verdict.SKIPPED


# ---------------------------------------------------------------- verified


async def test_what_comes_in_beside_the_kill_is_killed_too(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box("v2")
    spawn("sleep", "1000", preexec_fn=box.enter)
    ctx = context(host, host.find_container(box.container_id))
    begun = kill.begin(ctx)
    assert isinstance(begun, Begun)
    late = spawn("sleep", "1000", preexec_fn=box.enter)
    with trio.fail_after(PATIENCE_S):
        outcome = await kill.verify(ctx, begun)
    assert outcome.details["killed_again"] == 1
    assert late.wait(PATIENCE_S) == -9


async def test_one_made_anew_under_the_same_name_is_another(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    container = host.find_container(box.container_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.wait_container_empty, container)
        await trio.testing.wait_all_tasks_blocked()
        host.kill_container(container)
        victim.wait(PATIENCE_S)
        await_that(lambda: box.pids() == set(), "empty")
        box.v2.rmdir()
        box.v2.mkdir()
        again = spawn("sleep", "1000", preexec_fn=box.enter)
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE_S
    assert not nursery.cancel_scope.cancelled_caught
    assert again.poll() is None


async def test_overdue_tells_how_many_are_left(host: LinuxHost, make_namespaced: MakeNamespaced) -> None:
    inside = make_namespaced("read more")
    await_that(lambda: state(inside.init) == "S", "it reads")
    container = host.find_container(inside.box.container_id)
    with host.hold(inside.init) as init:
        begun = Begun((kill.HeldContainer(container, init),), {})
        outcome = kill.overdue(context(host, container), begun)
    assert outcome.verdict is Verdict.FAILED
    assert outcome.reason == "killed, yet not empty: 1 left, its init in state S"


# ---------------------------------------------------------------- found


async def test_two_directories_for_one_id_are_a_refusal(host: LinuxHost, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    other = box.v2.parent.parent / f"docker-{box.container_id}.scope"
    other.mkdir()
    with pytest.raises(TargetRefused, match="two cgroups are container"):
        host.find_container(box.container_id[:12])


async def test_a_directory_below_another_container_does_not_count(host: LinuxHost, make_box: MakeBox) -> None:
    victim, liar = make_box("v2"), make_box("v2")
    assert liar.v2 is not None
    (liar.v2 / victim.container_id).mkdir()
    (liar.v2 / "kubepods" / f"pod{victim.pod_uid}" / victim.container_id).mkdir(parents=True)
    assert host.find_container(victim.container_id[:12]).cgroup_v2 == str(victim.v2)


async def test_a_container_can_t_hide_others_by_making_very_many_cgroups(
    host: LinuxHost, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "MAX_INSIDE", 5)
    of_a_pod, victim = make_box("v2"), make_box("v2")
    liar = make_box("v2", f"docker/{'d0' * 32}")  # in no pod: it may be a node of its own
    for box in (of_a_pod, liar):
        assert box.v2 is not None
        for number in range(3):
            (box.v2 / f"a{number}" / "b" / "c" / "d").mkdir(parents=True)
    looked_at = [path for path, _ in cgroup.walk(host._containers._cgroups.v2)]
    assert len([path for path in looked_at if "d0" * 32 in path]) < 12
    assert len([path for path in looked_at if of_a_pod.container_id in path]) == 1
    assert host.find_container(victim.container_id[:12]).container_id == victim.container_id


async def test_more_cgroups_than_are_looked_at_are_a_refusal(
    host: LinuxHost, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box("v2")
    monkeypatch.setattr(cgroup, "MAX_DIRECTORIES", 3)
    with pytest.raises(TargetRefused, match="not searched to the end"):
        host.find_container(box.container_id)


async def test_two_processes_that_put_it_in_two_places_leave_it_to_the_search(
    host: LinuxHost, spawn: Spawn, make_box: MakeBox
) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    other = box.v2.parent.parent / f"docker-{box.container_id}.scope"
    other.mkdir()
    elsewhere = Box(box.container_id, box.pod_uid, other, None)
    first, second = spawn("sleep", "1000", preexec_fn=box.enter), spawn("sleep", "1000", preexec_fn=elsewhere.enter)
    host.hold(first.pid).close()
    assert host.find_container(box.container_id).cgroup_v2 == str(box.v2)
    host.hold(second.pid).close()
    with pytest.raises(TargetRefused, match="two cgroups are container"):
        host.find_container(box.container_id)


async def test_the_place_of_a_process_that_was_held_is_known(host: LinuxHost, spawn: Spawn, make_box: MakeBox) -> None:
    box = make_box("hybrid")
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    searched = host.find_container(box.container_id)
    host.hold(victim.pid).close()
    assert host.find_container(box.container_id[:12]) == searched


@pytest.mark.parametrize("unknown", ["0123456789ab", "f" * 64])
def test_none_of_that_id(host: LinuxHost, unknown: str) -> None:
    with pytest.raises(TargetGone, match="no cgroup is container"):
        host.find_container(unknown)


@pytest.mark.parametrize("wrong", ["", "0123456789a", "0" * 65, "../../../x", "host", "0123456789AB", "web-1234567890"])
def test_what_is_no_id(host: LinuxHost, wrong: str) -> None:
    with pytest.raises(TargetRefused, match="is not a container's id"):
        host.find_container(wrong)


def test_a_machine_without_cgroups(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    host = LinuxHost(cgroup_root=str(tmp_path))
    request.addfinalizer(host.close)
    with pytest.raises(TargetGone):
        host.find_container("f" * 64)
    nothing = ContainerFacts("f" * 64, "", host.boot_id, "", "", os.getpid(), ())
    assert host.container_members(nothing) == ()
    assert not host.freeze(nothing, True)
    with pytest.raises(TargetGone):
        host.kill_container(nothing)
