"""Parsing what /proc says, and asking it about processes of our own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node.procfs import (
    Procfs,
    cgroups_of,
    file_identity,
    namespace_inode,
    parse_cgroups,
    parse_stat,
    parse_status,
    read_file,
    read_list,
)
from stoop.errors import TargetRefused

STAT = b"%d (%b) %b 1 2 3 34816 7 4194304 123 0 0 0 12 3 0 0 20 0 5 0 184180 3 4 " + b"0 " * 28 + b"0\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"sleep", "sleep"),
        (b"a b", "a b"),
        (b"x) R 1 (", "x) R 1 ("),
        (b"tmux: client)", "tmux: client)"),
        (b"line\nbreak", "line\nbreak"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"", ""),
    ],
)
def test_stat_with_any_name(name: bytes, told: str) -> None:
    stat = parse_stat(STAT % (4711, name, b"S"))
    assert stat == (told, "S", 1, 2, 3, 4194304, 5, 184180)
    assert not stat.ended


@given(name=st.binary(max_size=15), state=st.sampled_from([b"R", b"Z", b"X"]))
def test_no_name_can_imitate_a_field(name: bytes, state: bytes) -> None:
    stat = parse_stat(STAT % (4711, name, state))
    assert (stat.state, stat.start_ticks, stat.ended) == (state.decode(), 184180, state != b"R")


def test_status() -> None:
    data = b"Name:\tx\nUmask:\t0022\nTgid:\t42\nPid:\t42\nUid:\t1000\t1001\t0\t0\nNSpid:\t42\t7\t1\nThreads:\t1\n"
    assert parse_status(data) == (42, 1000, (42, 7, 1))
    assert parse_status(data.replace(b"NSpid:\t42\t7\t1\n", b"")).ns_pids == (42,)  # a kernel without namespaces


def test_cgroups() -> None:
    data = b"10:name=systemd:/a\n5:cpu,cpuacct:/b:c\n0::/d e\xff\nnonsense\n"
    assert parse_cgroups(data) == (("name=systemd", "/a"), ("cpu,cpuacct", "/b:c"), ("", r"/d e\xff"))
    assert cgroups_of(b"0::/\n") == ((("", "/"),), "", "")
    with pytest.raises(TargetRefused):
        cgroups_of(b"1:pids:/docker/" + b"a" * 64 + b"\n0::/docker/" + b"b" * 64 + b"\n")


def test_statx_has_the_layout_that_is_read() -> None:
    known = os.stat("/proc/self/exe")
    assert file_identity("/proc/self/exe") == (known.st_dev, known.st_ino)
    assert file_identity("/proc/self/nothing") == (0, 0)


def test_a_namespace_by_its_link() -> None:
    assert namespace_inode("/proc/self/ns/mnt") == os.stat("/proc/self/ns/mnt").st_ino


@pytest.fixture
def procfs() -> Procfs:
    return Procfs("/proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a second thread, and a child that the second thread started."""
    program = """
import subprocess, sys, threading
def start():
    child = subprocess.Popen(["sleep", "1000"])
    print("ready", flush=True)
    sys.stdin.read()
    child.kill()
    child.wait()
thread = threading.Thread(target=start)
thread.start()
thread.join()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def test_ourselves(procfs: Procfs) -> None:
    stat = procfs.stat(os.getpid())
    assert (stat.ppid, stat.pgid, stat.sid) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert procfs.status(os.getpid()).uid == os.getuid()
    assert threading.get_native_id() in procfs.threads(os.getpid())
    assert len(procfs.boot_id) == 36


def test_a_child_of_any_thread_is_a_child(procfs: Procfs, child: subprocess.Popen[bytes]) -> None:
    (grandchild,) = procfs.children(child.pid)
    assert procfs.stat(grandchild).ppid == child.pid
    assert {child.pid, grandchild} <= set(procfs.descendants(os.getpid(), 100))
    assert procfs.descendants(child.pid, 100) == (grandchild,)
    assert procfs.descendants(os.getpid(), 1) != ()
    assert len(procfs.descendants(os.getpid(), 1)) == 1
    # A kernel without CONFIG_PROC_CHILDREN: every process is looked at.
    assert procfs._children_by_scan(child.pid) == [grandchild]


def test_the_most_telling_state_of_several_threads(procfs: Procfs, child: subprocess.Popen[bytes]) -> None:
    assert procfs.stat(child.pid).threads == 2
    pause = select.poll()
    states = set()
    for _ in range(1000):
        states.add(procfs.state(child.pid))
        if "S" in states:
            break
        pause.poll(1)
    assert states in ({"S"}, {"R", "S"})


def test_what_has_gone(procfs: Procfs) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for ask in (procfs.stat, procfs.status, procfs.cgroups, procfs.children, procfs.state):
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            ask(process.pid)
    assert procfs.descendants(process.pid, 10) == ()


def test_files_longer_than_one_read(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "procs")
    numbers = list(range(1, 20_000))
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{number}\n" for number in numbers)
    assert read_list(path) == numbers
    assert read_file(path).split()[-1] == b"19999"
