"""The end of the log in a snapshot, and what a pod could put there instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.jobs import LogTail
from agent.node.host import LinuxHost
from tests.real.conftest import Spawn
from tests.work.conftest import Bench, whom
from tests.work.snapshots import missing, taken


@pytest.mark.parametrize(
    "name", ["link", "up", "fifo", "zero", "two-names", "folder", "../outside", "/etc/hostname", "gone"]
)
async def test_a_log_that_is_something_else(
    bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path, name: str
) -> None:
    """What a pod with a hostPath of its log directory can put there."""
    logs = tmp_path / "logs"
    (logs / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("a secret")
    (logs / "link").symlink_to(tmp_path / "outside")
    (logs / "up").symlink_to("../outside")
    os.mkfifo(logs / "fifo")
    if os.geteuid() == 0:
        os.mknod(logs / "zero", 0o20666, os.makedev(1, 5))
    (logs / "two-names").hardlink_to(tmp_path / "outside")
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(logs), name))
    manifest, parts = await taken(bench, job)
    assert "log.txt" not in parts
    assert "log.txt" in missing(manifest)
    assert b"a secret" not in b"".join(parts.values())


async def test_the_end_of_a_log(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    (tmp_path / "0.log").write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)))
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(tmp_path), "0.log", 1000))
    _, parts = await taken(bench, job)
    assert len(parts["log.txt"]) == 1000
    assert parts["log.txt"].endswith(b"line 99999\n")


async def test_the_newest_of_a_containers_logs(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    logs = tmp_path / "ns_pod_uid" / "main"
    logs.mkdir(parents=True)
    for name in ("2.log", "10.log", "9.log.20261124", "99.log.gz", "x.log"):
        (logs / name).write_text(name)
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(tmp_path), "ns_pod_uid/main/"))
    _, parts = await taken(bench, job)
    assert parts["log.txt"] == b"10.log"


async def test_a_directory_of_logs_that_is_none(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "0.log").write_text("a secret")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "main").symlink_to(outside)
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(logs), "main/"))
    manifest, parts = await taken(bench, job)
    assert "log.txt" not in parts
    assert "log.txt" in missing(manifest)
