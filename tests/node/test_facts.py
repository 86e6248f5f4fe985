"""The facts of a process are the same, whichever way they are read."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator

import msgspec
import pytest

from agent.node.facts import Facts
from agent.node.held import has_pidfs
from agent.node.host import PID_MAX, LinuxHost
from agent.node.procfs import TICK_NS, Procfs
from agent.node.taskstats import Taskstats
from stoop.errors import TargetGone, TargetRefused


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    made = LinuxHost()
    yield made
    made.close()


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        assert process.stdout.readline() == b"ready\n"  # so it has its name, which an exec sets last
        yield process.pid


def test_both_ways_tell_the_same(pid: int) -> None:
    taskstats = Taskstats()
    facts = Facts(Procfs("/proc"), taskstats)
    with open(os.pidfd_open(pid), closefd=True) as pidfd:
        whole = facts._read_whole(pid, pidfd.fileno())
        read = facts.read(pid, pidfd.fileno())
    taskstats.close()
    assert (whole.ppid, whole.comm, whole.uid) == (os.getpid(), "cat", os.getuid())
    same = {"start_ns": 0, "start_slack_ns": 0}
    assert msgspec.structs.replace(whole, **same) == msgspec.structs.replace(read, **same)
    assert whole.start_ns <= read.start_ns + read.start_slack_ns
    assert read.start_ns <= whole.start_ns + TICK_NS


def test_more_of_them(host: LinuxHost, pid: int) -> None:
    with host.hold(pid) as held:
        more = host.more_facts(held.facts)
    known = os.stat(f"/proc/{pid}/exe")
    assert (more.exe_dev, more.exe_ino) == (known.st_dev, known.st_ino)
    assert more.ns_pids[0] == pid
    assert more.pid_ns == os.stat(f"/proc/{pid}/ns/pid").st_ino
    assert more.identity == held.facts.identity


def test_an_identity_lasts_as_long_as_the_process(host: LinuxHost, pid: int) -> None:
    with host.hold(pid) as first:
        pass
    with host.hold(pid) as second:
        assert first.facts.identity == second.facts.identity
        assert second.facts.identity.startswith(f"{host.boot_id[:8]}:{pid}:")
    with host.hold(os.getpid()) as ours:
        assert ours.facts.identity != second.facts.identity
    assert isinstance(has_pidfs(), bool)


def test_a_kernel_thread_is_told(host: LinuxHost) -> None:
    if os.geteuid() != 0:
        pytest.skip("reading a kernel thread's namespaces needs root")
    try:
        held = host.hold(2)
    except TargetGone:
        pytest.skip("kthreadd is not seen from this pid namespace")
    with held:
        if held.facts.ppid != 0:
            pytest.skip("pid 2 is no kernel thread here")
        assert held.facts.kernel_thread
        assert held.facts.exe == ""


@pytest.mark.parametrize("number", [-1, 0, 1, PID_MAX + 1, 2**31, 2**63, -(2**63)])
def test_numbers_that_are_no_target(host: LinuxHost, number: int) -> None:
    with pytest.raises(TargetRefused, match="is no target"):
        host.hold(number)


def test_a_thread_is_no_process(host: LinuxHost) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(TargetRefused, match="number of a thread"):
            host.hold(thread.native_id or 0)
    finally:
        stop.set()
        thread.join()


def test_one_that_has_gone_and_a_zombie(host: LinuxHost) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TargetGone, match="already exited"):
        host.hold(process.pid)
    process.wait()
    with pytest.raises(TargetGone, match="no process has that pid"):
        host.hold(process.pid)


def test_without_a_free_descriptor_it_is_refused_and_says_why(host: LinuxHost, pid: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    host.hold(pid).close()
    taken = os.open("/dev/null", os.O_RDONLY)
    try:
        # No room for the pidfd; then room for it, but not for what is read.
        for room in (0, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1 + room, hard))
            with pytest.raises(TargetRefused, match=os.strerror(errno.EMFILE)) as refused:
                host.hold(pid)
            assert "RLIMIT_NOFILE" in refused.value.reason
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)
    host.hold(pid).close()


def test_nothing_stays_open(host: LinuxHost, pid: int) -> None:
    host.hold(pid).close()
    before = len(os.listdir("/proc/self/fd"))
    for number in (pid, 1, 2**63):
        try:
            host.hold(number).close()
        except TargetRefused:
            continue
    assert len(os.listdir("/proc/self/fd")) == before
