"""The rehearsal goes the whole way, so that the first real act is fast, and touches nothing."""

from __future__ import annotations

import msgspec
import pytest

from agent.rehearsal import TURNS, rehearse
from stoop.testing import HOST_FACTS, POLICY, FakeClock
from stoop.testing_node import SECOND_NS, FakeHost

# Before, about and long after this was written.
TIMES = (1_700_000_000, 1_800_000_000, 2_500_000_000)


@pytest.mark.parametrize("now_s", TIMES)
def test_it_goes_the_whole_way_but_the_act(now_s: int) -> None:
    host, clock = FakeHost(), FakeClock(now_s * SECOND_NS)
    helper = host.add(70, start_ns=(now_s - 1) * SECOND_NS)
    rehearse(host, HOST_FACTS, POLICY, clock, 70)
    assert host.held == [70] * TURNS
    assert helper.signals == []
    assert not helper.exited.is_set()
    assert host.open_holds == 0


def test_a_helper_that_is_not_there_is_no_trouble() -> None:
    host = FakeHost()
    rehearse(host, HOST_FACTS, POLICY, FakeClock(), 70)
    assert host.open_holds == 0


def test_it_leaves_no_trace_in_the_limits() -> None:
    host = FakeHost()
    for pid in range(70, 80):
        host.add(pid, exe=f"/bin/{pid}")
        rehearse(host, HOST_FACTS, msgspec.structs.replace(POLICY, max_targets=1), FakeClock(), pid)
    assert host.open_holds == 0
