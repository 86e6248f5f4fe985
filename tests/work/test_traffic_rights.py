"""Each right that evidence:pcap declares is needed, and no other one: a capture with only these capabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.node.procfs import namespace_inode
from stoop.actions.evidence import pcap
from tests.real.conftest import PATIENCE_S, Spawn, line
from tests.work.conftest import ROOT
from tests.work.test_traffic import TCPDUMP

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not TCPDUMP, reason="needs tcpdump(8) (apt-get install tcpdump)"),
]

# Captures, and tells how that went. Its arguments: pid, network namespace, store, tcpdump.
CAPTURE = """
import json, sys, trio
from agent.capture import whom
from agent.jobs import TrafficJob
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.errors import TargetError
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
pid, network, directory, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
async def main():
    try:
        held = LinuxHost().hold(pid)
    except TargetError as error:
        print(json.dumps([False, error.reason]))
        return
    limits, processes = Limits(min_free_bytes=0), (whom(held.facts),)
    common = dict(key="a", origin=Origin(), store=directory, limits=limits, processes=processes)
    job = TrafficJob(**common, program=program, network=network, duration_s=0.3)
    workers = Workers()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        result = await workers.run(job, 20.0, fds=[held.fileno()])
        nursery.cancel_scope.cancel()
    print(json.dumps([result.ok and not result.details["missing"], result.reason]))
trio.run(main)
"""


def captured(spawn: Spawn, store: Path, *rights: str) -> tuple[bool, str]:
    """Whether a capture with these capabilities is whole, and why not."""
    target = spawn(
        *("unshare", "--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("sh", "-c", "echo ready; exec sleep 600"),
    )
    assert line(target) == "ready"
    names = "".join(f",+{right.removeprefix('CAP_').lower()}" for right in rights)
    setpriv = ("setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs")
    inode = str(namespace_inode(f"/proc/{target.pid}/ns/net"))
    argv = [*setpriv, sys.executable, "-c", CAPTURE, str(target.pid), inode, str(store), TCPDUMP]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=4 * PATIENCE_S, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    whole, why = json.loads(ran.stdout)
    return whole, why + ran.stderr


def test_with_what_is_declared_it_is_whole(spawn: Spawn, tmp_path: Path) -> None:
    assert captured(spawn, tmp_path / "store", *pcap.SPEC.node_rights) == (True, "")


@pytest.mark.parametrize("without", pcap.SPEC.node_rights)
def test_without_one_of_them_it_is_not(spawn: Spawn, tmp_path: Path, without: str) -> None:
    whole, why = captured(spawn, tmp_path / "store", *(right for right in pcap.SPEC.node_rights if right != without))
    assert not whole
    assert ("without CAP_KILL" in why) is (without == "CAP_KILL")  # it is not begun: nobody could end it
    assert why
