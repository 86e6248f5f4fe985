"""Executables in a snapshot: deleted, of no file, sparse, behind FUSE."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.node.host import LinuxHost
from tests.real.conftest import Spawn, await_that
from tests.work.conftest import Bench, whom
from tests.work.snapshots import content, executable_in, missing, taken, told


async def test_a_deleted_executable(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    program = tmp_path / "evil\n name"
    shutil.copy("/bin/sleep", program)
    target = spawn(str(program), "600")
    await_that(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program), "it runs")
    job = bench.snapshot(whom(target.pid, host))
    program.unlink()
    manifest, parts = await taken(bench, job)
    (executable,) = (part for part in manifest.parts if part.name.startswith("executables/"))
    assert executable.about["path"] == f"{program} (deleted)"
    assert parts[executable.name] == content("/bin/sleep")


# Runs a copy of `sleep` from memory, with no file (memfd_create(2)).
MEMFD = """
import os, sys
fd = os.memfd_create("\\x1b[31mevil", 0)
os.write(fd, open("/bin/sleep", "rb").read())
os.execve(fd, ["kworker/0:1", "600"], {})
"""


async def test_an_executable_that_is_no_file(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn(sys.executable, "-c", MEMFD)
    await_that(lambda: "memfd:" in os.readlink(f"/proc/{target.pid}/exe"), "it runs")
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host)))
    (executable,) = (part for part in manifest.parts if part.name.startswith("executables/"))
    assert executable.about["path"] == "/memfd:\x1b[31mevil (deleted)"
    assert parts[executable.name] == content("/bin/sleep")
    assert told(parts, target.pid)["cmdline"] == ["kworker/0:1", "600"]


async def test_executables_are_bounded(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    size = os.stat("/bin/sleep").st_size
    target = spawn("/bin/sleep", "600")
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host), executable_bytes=1000))
    assert executable_in(parts) == content("/bin/sleep")[:1000]
    assert f"1000 of {size} bytes: the snapshot's bound" in missing(manifest).values()


# An executable script's interpreter can't be sparse, but a program may: 100 GiB behind its last byte.
async def test_a_sparse_executable_of_100_gib(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    program = tmp_path / "sparse"
    shutil.copy("/bin/sleep", program)
    os.truncate(program, 100 * 2**30)
    target = spawn(str(program), "600")
    await_that(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program), "it runs")
    _, parts = await taken(bench, bench.snapshot(whom(target.pid, host), executable_bytes=2**20))
    assert len(executable_in(parts)) == 2**20
    assert executable_in(parts).rstrip(b"\0") == content("/bin/sleep").rstrip(b"\0")


@pytest.mark.root
async def test_an_executable_in_a_fuse_mount_is_not_opened(
    bench: Bench, host: LinuxHost, behind_fuse: Callable[[str], int]
) -> None:
    pid = behind_fuse("program")
    await_that(lambda: os.readlink(f"/proc/{pid}/exe").endswith("stuck/file"), "it runs")
    manifest, parts = await taken(bench, bench.snapshot(whom(pid, host)))
    path = told(parts, pid)["exe"]
    assert missing(manifest)[path] == "it lies in a FUSE file system, which need not answer"
    assert "hung" not in manifest.notes
