"""Where a container's upper directory is: of mount tables as the kernel writes them, and of each runtime's bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node.procfs import Procfs
from agent.node.uppers import Uppers, overlay_at
from stoop.pods import Upper
from tests.node.runtimes import CONTAINERD, CRIO, ID, PID, Node

REFERENCE = 7
BUNDLE = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}"
MERGED = "/var/lib/containers/storage/overlay/abc/merged"


def line(point: str, options: str, kind: str = "overlay", device: str = "0:61") -> str:
    return f"712 29 {device} / {point} rw,relatime shared:391 - {kind} overlay rw,lowerdir=/l/1:/l/2{options}\n"


OTHERS = line("/", "", "ext4", "8:1") + line("/run/other/rootfs", ",upperdir=/s/8/fs,workdir=/s/8/work", device="0:60")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    (tmp_path / f"proc/{REFERENCE}").mkdir()
    return made


def upper(node: Node, table: str) -> Upper:
    node.write(f"proc/{REFERENCE}/mountinfo", table)
    return Uppers(node.bundles(), Procfs(str(node.root / "proc")), REFERENCE, "/node").of(ID)


def rooted(config: Path, path: str) -> None:
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"root": {"path": path}}))


def test_of_containerd_and_remembered(node: Node) -> None:
    rooted(node.containerd(CONTAINERD), "rootfs")
    table = OTHERS + line(f"{BUNDLE}/rootfs", ",upperdir=/s/9/fs,workdir=/s/9/work,index=off") + OTHERS
    node.write(f"proc/{REFERENCE}/mountinfo", table)
    uppers = Uppers(node.bundles(), Procfs(str(node.root / "proc")), REFERENCE, "/node")
    assert uppers.of(ID) == Upper("/node/s/9/fs", "0:61")
    node.write(f"proc/{REFERENCE}/mountinfo", OTHERS)
    assert uppers.of(ID) == Upper("/node/s/9/fs", "0:61")


def test_of_crio_and_docker(node: Node) -> None:
    rooted(node.storage(CRIO), MERGED)
    assert upper(node, line(MERGED, ",upperdir=/o/abc/diff,workdir=/o/abc/work")) == Upper("/node/o/abc/diff", "0:61")
    other = Node(node.root / "other")
    (other.root / f"proc/{REFERENCE}").mkdir()
    other.docker({"Config": {}, "State": {"Pid": PID}})
    rooted(other.containerd({}, space="moby"), "/var/lib/docker/overlay2/abc/merged")
    table = line("/var/lib/docker/overlay2/abc/merged", ",upperdir=/var/lib/docker/overlay2/abc/diff")
    assert upper(other, table) == Upper("/node/var/lib/docker/overlay2/abc/diff", "0:61")


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (OTHERS, "is not mounted"),
        ("", "is not mounted"),
        (line(f"{BUNDLE}/rootfs", ""), "no overlay with an upper directory"),
        (line(f"{BUNDLE}/rootfs", ",upperdir=diff"), "of a full path"),
        (line(f"{BUNDLE}/rootfs", ",upperdir=/a,upperdir=/b"), "no overlay with an upper directory"),
        (line(f"{BUNDLE}/rootfs", ",upperdir=/a", "ext4"), "no overlay"),
        (line(f"{BUNDLE}/rootfs", ",upperdir=/a") + line(f"{BUNDLE}/rootfs", ",upperdir=/b"), "more than once"),
        (line(f"{BUNDLE}/rootfs/below", ",upperdir=/a"), "is not mounted"),
        # The part of the file system that is mounted may be called like the place where another one is.
        (line("/x", ",upperdir=/a").replace(" / ", f" {BUNDLE}/rootfs ", 1), "is not mounted"),
    ],
)
def test_what_can_t_be_told(node: Node, table: str, why: str) -> None:
    rooted(node.containerd(CONTAINERD), "rootfs")
    told = upper(node, table)
    assert (told.directory, told.device) == ("", "")
    assert why in told.why


def test_without_a_root_a_table_or_a_bundle(node: Node) -> None:
    assert "no runtime's files" in upper(node, OTHERS).why
    node.containerd(CONTAINERD)
    assert "does not say where" in upper(node, OTHERS).why
    rooted(node.containerd(CONTAINERD), "rootfs")
    (node.root / f"proc/{REFERENCE}/mountinfo").unlink()
    made = Uppers(node.bundles(), Procfs(str(node.root / "proc")), REFERENCE)
    assert "can't be read" in made.of(ID).why
    node.in_cgroup("/system.slice/cron.service")
    assert "is not in container" in made.of(ID).why


def test_names_as_the_kernel_escapes_them() -> None:
    table = line("/run/a\\040b\\134c\\012/rootfs", ",upperdir=/s/a\\040b\\011/fs").encode()
    assert overlay_at(table, b"/run/a b\\c\n/rootfs") == Upper("/s/a b\t/fs", "0:61")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_is_in_a_table(before: bytes, after: bytes) -> None:
    told = overlay_at(before + b"\n" + line("/p", ",upperdir=/u").encode() + after, b"/p")
    assert (told.directory, told.device) == ("/u", "0:61") or told.why
