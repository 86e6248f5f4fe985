"""A start in µs: against the clock around a real fork, and what comes of it where the kernel does not tell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agent.node.host import LinuxHost
from agent.node.procfs import TICK_NS, Procfs, realtime_minus_boottime_ns
from agent.node.taskstats import Taskstats, _attribute, _attributes

NOISE_NS = 1_000_000
"""CLOCK_REALTIME may be slewed between two readings."""


@pytest.fixture
def taskstats() -> Iterator[Taskstats]:
    if os.geteuid() != 0:
        pytest.skip("taskstats needs CAP_NET_ADMIN")
    made = Taskstats()
    if made.born(os.getpid()) is None:
        pytest.skip("this kernel has no taskstats")
    yield made
    made.close()


@pytest.mark.root
def test_a_start_lies_between_before_and_after(taskstats: Taskstats) -> None:
    before = time.time_ns()
    process = subprocess.Popen(["sleep", "1000"])
    after = time.time_ns()
    try:
        found = taskstats.born(process.pid)
        assert found is not None
        start, slack = found.start_ns, found.slack_ns
        assert (found.ppid, found.uid) == (os.getpid(), os.getuid())
        assert before - NOISE_NS <= start + slack
        assert start <= after + NOISE_NS
        assert 1000 <= slack < 10_000_000
    finally:
        process.kill()
        process.wait()
    assert taskstats.born(process.pid) is None
    # That one had gone says nothing of the others.
    ours = taskstats.born(os.getpid())
    assert ours is not None
    with open("/proc/self/comm", "rb") as file:
        assert ours.comm == file.read().strip()


@pytest.mark.root
def test_it_agrees_with_the_tick_of_proc(taskstats: Taskstats) -> None:
    host = LinuxHost()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        with host.hold(process.pid) as held:
            start, slack = host.precise_start(held.facts)
            tick = Procfs("/proc").stat(process.pid).start_ticks * TICK_NS + realtime_minus_boottime_ns()
            assert slack < TICK_NS
            assert tick - NOISE_NS <= start <= tick + TICK_NS + NOISE_NS
    finally:
        process.kill()
        process.wait()
        host.close()


@pytest.mark.root
def test_it_opens_again_after_it_was_closed(taskstats: Taskstats) -> None:
    taskstats.close()
    taskstats.close()
    assert taskstats.born(os.getpid()) is not None


def test_without_the_right_the_tick_stays() -> None:
    program = """
import os
from agent.node.host import LinuxHost
from agent.node.procfs import TICK_NS, Procfs, realtime_minus_boottime_ns
host = LinuxHost()
with host.hold(os.getpid()) as held:
    assert host.precise_start(held.facts) == (held.facts.start_ns, held.facts.start_slack_ns)
    assert host.precise_start(held.facts)[1] == 10_000_000
"""
    drop = ["setpriv", "--bounding-set=-net_admin"] if os.geteuid() == 0 else []
    subprocess.run([*drop, sys.executable, "-c", program], check=True, timeout=30)


def test_attributes_are_padded_and_what_is_cut_short_is_left() -> None:
    data = _attribute(1, b"abc") + _attribute(2 | 0x8000, b"abcd")
    assert _attributes(data) == {1: b"abc", 2: b"abcd"}
    assert _attributes(data[:-1]) == {1: b"abc"}
    assert _attributes(b"\0\0\0\0") == {}
    assert _attributes(b"\x04") == {}
