"""Who is the agent's and who is Falco's, on a node of values."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.node.host import LinuxHost
from agent.own import MAX_ANCESTORS, MAX_SENDERS, ROOT_PID_NAMESPACE, Own
from stoop.errors import TargetGone, TargetRefused
from stoop.testing_node import BOOT_ID, FakeHost

ME = os.getpid()
# Numbers that this very process can't have.
SERVICE, SHIM, FALCO, SIDEKICK = (ME + number for number in (1, 2, 3, 4))


def node() -> FakeHost:
    """The agent, started by a service manager's child; Falco in a container, its sidekick beside it."""
    host = FakeHost()
    host.add(SERVICE, ppid=1)
    host.add(ME, ppid=SERVICE, cgroups=(("", "/system.slice/stoop.service"),))
    host.add(SHIM, ppid=1, cgroups=(("", "/system.slice/containerd.service"),))
    host.add_in_container(FALCO, "f" * 64, ppid=SHIM)
    host.add_in_container(SIDEKICK, "f" * 64, ppid=FALCO)
    return host


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Inside every descriptor that this process may have is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_agent_and_its_parents_are_its_own_without_init() -> None:
    host = node()
    facts = Own(host, BOOT_ID).facts
    assert facts.own_pids == {ME, SERVICE}
    assert facts.own_cgroups == {"/system.slice/stoop.service"}
    assert facts.boot_id == BOOT_ID
    assert not host.open_holds


def test_the_namespaces_are_those_of_this_process() -> None:
    facts = Own(node(), BOOT_ID).facts
    inode = os.stat("/proc/self/ns/pid").st_ino
    assert facts.pid_ns == inode
    assert facts.pid_ns_is_root is (inode == ROOT_PID_NAMESPACE)
    assert facts.mnt_ns


def test_the_agent_protects_itself_even_if_it_can_t_look_at_itself() -> None:
    host = node()
    host.refusals[ME] = TargetRefused("not permitted")
    facts = Own(host, BOOT_ID).facts
    assert facts.own_pids == {ME}
    assert facts.own_cgroups == frozenset()


def test_the_root_cgroup_is_nobody_s_own() -> None:
    host = node()
    host.add(ME, ppid=SERVICE, cgroups=(("", "/"),))
    assert Own(host, BOOT_ID).facts.own_cgroups == frozenset()


def test_the_helper_of_now_is_the_agent_s_own() -> None:
    own = Own(node(), BOOT_ID)
    own.helper(70)
    assert 70 in own.facts.own_pids
    own.helper(71)
    assert own.facts.own_pids == {ME, SERVICE, 71}
    own.helper(0)
    assert own.facts.own_pids == {ME, SERVICE}


def test_the_pacemaker_of_now_is_the_agent_s_own_beside_the_helper() -> None:
    own = Own(node(), BOOT_ID)
    own.helper(70)
    own.pacemaker(80)
    assert own.facts.own_pids == {ME, SERVICE, 70, 80}
    own.pacemaker(0)
    assert own.facts.own_pids == {ME, SERVICE, 70}


def test_a_chain_of_parents_that_never_ends_is_cut() -> None:
    host = node()
    first = ME + 100
    for pid in range(first, first + 2 * MAX_ANCESTORS):
        host.add(pid, ppid=pid + 1)
    own = Own(host, BOOT_ID)
    own.sender(first)
    assert own.facts.falco_pids == set(range(first, first + MAX_ANCESTORS))


