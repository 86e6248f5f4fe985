"""Docker's log behind the kubelet's link: files as Docker 20.10 wrote them, and what a pod could have put there."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.jobs import LogJob, LogTail, Result
from agent.node.host import LinuxHost
from agent.work.crilog import Tail
from agent.work.dockerlog import DockerFile, DockerReader, newest_first
from stoop.evidence.manifest import Manifest
from tests.real.conftest import Spawn
from tests.work.conftest import Bench, whom
from tests.work.snapshots import missing, taken

root = pytest.mark.root

ID, OTHER = "7833" * 16, "abcd" * 16
POD = "shop_web_1234-uid"
SECRET = b"a secret of another pod\n"


def docker_lines(*texts: str) -> bytes:
    """As Docker's json-file driver writes them."""
    told = ({"log": text, "stream": "stdout", "time": "2026-11-24T16:20:44.056696147Z"} for text in texts)
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in told)


class Node:
    """The kubelet's directory of a pod with a link in it, and Docker's of two containers."""

    def __init__(self, directory: Path) -> None:
        self.docker = directory / "docker" / "containers"
        self.pod = directory / "pods" / POD
        (self.pod / "app").mkdir(parents=True)
        self.make(ID, "1234-uid", "app")
        self.make(OTHER, "other-uid", "app")
        self.link = self.pod / "app" / "0.log"
        self.log(OTHER).write_bytes(docker_lines(SECRET.decode()))
        self.link.symlink_to(f"/var/lib/docker/containers/{ID}/{ID}-json.log")

    def make(self, container_id: str, uid: str, name: str) -> None:
        """A container's directory, with the modes that Docker gives it."""
        labels = {"io.kubernetes.pod.uid": uid, "io.kubernetes.container.name": name, "maintainer": "x"}
        made = self.docker / container_id
        made.mkdir(parents=True, mode=0o710)
        (made / "config.v2.json").write_text(json.dumps({"ID": container_id, "Config": {"Labels": labels}}))

    def log(self, container_id: str = ID, end: str = "") -> Path:
        """The path of its log file."""
        return self.docker / container_id / f"{container_id}-json.log{end}"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def fetch(bench: Bench, node: Node, **changes: Any) -> Result:
    common: dict[str, Any] = {"directory": str(node.pod.parent), "pod": POD, "docker": str(node.docker)}
    return await bench.workers.run(LogJob(**bench.common(()), **(common | changes)), 20.0)


async def fetched(bench: Bench, node: Node, **changes: Any) -> tuple[bytes, Manifest]:
    result = await fetch(bench, node, **changes)
    assert result.ok, result
    manifest, parts = bench.kept()[-1]
    return parts["log.txt"], manifest


# ---------------------------------------------------------------- names and lines


