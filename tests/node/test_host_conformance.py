"""What every NodeHost does: the real one, and the fake that the responder's tests stand on, pass the same tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import msgspec
import pytest
import trio
import trio.testing

from agent.node.host import LinuxHost
from stoop.errors import TargetGone, TargetRefused
from stoop.node import ContainerFacts, HeldProcess
from tests.node.worlds import PATIENCE_S, FakeWorld, LinuxWorld, World
from tests.real.conftest import v2_mount

REAL = pytest.param("linux", marks=pytest.mark.real)
IN_CGROUPS = pytest.param(
    "linux",
    marks=[
        pytest.mark.real,
        pytest.mark.root,
        pytest.mark.skipif(os.geteuid() != 0 or v2_mount() is None, reason="needs root, to make cgroups v2"),
    ],
)

every_host = pytest.mark.parametrize("world", ["fake", REAL], indirect=True)
every_host_with_containers = pytest.mark.parametrize("world", ["fake", IN_CGROUPS], indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    machine = LinuxWorld(LinuxHost(), request.getfixturevalue("spawn"), request.getfixturevalue("make_box"))
    yield machine
    machine.close()


@pytest.fixture
def held(world: World) -> Iterator[HeldProcess]:
    """A process that was taken hold of."""
    it = world.host.hold(world.process())
    yield it
    it.close()


# ---------------------------------------------------------------- one process


@every_host
def test_the_facts_are_of_the_process_that_was_asked_for(world: World) -> None:
    first, second = world.process(), world.process()
    one, again, other = (world.host.hold(pid) for pid in (first, first, second))
    assert (one.facts.pid, other.facts.pid) == (first, second)
    assert one.facts.identity == again.facts.identity != other.facts.identity
    assert one.facts.birth != other.facts.birth
    assert one.facts.boot_id == other.facts.boot_id != ""
    assert one.facts.exe
    assert one.facts.comm
    assert not one.facts.kernel_thread
    assert one.facts.cgroups
    for it in (one, again, other):
        it.close()


@every_host
def test_it_began_before_now_and_the_precise_start_does_not_contradict_the_other(
    world: World, held: HeldProcess
) -> None:
    facts = held.facts
    start_ns, slack_ns = world.host.precise_start(facts)
    # Each is an interval that the true start is in: so they overlap.
    assert start_ns <= facts.start_ns + facts.start_slack_ns
    assert facts.start_ns <= start_ns + slack_ns
    assert start_ns <= world.now_ns
    assert slack_ns >= 0


@every_host
def test_more_facts_are_of_the_same_process(world: World, held: HeldProcess) -> None:
    more = world.host.more_facts(held.facts)
    assert (more.identity, more.start_ns, more.container_id) == (
        held.facts.identity,
        held.facts.start_ns,
        held.facts.container_id,
    )
    assert more.pid_ns > 0


@every_host
async def test_held_once_more_it_is_the_same_and_let_go_by_itself(world: World, held: HeldProcess) -> None:
    more = held.again()
    assert more.facts == held.facts
    more.close()
    assert not held.has_exited()
    last = held.again()
    assert held.signal(signal.SIGKILL) is True
    with trio.fail_after(PATIENCE_S):
        await last.wait_exited()
    assert last.has_exited()
    last.close()


@every_host
@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_what_is_no_target_is_never_held(world: World, pid: int) -> None:
    with pytest.raises(TargetRefused):
        world.host.hold(pid)


@every_host
def test_what_has_ended_can_not_be_held(world: World) -> None:
    pid = world.process()
    world.end(pid)
    with pytest.raises(TargetGone):
        world.host.hold(pid)


@every_host
async def test_a_signal_ends_it_and_then_there_is_none_to_take_another(world: World, held: HeldProcess) -> None:
    assert held.state() not in ("X", "Z")
    assert not held.has_exited()
    assert held.signal(signal.SIGKILL) is True
    with trio.fail_after(PATIENCE_S):
        await held.wait_exited()
    assert held.has_exited()
    assert held.state() == "X"
    assert held.signal(signal.SIGKILL) is False
    with trio.fail_after(PATIENCE_S):
        await held.wait_exited()  # at once, as often as one asks


@every_host
async def test_whoever_waits_waits_until_it_ends(world: World, held: HeldProcess, nursery: trio.Nursery) -> None:
    ended = trio.Event()

    async def wait() -> None:
        await held.wait_exited()
        ended.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not ended.is_set()
    world.end(held.facts.pid)
    with trio.fail_after(PATIENCE_S):
        await ended.wait()


@every_host
def test_letting_go_twice_is_letting_go_once(world: World) -> None:
    pid = world.process()
    one, other = world.host.hold(pid), world.host.hold(pid)
    one.close()
    one.close()
    assert other.signal(signal.SIGKILL) is True  # the other hold is its own
    other.close()


@every_host
async def test_what_is_held_is_remembered_after_it_ended(world: World, held: HeldProcess) -> None:
    facts = held.facts
    world.end(facts.pid)
    with trio.fail_after(PATIENCE_S):
        await held.wait_exited()
    assert held.facts == facts
    assert world.host.more_facts(facts).identity == facts.identity


# ---------------------------------------------------------------- families


@every_host
def test_descendants_are_told_parents_first(world: World) -> None:
    top, middle, last = world.tree()
    assert world.host.descendants(top) == (middle, last)
    assert world.host.descendants(middle) == (last,)
    assert world.host.descendants(last) == ()
    assert [world.host.children(pid) for pid in (top, middle, last)] == [(middle,), (last,), ()]


@every_host
def test_what_has_ended_has_no_descendants(world: World) -> None:
    pid = world.process()
    world.end(pid)
    assert world.host.descendants(pid) == ()
    assert world.host.children(pid) == ()


@every_host
def test_a_process_of_the_node_belongs_to_no_exec(world: World, held: HeldProcess) -> None:
    with pytest.raises(TargetRefused):
        world.host.session_entry(held.facts)


# ---------------------------------------------------------------- containers


def found(world: World) -> tuple[ContainerFacts, int]:
    container_id, pid = world.contained()
    return world.host.find_container(container_id), pid


@every_host_with_containers
def test_a_container_is_found_by_the_beginning_of_its_id(world: World) -> None:
    container_id, pid = world.contained()
    by_id, by_prefix = (world.host.find_container(part) for part in (container_id, container_id[:12]))
    assert by_id == by_prefix
    assert (by_id.container_id, by_id.members) == (container_id, (pid,))
    assert (by_id.init_pid, by_id.cgroup_v2 != "") == (pid, True)
    held = world.host.hold(pid)
    assert held.facts.container_id == container_id
    assert by_id.boot_id == held.facts.boot_id
    held.close()


@every_host
def test_a_container_that_is_not_there_is_gone(world: World) -> None:
    with pytest.raises(TargetGone):
        world.host.find_container("0123456789ab" + "f" * 52)


@every_host_with_containers
def test_whose_container_it_is_is_never_an_error(world: World) -> None:
    container, pid = found(world)
    for pod_uid in (container.pod_uid, "", "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"):
        pod = world.host.pod_of(container.container_id, pod_uid)
        assert (pod.container_id, pod.uid.value) == (container.container_id, pod_uid)
        assert pod.namespace.value == pod.name.value == pod.sandbox_id == ""
        assert pod.in_pod is (True if pod_uid else None)
        assert pod.why
    world.end(pid)
    assert world.host.pod_of(container.container_id, container.pod_uid).name.value == ""
    assert world.host.pod_of("f" * 64, "").in_pod is None


@every_host_with_containers
def test_the_namespaces_of_a_container_are_those_of_its_first_process(world: World) -> None:
    container, pid = found(world)
    with_process = world.host.hold(pid)
    facts = world.host.namespaces_of(container, with_process.facts)
    assert (facts.init_pid, facts.holder_pid, facts.sandbox_id) == (pid, pid, "")
    assert facts.mnt == with_process.facts.mnt_ns
    assert facts.pod_net == facts.net != 0
    assert facts.elsewhere == ()
    assert container.container_id not in facts.shared_with  # others on the machine may share its network
    assert facts.host_net
    with_process.close()
    world.end(pid)
    with pytest.raises(TargetGone):
        world.host.namespaces_of(container)


@every_host_with_containers
def test_a_container_of_no_pod_is_alone(world: World) -> None:
    """Never none: who captures of no container in particular captures of all."""
    container, _ = found(world)
    assert world.host.pod_containers(msgspec.structs.replace(container, pod_uid="")) == (container.container_id,)


@every_host_with_containers
async def test_a_killed_container_is_empty_and_what_is_outside_lives(world: World) -> None:
    container, pid = found(world)
    outside = world.host.hold(world.process())
    inside = world.host.hold(pid)
    world.host.kill_container(container)
    with trio.fail_after(PATIENCE_S):
        await world.host.wait_container_empty(container)
        await inside.wait_exited()
    assert world.host.container_members(container) == ()
    assert not outside.has_exited()
    inside.close()
    outside.close()


@every_host_with_containers
def test_freezing_and_thawing_tell_whether_they_changed_something(world: World) -> None:
    container, _ = found(world)
    assert world.host.freeze(container, True) is True
    assert world.host.freeze(container, True) is False
    assert world.host.freeze(container, False) is True
    assert world.host.freeze(container, False) is False


@every_host_with_containers
async def test_waiting_for_an_empty_container_waits(world: World, nursery: trio.Nursery) -> None:
    container, pid = found(world)
    empty = trio.Event()

    async def wait() -> None:
        await world.host.wait_container_empty(container)
        empty.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not empty.is_set()
    world.end(pid)
    with trio.fail_after(PATIENCE_S):
        await empty.wait()
