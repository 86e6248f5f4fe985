"""Each right that the two acts declare is needed, and no other one: workers with only these capabilities."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoop.actions.evidence import memory, snapshot
from stoop.spec import (
    ActionSpec,
)
from tests.real.conftest import PATIENCE_S, Spawn, await_that
from tests.work.conftest import ROOT

pytestmark = pytest.mark.root

NOBODY = 65534

# Takes both, and tells what each lacks. Its arguments: pid, upper directory, store.
BOTH = """
import json, sys, trio
from agent.capture import whom
from agent.jobs import MemoryJob, SnapshotJob
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.errors import TargetError
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Store
pid, upper, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
async def main():
    try:
        held = LinuxHost().hold(pid)
    except TargetError as error:
        print(json.dumps(error.reason))
        return
    limits, processes = Limits(min_free_bytes=0), (whom(held.facts),)
    common = dict(key="a", origin=Origin(), store=directory, limits=limits, processes=processes)
    taken = SnapshotJob(**common, executable_bytes=2**26, upper=upper)
    kept = MemoryJob(**common, regions=("stack",), bytes=2**26)
    workers = Workers()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        for job in (taken, kept):
            result = await workers.run(job, 20.0, fds=[held.fileno()])
            assert result.ok, result
        nursery.cancel_scope.cancel()
    with Store(directory) as store:
        told = []
        for bundle in store.bundles():
            with store.reading(bundle) as reader:
                told.append([missing.why for missing in reader.manifest.missing])
        print(json.dumps(told))
trio.run(main)
"""


def lacking(pid: int, upper: Path, store: Path, *rights: str) -> object:
    """What snapshot and memory lack with these capabilities only; or why the target can't even be held."""
    names = "".join(f",+{right.removeprefix('CAP_').lower()}" for right in rights)
    setpriv = ("setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs")
    argv = [*setpriv, sys.executable, "-c", BOTH, str(pid), str(upper), str(store)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=3 * PATIENCE_S, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may pass through: pytest's own are for root only."""
    path = Path(tempfile.mkdtemp(prefix="stoop-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def another_users(spawn: Spawn, folder: Path) -> tuple[int, Path]:
    """A process of another user that runs a file of his own, and a directory of his."""
    program, upper = folder / "program", folder / "upper"
    shutil.copy("/bin/sleep", program)
    upper.mkdir()
    for path in (program, upper):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700)
    target = spawn("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(program), "600")
    await_that(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program), "it runs")
    return target.pid, upper


def test_with_what_is_declared_nothing_is_missing(spawn: Spawn, open_folder: Path, tmp_path: Path) -> None:
    pid, upper = another_users(spawn, open_folder)
    rights = sorted({*snapshot.SPEC.node_rights, *memory.SPEC.node_rights})
    assert lacking(pid, upper, tmp_path / "store", *rights) == [[], []]


@pytest.mark.parametrize("spec", [snapshot.SPEC, memory.SPEC])
@pytest.mark.parametrize("without", ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"])
def test_without_one_of_them_something_is(
    spawn: Spawn, open_folder: Path, tmp_path: Path, spec: ActionSpec, without: str
) -> None:
    pid, upper = another_users(spawn, open_folder)
    assert without in spec.node_rights
    told = lacking(pid, upper, tmp_path / "store", *(right for right in spec.node_rights if right != without))
    if isinstance(told, str):
        assert "CAP_SYS_PTRACE is needed" in told
    else:
        assert isinstance(told, list)
        of_spec = told[0] if spec is snapshot.SPEC else told[1]
        assert any("Permission denied" in why for why in of_spec)
