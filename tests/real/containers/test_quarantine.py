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
from tests.real.containers.node import Node
from tests.real.containers.pod import Container
from tests.work.conftest import Bench, whom
from tests.work.conftest import _importable as _importable
from tests.work.conftest import bench as bench

pytestmark = [pytest.mark.real, pytest.mark.root]

ACT = "0123456789abcdef0123456789abcdef"
NAME = f".stoop-quarantine-{ACT}"
CONTENT = "echo evil\n"


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
        return await self.aside(file, back=True)

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


async def test_whose_root_is_none_of_a_container(held: Held, host: LinuxHost) -> None:
    ours = held.target
    held.target = whom(os.getpid(), host)
    assert "node's" in (await held.keep(b"/etc/passwd")).reason
    held.target = ours
    inode = namespace_inode(f"/proc/{ours.pid}/ns/mnt")
    assert "node's" in (await held.keep(b"/tmp/evil", host_mounts=(inode,))).reason
    for upper, why in (("", "does not tell"), ("/volume", "the image's"), (str(Path(held.upper).parent), "image's")):
        assert why in (await held.keep(b"/tmp/evil", upper=upper)).reason
    assert held.bench.kept() == []


async def test_a_read_only_root(the_node: Node, bench: Bench, host: LinuxHost) -> None:
    container = the_node.pod().container("sleep", "600", options=("--read-only",))
    held = Held(bench, container, whom(container.init_pid, host))
    assert "read-only" in (await held.keep(b"/bin/busybox", lower=True)).reason


async def test_a_file_of_the_image(held: Held) -> None:
    """Its own copy is taken away; another container of the image does not notice."""
    other = held.container.pod.container("sleep", "600", name="other")
    before = held.facts("bin/busybox")
    file = await held.kept(b"/bin/busybox", lower=True)
    assert (await held.aside(file, lower=True)).ok
    assert "busybox" not in held.names("bin")
    assert other.run("echo", "well") == "well\n"
    result = await held.back(file)
    assert result.ok, result
    assert held.facts("bin/busybox")[:4] == before[:4]
    assert held.container.run("echo", "well") == "well\n"


async def test_changed_between_the_steps(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    held.container.run("sh", "-c", "echo more >> /tmp/evil")
    assert (await held.aside(file)).details == {"changed": True}
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"theirs": ["content"]})
    held.container.run("sh", "-c", "cp /tmp/evil /tmp/new; mv /tmp/new /tmp/evil")
    before = held.facts()
    result = await held.aside(file)
    assert not result.ok
    assert "another one has its name" in result.reason
    assert held.facts() == before


async def test_linked_and_moved_between_the_steps(held: Held) -> None:
    """A second name, and a directory that became a link, do not lead anywhere."""
    file = await held.kept(b"/tmp/evil")
    held.container.run("ln", "/tmp/evil", "/tmp/second")
    assert "2 names" in (await held.aside(file)).reason
    held.container.run("sh", "-c", "rm /tmp/second; mv /tmp /other; ln -s /volume /tmp")
    before = (held.root / "volume" / "evil").stat()
    assert not (await held.aside(file)).ok
    assert (held.root / "volume" / "evil").stat() == before


async def test_given_back_where_others_were(held: Held) -> None:
    file = await held.kept(b"/tmp/evil")
    assert (await held.aside(file)).ok
    held.container.run("sh", "-c", "echo theirs > /tmp/evil")
    result = await held.back(file)
    assert not result.ok
    assert "another file has that name" in result.reason
    assert held.facts()[-1] == b"theirs\n"
    held.container.run("sh", "-c", f"rm /tmp/evil; chmod 711 /tmp/{NAME}")
    result = await held.back(file)
    assert (result.ok, result.details) == (True, {"theirs": ["mode"]})
    assert stat.S_IMODE(held.facts()[0]) == 0o711
    held.container.run("rm", "/tmp/evil")
    assert "gone" in (await held.back(file)).reason


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


# Keeps a file, takes it away and gives it back; tells what failed first. Its arguments: pid, path, upper, store.
ALL = """
import json, sys, msgspec, trio
from agent.capture import whom
from agent.jobs import AsideJob, KeepFileJob, KeptFile
from agent.node.host import LinuxHost
from agent.workers import Workers
from stoop.errors import TargetError
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
pid, path, upper, directory = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3], sys.argv[4]
async def main():
    try:
        held = LinuxHost().hold(pid)
    except TargetError as error:
        return [False, error.reason]
    limits, processes = Limits(min_free_bytes=0), (whom(held.facts),)
    common = dict(key="a", origin=Origin(), store=directory, limits=limits, processes=processes, upper=upper)
    workers = Workers()
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        result = await workers.run(KeepFileJob(**common, path=path, limit=1000), 20.0)
        if result.ok:
            file = msgspec.convert(result.details["file"], KeptFile)
            for back in (False, True):
                if result.ok:
                    result = await workers.run(AsideJob(**common, file=file, back=back), 20.0)
        nursery.cancel_scope.cancel()
    return [result.ok, result.reason]
print(json.dumps(trio.run(main)))
"""


@pytest.mark.parametrize("without", ["", *quarantine.SPEC.node_rights])
async def test_its_rights(held: Held, tmp_path: Path, without: str) -> None:
    """What is declared is enough, and without one of it it does not work."""
    held.container.run("sh", "-c", "mkdir /tmp/his; mv /tmp/evil /tmp/his; chown 1000 /tmp/his; chmod 700 /tmp/his")
    before = held.facts("tmp/his/evil")
    names = "".join(
        f",+{right.removeprefix('CAP_').lower()}" for right in quarantine.SPEC.node_rights if right != without
    )
    ran = await trio.run_process(
        [
            *("setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs", sys.executable, "-c", ALL),
            *(str(held.target.pid), "/tmp/his/evil", held.upper, str(tmp_path / "store")),
        ],
        capture_stdout=True,
    )
    done, why = json.loads(ran.stdout)
    assert (done, bool(why)) == (not without, bool(without))
    assert held.facts("tmp/his/evil") == before
