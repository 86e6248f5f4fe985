"""kubernetes:download on real containers: which file of a hostile container is kept, and which is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoop.actions.kubernetes import download
from tests.real.conftest import await_that
from tests.real.containers.capturing import (
    bundles,
    capture,
    kept,
)
from tests.real.containers.node import Node, host_programs
from tests.real.containers.on_node import (
    MakeOnNode,
    Scene,
    make_on_node,
    rule,
    scene,
    told_of,
)
from tests.real.containers.pod import Container

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]


HOSTILE = """
ln -s /etc/hostname /tmp/link; ln -s /volume/out /tmp/out; mkfifo /tmp/fifo; truncate -s 100G /tmp/sparse
ln -s /proc/1/root/etc/passwd /tmp/magic; mkdir /tmp/dir; echo odd > "$(printf '/tmp/a\\nb')"
"""


NO_FILES: tuple[tuple[str | None, str, str], ...] = (
    ("/tmp/fifo", "refused", "no regular file"),
    ("/dev/zero", "refused", "no regular file"),
    ("/tmp/dir", "refused", "no regular file"),
    ("/proc/1/environ", "refused", "the kernel's own (proc)"),
    ("/tmp/magic", "failed", "link of /proc"),
    ("/volume/out", "failed", "No such file"),
    ("/tmp/none", "failed", "No such file"),
    ("10.0.0.1:80->10.0.0.2:81", "refused", "no path from the container's root"),
    ("memfd:x", "refused", "no path from the container's root"),
    ("/a\0b", "refused", "holds a NUL"),
    ("/" + "x" * 5000, "refused", "4095 bytes"),
    (None, "refused", "no value for '${FD_NAME}'"),
    ("<NA>", "refused", "no value for '${FD_NAME}'"),
)


def test_what_is_no_file_of_the_containers(make_on_node: MakeOnNode, hostile: Container) -> None:
    agent = make_on_node(capture("kubernetes:download"))
    for name, outcome, why in NO_FILES:
        record = agent.answer(told_of(hostile, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == outcome, record
        assert why in record["reason"]
    assert bundles(agent) == []
    assert agent.status()["ready"]


@pytest.fixture
def hostile(the_node: Node, tmp_path: Path) -> Container:
    """A container with all that may lead elsewhere, and a hostPath volume with a link out of it."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "kept").write_text("of a volume\n")
    (tmp_path / "volume" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("the node's\n")
    volume = f"type=bind,src={tmp_path}/volume,dst=/volume,options=rbind:rw"
    made = the_node.pod("web-3", "shop").container("sleep", "1000", mounts=(volume,))
    made.run("sh", "-c", HOSTILE)
    return made


FILES = {
    "/tmp/link": b"of the container\n",
    "/../../etc/hostname": b"of the container\n",
    "/volume/kept": b"of a volume\n",
    "/tmp/a\nb": b"odd\n",
}


def test_names_lead_where_they_do_in_the_container(make_on_node: MakeOnNode, hostile: Container) -> None:
    hostile.run("sh", "-c", "echo of the container > /etc/hostname")
    agent = make_on_node(capture("kubernetes:download"))
    for name, content in FILES.items():
        record = agent.answer(told_of(hostile, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == "done", record
        assert kept(agent, record)[1] == content
        assert record["details"]["data"]["name"] == name
        assert "\n" not in record["details"]["file"]


def test_a_sparse_file_of_100_gb_is_cut(make_on_node: MakeOnNode, hostile: Container) -> None:
    agent = make_on_node(capture("kubernetes:download", file="/tmp/sparse"))
    record = agent.answer(told_of(hostile, rule="kubernetes:download"))
    assert (record["outcome"], record["reason"]) == ("done", "1 things are missing or cut: the bundle says which")
    assert record["details"]["bytes"] < 2**20
    assert len(kept(agent, record)[1]) == download.MAX_FILE


def test_a_file_of_a_container_whose_process_has_ended_and_of_a_frozen_one(
    make_on_node: MakeOnNode, scene: Scene
) -> None:
    agent = make_on_node(capture("kubernetes:download", file="/tmp/evil") + rule("container:freeze"))
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    assert agent.answer(told_of(scene.victim, rule="container:freeze"))["outcome"] == "done"
    record = agent.answer(told_of(scene.victim, 2**22 - 2, rule="kubernetes:download"))
    assert (record["outcome"], record["target"]["container_id"]) == ("done", scene.victim.id), record
    assert kept(agent, record)[1] == b"evil\n"


FUSE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/stuck")
if not os.path.exists("/dev/fuse"):
    os.mknod("/dev/fuse", 0o20600, os.makedev(10, 229))
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % fuse
if libc.mount(b"stuck", b"/tmp/stuck", b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
_, _, unique, _ = struct.unpack_from("<IIQQ", os.read(fuse, 1 << 17))
told = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0).ljust(64, b"\\0")
os.write(fuse, struct.pack("<IiQ", 16 + len(told), 0, unique) + told)
open("/tmp/ready", "w").close()
while True:
    os.read(fuse, 1 << 17)
"""


@pytest.mark.skipif(
    "fuse" not in Path("/proc/filesystems").read_text().split(), reason="this kernel has no FUSE (modprobe fuse)"
)
def test_a_fuse_mount_that_never_answers_costs_one_reader(
    make_on_node: MakeOnNode, the_node: Node, scene: Scene
) -> None:
    agent = make_on_node(capture("kubernetes:download"))
    server = the_node.pod("web-3", "shop").container(
        "sleep", "1000", mounts=host_programs("/etc/alternatives"), options=("--privileged",)
    )
    server.exec(os.path.realpath("/usr/bin/python3"), "-c", FUSE)
    await_that(lambda: (server.upper / "tmp/ready").exists(), "the mount is there")
    record = agent.answer(told_of(server, rule="kubernetes:download", fd_name="/tmp/stuck/file"))
    assert (record["outcome"], record["reason"]) == ("failed", "find the file: it did not answer")
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["abandoned"]), "the reader that hangs is counted")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    for container, name in ((server, "/tmp/ready"), (scene.victim, "/tmp/evil")):
        record = agent.answer(told_of(container, rule="kubernetes:download", fd_name=name))
        assert record["outcome"] == "done", record
    server.remove()
    server.pod.containers.remove(server)
    server.link.unlink()
    await_that(lambda: not agent.status()["evidence"]["workers"]["abandoned"], "it has ended with its mount")
