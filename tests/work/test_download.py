"""A file out of a container's root: real mount namespaces, and all that a hostile container puts there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.jobs import DownloadJob, Result, Whom
from agent.node.host import LinuxHost
from agent.node.procfs import namespace_inode
from tests.real.conftest import Process, Spawn, line
from tests.work.conftest import Bench, whom

pytestmark = pytest.mark.root

SECRET = "only the node's\n"

# In a mount namespace of its own: makes a tmpfs its root, with what a hostile container may have in it, and a volume.
# Its arguments: a directory, a file of the node's beside it (as a hostPath), and whether to stay in the node's root.
INSIDE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args):
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
def mount(kind, at, flags=0, what=b"none"):
    call("mount", what, at.encode(), kind, flags, None)
top, volume = sys.argv[1], sys.argv[2]
call("unshare", 0x20000)
mount(None, "/", 0x4000 | 0x40000)
if sys.argv[3] == "stay":
    print("ready", flush=True)
    sys.stdin.read()
mount(b"tmpfs", top)
os.chdir(top)
for name in ("etc", "proc", "volume", "old", "stuck"):
    os.mkdir(name)
mount(None, "volume", 0x1000, volume.encode())
mount(b"proc", "proc")
open("etc/passwd", "w").write("of the container\\n")
os.mkfifo("fifo")
os.mknod("zero", 0o20666, os.makedev(1, 5))
with open("sparse", "wb") as file:
    file.truncate(100 << 30)
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../../../etc/passwd", "up")
os.symlink("/proc/self/root/etc/passwd", "magic")
os.symlink("/proc/self/fd/0", "fd")
os.symlink("loop", "loop")
for name in (b"\\n\\x1b[31m", b"\\xff\\xfe", b"x" * 255):
    open(name, "w").write("odd\\n")
if sys.argv[3] == "fuse":  # answers FUSE_INIT, takes every other request, and says nothing (fuse(4))
    device = sys.argv[1] + "/device"
    os.mknod(device, 0o20600, os.makedev(10, 229))
    fuse = os.open(device, os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fuse
    call("mount", b"stuck", b"stuck", b"fuse", 0, options)
    _, _, unique, _ = struct.unpack_from("<IIQQ", os.read(fuse, 1 << 17))
    told = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0).ljust(64, b"\\0")
    os.write(fuse, struct.pack("<IiQ", 16 + len(told), 0, unique) + told)
if libc.syscall({"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b"old"):  # pivot_root(2)
    sys.exit(f"pivot_root: {os.strerror(ctypes.get_errno())}")
call("umount2", b"/old", 2)
os.chdir("/")
print("ready", flush=True)
while sys.argv[3] == "fuse":
    os.read(fuse, 1 << 17)
sys.stdin.read()
"""

Contained = Callable[..., Process]


@pytest.fixture
def contained(spawn: Spawn, tmp_path: Path) -> Contained:
    """Start a process with a root of its own, and a volume that holds `kept`."""
    (tmp_path / "root").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "kept").write_text("of a volume\n")
    (tmp_path / "volume" / "out").symlink_to(tmp_path / "node.txt")
    (tmp_path / "node.txt").write_text(SECRET)

    def start(how: str = "") -> Process:
        made = spawn(sys.executable, "-c", INSIDE, str(tmp_path / "root"), str(tmp_path / "volume"), how)
        assert line(made) == "ready"
        return made

    return start


