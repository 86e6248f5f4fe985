"""A file of a real container is kept, taken out of use, and given back; what is not the container's own is refused."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from agent.jobs import AsideJob, KeepFileJob, KeptFile, Result, Whom
from agent.node.host import LinuxHost
from agent.node.procfs import namespace_inode
from stoop.actions.file import quarantine
from stoop.evidence.limits import Limits
from tests.real.containers.node import Node
from tests.real.containers.pod import Container
from tests.work.conftest import Bench, whom
from tests.work.conftest import _importable as _importable
from tests.work.conftest import bench as bench

pytestmark = [pytest.mark.real, pytest.mark.root]

ACT = "0123456789abcdef0123456789abcdef"
NAME = f".stoop-quarantine-{ACT}"
CONTENT = "echo evil\n"

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""What setcap(8) writes for cap_net_raw=ep (struct vfs_cap_data, revision 2)."""


class Held:
    """A container with a dropped file, and the jobs on it."""

    def __init__(self, bench: Bench, container: Container, target: Whom) -> None:
        self.bench = bench
        self.container = container
        self.target = target
        self.root = Path(f"/proc/{target.pid}/root")
        self.upper = str(container.upper)

    def _common(self) -> dict[str, Any]:
        common = self.bench.common((self.target,))
        return common | {"origin": msgspec.structs.replace(common["origin"], act=ACT), "upper": self.upper}

    async def keep(self, path: bytes, **changes: Any) -> Result:
        """The first half."""
        job = KeepFileJob(**self._common(), path=path, limit=2**24)
        return await self.bench.workers.run(msgspec.structs.replace(job, **changes), 20.0)

    async def kept(self, path: bytes, **changes: Any) -> KeptFile:
        """The first half, which works."""
        result = await self.keep(path, **changes)
        assert result.ok, result
        return msgspec.convert(result.details["file"], KeptFile)

    async def aside(self, file: KeptFile, **changes: Any) -> Result:
        """The second half."""
        job = AsideJob(**self._common(), file=file)
        return await self.bench.workers.run(msgspec.structs.replace(job, **changes), 20.0)

    async def back(self, file: KeptFile) -> Result:
        """Its undo."""
        manifest, _ = self.bench.kept()[-1]
        return await self.aside(file, step="back", bundle=manifest.bundle, sha256=manifest.parts[0].sha256)

    def facts(self, path: str = "tmp/evil") -> tuple[Any, ...]:
        """All that undo puts back."""
        found = os.lstat(self.root / path)
        file = self.root / path
        xattrs = {name: os.getxattr(file, name) for name in os.listxattr(file)}
        return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_ino, xattrs, file.read_bytes()

    def names(self, directory: str = "tmp") -> set[str]:
        """What is in a directory of its."""
        return set(os.listdir(self.root / directory))


@pytest.fixture
def held(the_node: Node, bench: Bench, host: LinuxHost, tmp_path: Path) -> Held:
    """A container that wrote a program, and has a volume of the node's."""
    (tmp_path / "evil").write_text("of the node\n")
    volume = f"type=bind,src={tmp_path},dst=/volume,options=rbind:rw"
    temporary = "type=tmpfs,src=tmpfs,dst=/run,options=rw"
    container = the_node.pod().container("sleep", "600", mounts=(volume, temporary))
    script = "echo 'echo evil' > /tmp/evil; chown 1000:1001 /tmp/evil; chmod 4755 /tmp/evil; ln -s /tmp/evil /tmp/link"
    container.run("sh", "-c", script)
    made = Held(bench, container, whom(container.init_pid, host))
    os.setxattr(made.root / "tmp/evil", "trusted.stoop-test", b"kept")
    return made


async def test_kept_taken_away_and_given_back(held: Held) -> None:
    before = held.facts()
    file = await held.kept(b"/tmp/link")
    assert held.facts() == before
    assert (file.directory, file.name, file.aside) == (b"/tmp", b"evil", NAME.encode())
    manifest, parts = held.bench.only()
    assert parts == {"file.bin": CONTENT.encode()}
    assert manifest.parts[0].about["xattrs"]["trusted.stoop-test"] == b"kept".hex()
    for _ in range(2):
        result = await held.aside(file)
        assert (result.ok, result.details) == (True, {"changed": False})
        assert held.names() == {NAME, "link"}
        assert stat.S_IMODE(os.lstat(held.root / "tmp" / NAME).st_mode) == 0
    with pytest.raises(AssertionError):
        held.container.run("/tmp/evil")
    for _ in range(2):
        result = await held.back(file)
        assert (result.ok, result.reason) == (True, "")
        assert held.facts() == before
    assert held.names() == {"evil", "link"}


