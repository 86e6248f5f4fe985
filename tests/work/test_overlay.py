"""The list of an overlay's upper directory: a real overlay, changed from inside in every way; and hostile trees."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.node.host import LinuxHost
from agent.work import overlay
from agent.work.overlay import Changes, parse_mountinfo, upper_of
from tests.real.conftest import Spawn, line
from tests.work.conftest import Bench, whom


def listed(directory: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The list of a directory, by path."""
    changes = Changes()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        changes.walk(fd)
    finally:
        os.close(fd)
    entries = [json.loads(each) for each in changes.lines]
    return {entry["path"]: entry for entry in entries}, changes.lacks


def test_mountinfo() -> None:
    data = (
        b"1 0 0:30 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l,upperdir=/var/a\\040b\\054c,workdir=/w\n"
        b"2 1 0:31 / /proc rw - proc proc rw\nnonsense\n\n"
        b"3 1 0:32 / / rw - overlay overlay rw,upperdir=/mounted/over/it\n"
    )
    mounts = parse_mountinfo(data)
    assert [(mount.device, mount.point, mount.kind) for mount in mounts][1] == ("0:31", b"/proc", "proc")
    assert upper_of(mounts) == b"/var/a b,c"
    assert upper_of(mounts[1:2]) == b""
    assert upper_of([]) == b""


def test_hostile_names_and_kinds(tmp_path: Path) -> None:
    top = tmp_path / "upper"
    top.mkdir()
    raw = os.fsencode(top)
    for name in (b"\n\x1b[31m", b"\xff\xfe", b"x" * 255, b"..."):
        (Path(os.fsdecode(raw + b"/" + name))).write_bytes(b"12345")
    os.mkfifo(top / "fifo")
    (top / "link").symlink_to("/etc/shadow")
    (top / "folder-link").symlink_to("/etc")
    (top / "sparse").touch()
    os.truncate(top / "sparse", 2**40)
    (top / "set-uid").touch()
    (top / "set-uid").chmod(0o4755)
    (top / "a" / "b").mkdir(parents=True)
    entries, lacks = listed(top)
    assert lacks == []
    assert set(entries) == {
        *("/\n\x1b[31m", "/\\xff\\xfe", "/" + "x" * 255, "/..."),
        *("/fifo", "/link", "/folder-link", "/sparse", "/set-uid", "/a", "/a/b"),
    }
    assert entries["/folder-link"]["kind"] == "link"
    assert entries["/fifo"]["kind"] == "fifo"
    assert entries["/sparse"]["size"] == 2**40
    assert entries["/set-uid"]["mode"] == "4755"
    found = os.stat(top / "fifo")
    assert entries["/fifo"]["mtime_ns"] == found.st_mtime_ns
    assert entries["/fifo"]["inode"] == found.st_ino


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MAX_ENTRIES", 50)
    for number in range(80):
        (tmp_path / f"{number:03}").touch()
    entries, lacks = listed(tmp_path)
    assert len(entries) == 50
    assert lacks == ["more than 50 entries: the rest is not told"]


def test_as_deep_as_can_be(tmp_path: Path) -> None:
    at = tmp_path / "deep"
    for _ in range(overlay.MAX_DEPTH + 10):
        at = at / "d"
    at.mkdir(parents=True)
    entries, lacks = listed(tmp_path / "deep")
    assert len(entries) == overlay.MAX_DEPTH
    assert lacks[0].endswith("levels deep") or "deep" in lacks[0] or "link" in lacks[0]


# In namespaces of its own: makes an overlay, goes into it, changes it, and sleeps there.
INSIDE = """
set -e
cd "$1"
mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" "$1/merged"
mkdir -p "$1/merged/old"
cd "$1/merged"
pivot_root . old
rm /removed
rm -r /replaced && mkdir /replaced && echo new > /replaced/new
echo more >> /changed
echo evil > /tmp-evil
ln -s /etc/shadow /shadow
umount -l /old
echo ready
read go
"""


@pytest.mark.root
async def test_a_real_overlay(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    busybox = _static_busybox()
    if not busybox:
        pytest.skip("no busybox that needs no libraries (apt-get install busybox-static)")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    lower = tmp_path / "lower"
    (lower / "replaced").mkdir()
    for name in ("removed", "changed", "untouched", "replaced/old"):
        (lower / name).write_text("of the image\n")
    (lower / "bin").mkdir()
    (lower / "bin" / "busybox").write_bytes(busybox)
    (lower / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "rm", "mkdir", "ln", "umount", "echo"):
        (lower / "bin" / name).symlink_to("busybox")
    target = spawn("unshare", "--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh", str(tmp_path))
    assert line(target) == "ready"
    result = await bench.workers.run(bench.snapshot(whom(target.pid, host), list_upper=True), 30.0)
    assert result.ok
    manifest, parts = bench.only()
    assert manifest.notes["upper"] == str(tmp_path / "upper")
    assert manifest.notes["upper_told_by"] == "mount table"
    entries = {entry["path"]: entry for entry in map(json.loads, parts["upper.ndjson"].splitlines())}
    assert entries["/removed"]["change"] == "removed"
    assert entries["/replaced"]["change"] == "replaced"
    assert entries["/replaced/new"]["size"] == 4
    assert entries["/changed"]["kind"] == "file"
    assert entries["/shadow"]["kind"] == "link"
    assert "/untouched" not in entries


def _static_busybox() -> bytes:
    """A shell and its tools in one program without libraries (Debian: busybox-static); b"" where there is none."""
    path = shutil.which("busybox")
    content = Path(path).read_bytes() if path else b""
    return content if b"/ld-linux" not in content else b""


@pytest.mark.root
async def test_an_upper_directory_told_by_the_runtime(
    bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path
) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "evil").write_text("x")
    (tmp_path / "link").symlink_to("upper")
    target = whom(spawn("sleep", "600").pid, host)
    for name, there in (("upper", True), ("link", False), ("gone", False)):
        job = bench.snapshot(target, list_upper=True, upper=str(tmp_path / name))
        assert (await bench.workers.run(job, 30.0)).ok
        _, parts = bench.kept()[-1]
        assert ("upper.ndjson" in parts) is there
