"""A container that forks as fast as it can while it is read: it is read in time, and goes on as soon as it may."""

from __future__ import annotations

import json
import sys

import pytest

from agent.capture import Stillness, box, run_still
from agent.node.host import LinuxHost
from tests.real.conftest import MakeBox, Spawn, line
from tests.work.conftest import Bench

pytestmark = [pytest.mark.root, pytest.mark.real]

# Each child forks another one and ends: hundreds of processes a second, none of them there for long. It ends itself.
STORM = """
import os, sys, time
os.write(1, b"ready\\n")
until = time.monotonic() + 20
while time.monotonic() < until:
    for _ in range(8):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


@pytest.mark.parametrize("freeze_s", [0.0, 0.2])
async def test_a_storm_of_forks(
    bench: Bench, make_box: MakeBox, spawn: Spawn, host: LinuxHost, freeze_s: float
) -> None:
    made = make_box("v2")
    storm = spawn(sys.executable, "-c", STORM)
    assert line(storm) == "ready"
    made.add(storm.pid)
    facts = host.find_container(made.container_id)
    still = Stillness(lambda: host.freeze(facts, True), lambda: host.freeze(facts, False), freeze_s)
    for _ in range(5):
        result = await run_still(bench.workers, bench.snapshot(container=box(facts)), 10.0, still)
        assert result.ok, result
        assert "hung" not in result.details
        assert result.details.get("frozen_ms", 0.0) < 1000
        manifest, parts = bench.kept()[-1]
        assert manifest.notes["processes"] >= 1
        for name, content in parts.items():
            if name.startswith("processes/"):
                # Read through its own directory: the file says the number that the part is named by, or nothing.
                told = json.loads(content)
                assert not told["status"] or f"\nPid:\t{told['pid']}\n" in told["status"]
    assert not made.is_frozen()
    assert storm.poll() is None