async def test_undo_between_the_two_steps(held: Held) -> None:
    """What a worker that was killed after the mode, before the name, leaves."""
    before = held.facts()
    file = await held.kept(b"/tmp/evil")
    os.chmod(held.root / "tmp/evil", 0)
    assert (await held.back(file)).ok
    assert held.facts() == before


@pytest.mark.parametrize(
    ("script", "path", "why"),
    [
        ("", b"/bin/busybox", "it is the image's"),
        ("ln -s /bin/busybox /tmp/sh", b"/tmp/sh", "it is the image's"),
        ("", b"/volume/evil", "another file system"),
        ("ln -s /volume/evil /tmp/out", b"/tmp/out", "another file system"),
        ("echo x > /run/evil", b"/run/evil", "another file system"),
        ("", b"/proc/self/environ", "another file system"),
        ("ln /tmp/evil /tmp/second", b"/tmp/evil", "2 names"),
        ("mkfifo /tmp/fifo", b"/tmp/fifo", "no regular file"),
        ("", b"/tmp", "no regular file"),
        ("truncate -s 100G /tmp/sparse", b"/tmp/sparse", "are not kept"),
        ("", b"/tmp/gone", "No such file"),
        ("", b"/../../../tmp/gone", "No such file"),
    ],
)
async def test_refused(held: Held, script: str, path: bytes, why: str) -> None:
    if script:
        held.container.run("sh", "-c", script)
    before = held.facts()
    result = await held.keep(path)
    assert not result.ok
    assert why in result.reason
    assert held.facts() == before
    assert held.bench.kept() == []


async def test_half_of_the_store_is_for_files_in_quarantine(held: Held) -> None:
    limits = Limits(min_free_bytes=0, max_bytes=4000)
    held.container.run("sh", "-c", "head -c 900 /dev/urandom > /tmp/first; head -c 900 /dev/urandom > /tmp/second")
    assert (await held.keep(b"/tmp/first", limits=limits)).ok
    result = await held.keep(b"/tmp/second", limits=limits)
    assert (result.ok, result.refused) == (False, True)
    assert "what the evidence store has room for" in result.reason
    assert len(held.bench.kept()) == 1


async def test_whose_root_is_none_of_a_container(held: Held, host: LinuxHost) -> None:
    ours = held.target
    held.target = whom(os.getpid(), host)
    assert "node's" in (await held.keep(b"/etc/passwd")).reason
    held.target = ours
    inode = namespace_inode(f"/proc/{ours.pid}/ns/mnt")
    assert "node's" in (await held.keep(b"/tmp/evil", host_mounts=(inode,))).reason
    for changes, why in (
        ({"upper": ""}, "does not tell"),
        ({"upper": "/volume"}, "can't be opened"),
        ({"upper": str(Path(held.upper).parent)}, "the image's"),
        ({"device": "8:1"}, "not what the runtime mounted"),
    ):
        result = await held.keep(b"/tmp/evil", **changes)
        assert (result.ok, result.refused) == (False, True)
        assert why in result.reason
    assert held.bench.kept() == []


async def test_a_read_only_root(the_node: Node, bench: Bench, host: LinuxHost) -> None:
    container = the_node.pod().container("sleep", "600", options=("--read-only",))
    held = Held(bench, container, whom(container.init_pid, host))
    assert "read-only" in (await held.keep(b"/bin/busybox", lower=True)).reason


async def test_a_file_of_the_image(held: Held) -> None:
    """Its own copy is taken away; another container of the image does not notice."""
    other = held.container.pod.container("sleep", "600", name="other")
    before = held.facts("bin/busybox")
    for changes, why in (({}, "it is the image's"), ({"lower": True}, "its scripts run by")):
        assert why in (await held.keep(b"/bin/busybox", **changes)).reason
    file = await held.kept(b"/bin/busybox", lower=True, interpreters=True)
    assert file.layer == "image"
    assert (await held.aside(file, lower=True, interpreters=True)).ok
    assert "busybox" not in held.names("bin")
    assert other.run("echo", "well") == "well\n"
    result = await held.back(file)
    assert result.ok, result
    assert held.facts("bin/busybox")[:4] == before[:4]
    assert held.container.run("echo", "well") == "well\n"