async def fetch(bench: Bench, target: Whom, path: bytes, **changes: object) -> Result:
    """Do the job."""
    job = DownloadJob(**bench.common((target,)), path=path, limit=2**20)
    return await bench.workers.run(msgspec.structs.replace(job, **changes), 20.0)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"/etc/passwd", b"of the container\n"),
        (b"etc/passwd", b"of the container\n"),
        (b"/../../etc/passwd", b"of the container\n"),
        (b"/absolute", b"of the container\n"),
        (b"/up", b"of the container\n"),
        (b"/volume/kept", b"of a volume\n"),
        (b"/\n\x1b[31m", b"odd\n"),
        (b"/\xff\xfe", b"odd\n"),
        (b"/" + b"x" * 255, b"odd\n"),
    ],
)
async def test_a_file(bench: Bench, contained: Contained, host: LinuxHost, path: bytes, content: bytes) -> None:
    target = whom(contained().pid, host)
    result = await fetch(bench, target, path)
    assert result.ok, result
    manifest, parts = bench.only()
    assert parts == {"file.bin": content}
    (part,) = manifest.parts
    assert part.about["volume"] is (path == b"/volume/kept")
    assert part.about["path"] == path.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"/fifo", "no regular file"),
        (b"/zero", "no regular file"),
        (b"/etc", "no regular file"),
        (b"/volume/out", "No such file"),
        (b"/magic", "link of /proc"),
        (b"/fd", "link of /proc"),
        (b"/loop", "link"),
        (b"/proc/self/environ", "the kernel's own (proc)"),
        (b"/proc/1/environ", "the kernel's own (proc)"),
        (b"/etc/shadow", "No such file"),
        (b"/etc/passwd/x", "Not a directory"),
        (b"/" + b"x" * 256, "name too long"),
        (b"/a\0b", "Invalid argument"),
        (b"", "No such file"),
    ],
)
async def test_what_is_none(bench: Bench, contained: Contained, host: LinuxHost, path: bytes, why: str) -> None:
    target = whom(contained().pid, host)
    result = await fetch(bench, target, path)
    assert not result.ok
    assert why in result.reason
    assert result.refused is (why in ("no regular file", "the kernel's own (proc)"))
    assert bench.kept() == []
    assert bench.leftovers() == []


async def test_a_sparse_file_is_cut(bench: Bench, contained: Contained, host: LinuxHost) -> None:
    target = whom(contained().pid, host)
    result = await fetch(bench, target, b"/sparse")
    assert result.ok
    manifest, parts = bench.only()
    assert parts == {"file.bin": bytes(2**20)}
    assert manifest.missing[0].why == f"the first {2**20} of {100 * 2**30} bytes: the act's bound"


@pytest.mark.parametrize("how", ["", "stay"])
async def test_the_nodes_own_root(bench: Bench, contained: Contained, spawn: Spawn, host: LinuxHost, how: str) -> None:
    """A process of the node, and one in a mount namespace of its own whose root is the node's."""
    pid = contained(how).pid if how else spawn("sleep", "600").pid
    result = await fetch(bench, whom(pid, host), b"/etc/passwd")
    assert not result.ok
    assert "node's" in result.reason
    told = contained().pid if not how else pid  # a namespace that the caller says is the node's
    result = await fetch(
        bench, whom(told, host), b"/etc/passwd", host_mounts=(namespace_inode(f"/proc/{told}/ns/mnt"),)
    )
    assert "in the node's mount namespace" in result.reason
    assert bench.kept() == []


async def test_one_that_has_ended(bench: Bench, contained: Contained, host: LinuxHost) -> None:
    process = contained()
    target = whom(process.pid, host)
    process.kill()
    process.wait()
    result = await fetch(bench, target, b"/etc/passwd")
    assert (result.ok, result.gone, result.refused) == (False, True, False)


async def test_another_process_by_the_same_number(bench: Bench, contained: Contained, host: LinuxHost) -> None:
    target = whom(contained().pid, host)
    result = await fetch(bench, Whom(target.pid, target.birth + 1), b"/etc/passwd")
    assert (result.ok, "given anew" in result.reason) == (False, True)


@pytest.mark.skipif(
    "fuse" not in Path("/proc/filesystems").read_text().split(), reason="this kernel has no FUSE (modprobe fuse)"
)
async def test_a_file_system_that_never_answers(bench: Bench, contained: Contained, host: LinuxHost) -> None:
    """It costs a reader, and the job ends long before its deadline; other files are still to be had."""
    server = contained("fuse")
    target = whom(server.pid, host)
    result = await fetch(bench, target, b"/stuck/file")
    assert (result.ok, result.reason) == (False, "find the file: it did not answer")
    await bench.until(lambda: bench.workers.status()["abandoned"] == {"a": 1}, "a reader that hangs is counted")
    assert bench.kept() == []
    assert (await fetch(bench, target, b"/etc/passwd")).ok
    server.kill()  # its mount ends with it, and whoever waits for an answer has an error
    await bench.until(lambda: bench.workers.status()["abandoned"] == {}, "it has ended")