def test_names() -> None:
    names = [f"{ID}-json.log{end}" for end in ("", ".1", ".10.gz", ".2.gz", ".2", ".0", ".x", ".1.gz.tmp", ".gz")]
    assert newest_first([*names, f"{OTHER}-json.log", "config.v2.json"], ID) == [
        DockerFile(0, names[0], False),
        DockerFile(1, names[1], False),
        DockerFile(2, names[4], False),
        DockerFile(10, names[2], True),
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_lines_however_they_are_cut(size: int) -> None:
    raw = docker_lines("one\n", "a long ", "line\n", '\ttab "q" <&> \ufffd\n', "\x1b[31mred\n") + b'{"log":"unfini'
    tail = Tail(100, 10_000)
    reader = DockerReader(tail)
    for at in range(0, len(raw), size):
        reader.feed(raw[at : at + size])
    reader.end()
    assert tail.text() == 'one\na long line\n\ttab "q" <&> \ufffd\n\x1b[31mred\n'.encode() + b'{"log":"unfini\n'
    assert (tail.lines, reader.odd, reader.long) == (5, 1, 0)


@given(st.binary(max_size=300))
def test_any_line_is_kept(raw: bytes) -> None:
    """What Docker did not write is text as it is, and counted."""
    raw = raw.replace(b"{", b"")
    tail = Tail(1000, 10_000)
    reader = DockerReader(tail)
    reader.feed(raw)
    reader.end()
    lines = [line for line in raw.split(b"\n") if line]
    assert (tail.text(), reader.odd) == (b"".join(line + b"\n" for line in lines), len(lines))


# ---------------------------------------------------------------- files


@root
async def test_over_rotated_and_packed_files_and_instances(bench: Bench, node: Node) -> None:
    first = "f1" * 32
    node.make(first, "1234-uid", "app")
    node.log(first).write_bytes(docker_lines("of the first instance\n"))
    node.link.rename(node.pod / "app" / "1.log")
    node.link.symlink_to(f"/mnt/data/docker/containers/{first}/{first}-json.log")
    node.log(end=".2.gz").write_bytes(gzip.compress(docker_lines("a\n", "b\n")))
    node.log(end=".1").write_bytes(docker_lines("c\n", "d, "))
    node.log(end=".1.gz").write_bytes(b"half of it")
    node.log().write_bytes(docker_lines("and on\n", "e\n"))
    text, manifest = await fetched(bench, node)
    assert text == b"of the first instance\na\nb\nc\nd, and on\ne\n"
    (part,) = manifest.parts
    assert part.about["files"] == [f"{ID}-json.log{end}" for end in ("", ".1", ".2.gz")] + [f"{first}-json.log"]
    assert (manifest.missing, part.about["container"]) == ((), "app")
    assert (await fetched(bench, node, lines=1))[0] == b"e\n"
    assert (await fetched(bench, node, attempt=0))[0] == b"of the first instance\n"


@root
async def test_the_end_of_a_large_one(bench: Bench, node: Node) -> None:
    node.log().write_bytes(docker_lines(*(f"line {number}\n" for number in range(100_000))))
    text, _ = await fetched(bench, node, lines=3)
    assert text == b"line 99997\nline 99998\nline 99999\n"


@root
async def test_in_a_snapshot(bench: Bench, node: Node, spawn: Spawn, host: LinuxHost) -> None:
    raw = docker_lines("one\n", "two\n")
    node.log().write_bytes(raw)
    tail = LogTail(str(node.pod.parent), f"{POD}/app/", docker=str(node.docker))
    target = spawn("sleep", "600")
    _, parts = await taken(bench, bench.snapshot(whom(target.pid, host), log=tail))
    assert parts["log.txt"] == raw


HARMS = [
    "another pod's",
    "another name",
    "no labels",
    "no config",
    "config is a link",
    "config is huge",
    "others may write",
    "others may write above",
    "another user's",
    "the log is a link",
    "the log has two names",
    "the log is a fifo",
    "the directory is a link",
    "a link to elsewhere",
    "a link upwards",
]


def harm(node: Node, how: str) -> None:
    """Make the link's end something else than the pod's own log."""
    home, config, log = node.docker / ID, node.docker / ID / "config.v2.json", node.log()
    shadow = node.docker.parent / "shadow"
    shadow.write_bytes(SECRET)
    log.write_bytes(docker_lines("honest\n"))
    if how == "another pod's":
        node.link.unlink()
        node.link.symlink_to(f"/var/lib/docker/containers/{OTHER}/{OTHER}-json.log")
    elif how == "another name":
        config.write_text(config.read_text().replace('"app"', '"proxy"'))
    elif how == "no labels":
        config.write_text('{"Config": {}}')
    elif how == "no config":
        config.unlink()
    elif how == "config is a link":
        config.rename(node.docker / "config")
        config.symlink_to(node.docker / "config")
    elif how == "config is huge":
        os.truncate(config, 2**31)
    elif how == "others may write":
        home.chmod(0o777)
    elif how == "others may write above":
        node.docker.chmod(0o777)
    elif how == "another user's":
        os.chown(log, 65534, 65534)
    elif how == "the directory is a link":
        home.rename(node.docker.parent / "moved")
        home.symlink_to(node.docker.parent / "moved")
    elif how.startswith("a link"):
        node.link.unlink()
        node.link.symlink_to(shadow if how == "a link to elsewhere" else f"../containers/{ID}/{ID}-json.log")
    else:
        log.unlink()
        if how == "the log is a link":
            log.symlink_to(shadow)
        elif how == "the log has two names":
            log.hardlink_to(shadow)
        else:
            os.mkfifo(log)


@root
@pytest.mark.parametrize("how", HARMS)
async def test_what_is_not_the_pods_own_log(bench: Bench, node: Node, spawn: Spawn, host: LinuxHost, how: str) -> None:
    """Refused and told, for the log by itself and in a snapshot; nothing of another's is kept."""
    harm(node, how)
    result = await fetch(bench, node)
    assert not result.ok
    assert "app/0.log" in result.reason
    assert bench.kept() == []
    tail = LogTail(str(node.pod.parent), f"{POD}/app/", docker=str(node.docker))
    target = spawn("sleep", "600")
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host), log=tail))
    assert ("log.txt" in parts, "log.txt" in missing(manifest)) == (False, True)