async def test_an_interpreter_that_was_copied_up_is_the_image_s(held: Held) -> None:
    """To touch it does not make it the container's: without it the container breaks."""
    held.container.run("sh", "-c", "touch /bin/busybox; cp /bin/busybox /tmp/busybox; chmod 755 /tmp/busybox")
    result = await held.keep(b"/bin/busybox", lower=True)
    assert (result.refused, "its scripts run by" in result.reason) == (True, True)
    assert (await held.kept(b"/tmp/busybox")).layer == "upper"


@pytest.mark.parametrize("name", [b"\n\x1b[31m", b"\xff\xfe", b"x" * 255])
async def test_odd_names(held: Held, name: bytes) -> None:
    path = os.fsencode(held.root) + b"/tmp/" + name
    os.rename(os.fsencode(held.root) + b"/tmp/evil", path)
    file = await held.kept(b"/tmp/" + name)
    assert file.name == name
    assert (await held.aside(file)).ok
    assert name not in os.listdir(os.path.dirname(path))
    assert (await held.back(file)).ok
    assert name in os.listdir(os.path.dirname(path))


WHOLE = slice(0, 4)
"""Of `facts`: mode, owner, group and time; what is made anew has another inode."""

# Keeps a file, takes it away, ends it, and has it made anew; tells what failed first. Its arguments: pid, path, upper,
# store, the path from outside.
ALL = """
import json, os, sys, msgspec, trio
from agent.capture import whom
from agent.jobs import AsideJob, KeepFileJob, KeptFile
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.errors import TargetError
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
pid, path, upper, directory, outside = int(sys.argv[1]), sys.argv[2].encode(), *sys.argv[3:]
async def main():
    try:
        held = LinuxHost().hold(pid)
    except TargetError as error:
        return [False, error.reason]
    limits, processes = Limits(min_free_bytes=0), (whom(held.facts),)
    origin = Origin(act="ab" * 16)
    common = dict(key="a", origin=origin, store=directory, limits=limits, processes=processes, upper=upper)
    workers = Workers()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        result = await workers.run(KeepFileJob(**common, path=path, limit=1000), 20.0)
        if result.ok:
            copy = {key: result.details[key] for key in ("bundle", "sha256")}
            file = msgspec.convert(result.details["file"], KeptFile)
            for step in ("aside", "look", "back", "remove", "back"):
                if step == "remove":
                    os.unlink(outside)
                elif result.ok:
                    result = await workers.run(AsideJob(**common, **copy, file=file, step=step), 20.0)
        nursery.cancel_scope.cancel()
    return [result.ok and "without" not in result.reason, result.reason]
print(json.dumps(trio.run(main)))
"""


@pytest.mark.parametrize("without", ["", *quarantine.SPEC.node_rights])
async def test_its_rights(held: Held, tmp_path: Path, without: str) -> None:
    """What is declared is enough, and without one of it something is not done, or not as it was."""
    os.removexattr(held.root / "tmp/evil", "trusted.stoop-test")
    held.container.run(
        *("sh", "-c"),
        "mkdir /tmp/his; mv /tmp/evil /tmp/his; chown 1000 /tmp/his; chmod 700 /tmp/his; chmod 6755 /tmp/his/evil",
    )
    os.setxattr(held.root / "tmp/his/evil", "security.capability", CAPABILITY)
    before = held.facts("tmp/his/evil")
    names = "".join(
        f",+{right.removeprefix('CAP_').lower()}" for right in quarantine.SPEC.node_rights if right != without
    )
    ran = await trio.run_process(
        [
            *("setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs", sys.executable, "-c", ALL),
            *(str(held.target.pid), "/tmp/his/evil", held.upper, str(tmp_path / "store")),
            str(held.root / "tmp/his/evil"),
        ],
        capture_stdout=True,
        check=False,
    )
    done, why = json.loads(ran.stdout) if ran.returncode == 0 else (False, "it can't even remove it")
    now = held.facts("tmp/his/evil") if (held.root / "tmp/his/evil").exists() else ()
    same = (now[WHOLE], now[5:]) == (before[WHOLE], before[5:])
    assert (done and same) is not bool(without), (why, now, before)
