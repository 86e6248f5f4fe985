"""Which exec a process belongs to, on tables written by hand."""

from __future__ import annotations

import pytest

from agent.node.session import Member, entry_of, init_of
from stoop.errors import TargetRefused

SHIM = Member(50, 1, 50, 5, (50,), "containerd-shim")
TEST = Member(60, 1, 60, 6, (60,), "python")
PAUSE = Member(70, 50, 70, 7, (70, 1), "pause")


def table(*members: Member) -> dict[int, Member]:
    return {member.pid: member for member in members}


def at(pid: int, ppid: int, sid: int, inner: int | None = None, comm: str = "x") -> Member:
    """A process; `inner`: its number in the container's pid namespace, None when it has the node's."""
    return Member(pid, ppid, sid, pid, (pid,) if inner is None else (pid, inner), comm)


OWN_NAMESPACE = table(
    at(100, 50, 100, 1),  # init
    at(101, 100, 100, 2),  # its child
    at(102, 101, 102, 3),  # a daemon of it, in a session of its own
    at(200, 50, 200, 10),  # an exec
    at(201, 200, 200, 11),
    at(202, 201, 202, 12),  # left the session, still below
    at(203, 100, 200, 13),  # an orphan of the session
    at(204, 203, 204, 14),  # below the orphan
    at(300, 50, 300, 20),  # another exec
    at(301, 300, 300, 21),
)
OUTSIDE = table(SHIM)


@pytest.mark.parametrize("pid", [200, 201, 202, 203, 204])
def test_all_of_an_exec_lead_to_it_and_to_each_other(pid: int) -> None:
    assert entry_of(pid, OWN_NAMESPACE, OUTSIDE) == (200, (200, 201, 202, 203, 204))


@pytest.mark.parametrize("pid", [300, 301])
def test_the_other_exec_is_apart(pid: int) -> None:
    assert entry_of(pid, OWN_NAMESPACE, OUTSIDE) == (300, (300, 301))


@pytest.mark.parametrize(("pid", "reason"), [(100, "container's init"), (101, "own processes"), (102, "own processes")])
def test_the_init_s_tree_belongs_to_none(pid: int, reason: str) -> None:
    with pytest.raises(TargetRefused, match=reason):
        entry_of(pid, OWN_NAMESPACE, OUTSIDE)


def test_an_orphan_of_an_exec_that_has_ended_can_t_be_told_from_a_daemon() -> None:
    left = {pid: member for pid, member in OWN_NAMESPACE.items() if pid not in (200, 201, 202)}
    with pytest.raises(TargetRefused, match="an exec that has ended"):
        entry_of(203, left, OUTSIDE)


def test_a_process_that_has_gone() -> None:
    with pytest.raises(TargetRefused, match="not in the container any more"):
        entry_of(999, OWN_NAMESPACE, OUTSIDE)


def test_a_pod_with_one_pid_namespace() -> None:
    # Orphans go to the pause container's process, which is in another container.
    members = table(
        at(100, 50, 100, 10),  # the container's first process
        at(101, 70, 101, 11),  # an orphan of it
        at(200, 50, 200, 20),  # an exec
        at(201, 70, 200, 21),  # an orphan of that
    )
    outside = table(SHIM, PAUSE)
    assert init_of(members) == 100
    assert entry_of(201, members, outside) == (200, (200, 201))
    with pytest.raises(TargetRefused, match="own processes"):
        entry_of(101, members, outside)


def test_with_the_node_s_pid_namespace_an_exec_is_no_different_from_an_orphan() -> None:
    members = table(at(100, 50, 100), at(101, 100, 100), at(200, 50, 200), at(201, 200, 200))
    with pytest.raises(TargetRefused, match="shares the node's pid namespace"):
        entry_of(201, members, OUTSIDE)


def test_a_parent_that_takes_no_orphans_did_start_it() -> None:
    members = table(at(100, 60, 100), at(101, 100, 100), at(200, 60, 200), at(201, 200, 200), at(202, 100, 200))
    assert entry_of(201, members, table(TEST)) == (200, (200, 201, 202))
    with pytest.raises(TargetRefused, match="own processes"):
        entry_of(101, members, table(TEST))


def test_the_init_s_session_proves_nothing() -> None:
    # All started from one shell: an orphan with its session may be anybody's.
    members = table(at(100, 60, 9), at(101, 100, 9), at(200, 60, 9), at(201, 200, 9))
    assert entry_of(201, members, table(TEST)) == (200, (200, 201))
    with pytest.raises(TargetRefused, match="own processes"):
        entry_of(101, members, table(TEST))


def test_a_session_that_two_execs_share() -> None:
    members = table(at(100, 60, 100), at(200, 60, 9), at(300, 60, 9), at(301, 100, 9))
    with pytest.raises(TargetRefused, match="several execs"):
        entry_of(301, members, table(TEST))
    assert entry_of(200, members, table(TEST)) == (200, (200,))


def test_a_session_led_from_elsewhere_has_no_number() -> None:
    members = table(at(100, 50, 100, 1), at(200, 50, 0, 10), at(201, 100, 0, 11))
    with pytest.raises(TargetRefused, match="own processes"):
        entry_of(201, members, OUTSIDE)


def test_the_init_is_the_first_of_the_outermost_namespace() -> None:
    nested = Member(90, 101, 90, 90, (90, 5, 1), "systemd")
    assert init_of(OWN_NAMESPACE | {90: nested}) == 100
    assert init_of(table(at(102, 50, 1), at(101, 50, 1))) == 101
    assert init_of({}) == 0


def test_a_ring_of_parents_ends() -> None:
    members = table(at(100, 50, 100, 1), at(101, 102, 101, 2), at(102, 101, 102, 3))
    with pytest.raises(TargetRefused):
        entry_of(101, members, OUTSIDE)