class TestSenders:
    def test_a_sender_his_parents_and_his_container_are_falco_s(self) -> None:
        host = node()
        own = Own(host, BOOT_ID)
        own.sender(SIDEKICK)
        assert own.facts.falco_pids == {SIDEKICK, FALCO, SHIM}
        assert own.facts.falco_cgroups == {f"/pods/{'f' * 64}"}
        assert own.facts.own_pids == {ME, SERVICE}
        assert not host.open_holds

    def test_it_is_over_when_he_has_gone(self) -> None:
        own = Own(node(), BOOT_ID)
        own.sender(SIDEKICK)
        own.sender_gone(SIDEKICK)
        own.sender_gone(SIDEKICK)
        assert not own.facts.falco_pids
        assert not own.facts.falco_cgroups

    def test_one_sender_goes_and_what_another_stands_for_stays(self) -> None:
        own = Own(node(), BOOT_ID)
        own.sender(SIDEKICK)
        own.sender(FALCO)
        own.sender_gone(SIDEKICK)
        assert own.facts.falco_pids == {FALCO, SHIM}
        assert own.facts.falco_cgroups == {f"/pods/{'f' * 64}"}

    @pytest.mark.parametrize("pid", [0, 1, -1])
    def test_a_pid_that_is_no_sender_s_is_ignored(self, pid: int) -> None:
        host = node()
        own = Own(host, BOOT_ID)
        before = list(host.held)
        own.sender(pid)
        assert not own.facts.falco_pids
        assert host.held == before

    def test_one_who_has_ended_already(self) -> None:
        own = Own(node(), BOOT_ID)
        own.sender(ME + 50)
        assert not own.facts.falco_pids

    def test_one_who_can_not_be_looked_at_is_protected_by_his_number_until_he_can(self) -> None:
        host = node()
        host.refusals[SIDEKICK] = TargetRefused("no descriptor left")
        own = Own(host, BOOT_ID)
        own.sender(SIDEKICK)
        own.sender(SIDEKICK)
        own.look_again()
        assert own.facts.falco_pids == {SIDEKICK}
        assert not own.facts.falco_cgroups
        del host.refusals[SIDEKICK]
        own.look_again()
        assert own.facts.falco_pids == {SIDEKICK, FALCO, SHIM}
        assert own.facts.falco_cgroups == {f"/pods/{'f' * 64}"}
        before = own.facts
        own.look_again()
        assert own.facts is before

    @pytest.mark.parametrize("ends", [True, False])
    def test_one_who_was_never_looked_at_and_ends_or_disconnects(self, ends: bool) -> None:
        host = node()
        host.refusals[SIDEKICK] = TargetRefused("no descriptor left")
        own = Own(host, BOOT_ID)
        own.sender(SIDEKICK)
        if ends:
            host.refusals[SIDEKICK] = TargetGone("already exited")
            own.look_again()
        else:
            own.sender_gone(SIDEKICK)
            del host.refusals[SIDEKICK]
            own.look_again()
        assert not own.facts.falco_pids

    @pytest.mark.parametrize("kept_back", [True, False])
    def test_with_no_descriptor_left_the_reserve_is_enough(self, kept_back: bool) -> None:
        argv = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with (
            contextlib.closing(LinuxHost()) as host,
            subprocess.Popen(argv, stdin=subprocess.PIPE) as sender,
        ):
            own = Own(host, BOOT_ID)
            if kept_back:
                own.reserve.fill()
            with no_descriptors():
                own.sender(sender.pid)
                own.look_again()
                first = own.facts.falco_pids
            own.look_again()
            assert own.facts.falco_pids >= {sender.pid, ME}
            own.reserve.close()
        assert first == (own.facts.falco_pids if kept_back else {sender.pid})

    def test_no_more_than_so_many_are_remembered(self) -> None:
        host = node()
        own = Own(host, BOOT_ID)
        first = ME + 100
        for pid in range(first, first + MAX_SENDERS + 1):
            host.add(pid)
            own.sender(pid)
        assert own.facts.falco_pids == set(range(first + 1, first + MAX_SENDERS + 1))

    def test_facts_are_rebuilt_only_when_somebody_comes_or_goes(self) -> None:
        own = Own(node(), BOOT_ID)
        own.sender(SIDEKICK)
        before = own.facts
        own.sender(SIDEKICK)
        own.sender_gone(ME + 60)
        assert own.facts is before


class TestCgroups:
    @pytest.mark.parametrize(
        ("path", "is_falcos"),
        [
            ("/system.slice/falco.service", True),
            ("/user.slice/user-0.slice/session-4.scope", False),
            ("/", False),
            ("/system.slice/stoop.service", False),  # shared with the agent
        ],
    )
    def test_of_the_host_only_a_service_of_its_own_stands_for_falco(self, path: str, is_falcos: bool) -> None:
        host = node()
        host.add(ME + 10, ppid=1, cgroups=(("", path),))
        own = Own(host, BOOT_ID)
        own.sender(ME + 10)
        assert own.facts.falco_cgroups == ({path} if is_falcos else set())
        assert own.facts.falco_pids == {ME + 10}

    def test_a_container_shared_with_the_agent_does_not(self) -> None:
        host = node()
        shared = f"/pods/{'f' * 64}"
        host.add_in_container(ME, "f" * 64, ppid=SERVICE)
        own = Own(host, BOOT_ID)
        own.sender(FALCO)
        assert own.facts.falco_cgroups == frozenset()
        assert own.facts.own_cgroups == {shared}
