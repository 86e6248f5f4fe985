"""The log of a pod out of real files, and what a pod with a hostPath could put there instead."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from agent.jobs import LogJob, Result
from agent.work import crilog, log
from stoop.evidence.manifest import Manifest
from tests.work.conftest import Bench

pytestmark = pytest.mark.root

AT = b"2026-11-24T13:00:00.123456789Z stdout"
SECRET = b"root:secret\n"


def lines(*texts: str) -> bytes:
    """As a runtime writes them."""
    return b"".join(AT + b" F " + text.encode() + b"\n" for text in texts)


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """The log directory of a pod, with a container's in it, and a file that it must not lead to."""
    (tmp_path / "shadow").write_bytes(SECRET)
    made = tmp_path / "pods" / "shop_web_uid"
    (made / "app").mkdir(parents=True)
    return made


async def fetch(bench: Bench, pod: Path, **changes: Any) -> Result:
    """Do the job."""
    job = LogJob(**bench.common(()), directory=str(pod.parent), pod=pod.name, **changes)
    return await bench.workers.run(job, 20.0)


async def fetched(bench: Bench, pod: Path, **changes: Any) -> tuple[bytes, Manifest]:
    """The text that it kept."""
    result = await fetch(bench, pod, **changes)
    assert result.ok, result
    manifest, parts = bench.kept()[-1]
    return parts["log.txt"], manifest


async def test_over_rotated_and_packed_files_and_instances(bench: Bench, pod: Path) -> None:
    app = pod / "app"
    (app / "0.log").write_bytes(lines("first instance"))
    (app / "1.log.20261124-120000.gz").write_bytes(gzip.compress(lines("a")) + gzip.compress(lines("b")))
    (app / "1.log.20261124-130000").write_bytes(lines("c") + AT + b" P d, ")
    (app / "1.log").write_bytes(AT + b" F and on\n" + lines("e"))
    (app / "1.log.20261124-120000.gz.tmp").write_bytes(b"half")
    text, manifest = await fetched(bench, pod, lines=20)
    assert text == b"first instance\na\nb\nc\nd, and on\ne\n"
    (part,) = manifest.parts
    assert part.about["files"] == ["1.log", "1.log.20261124-130000", "1.log.20261124-120000.gz", "0.log"]
    assert part.about["container"] == "app"
    assert manifest.missing == ()
    assert (await fetched(bench, pod, lines=1))[0] == b"e\n"
    assert (await fetched(bench, pod, lines=2, attempt=0))[0] == b"first instance\n"


async def test_the_first_container_that_has_any(bench: Bench, pod: Path) -> None:
    for name, content in (("app", b""), ("proxy", lines("p")), ("zero", lines("z"))):
        (pod / name).mkdir(exist_ok=True)
        (pod / name / "0.log").write_bytes(content)
    assert (await fetched(bench, pod))[0] == b"p\n"
    assert (await fetched(bench, pod, containers=("zero", "proxy")))[0] == b"z\n"
    result = await fetch(bench, pod, containers=("gone", "app"))
    assert not result.ok
    assert "gone: its log directory" in result.reason
    assert (await fetched(bench, pod, containers=("zero",), others=True))[0] == b"z\n"
    assert (await fetched(bench, pod, containers=("gone", "app"), others=True))[0] == b"p\n"
    assert len(bench.kept()) == 4  # no bundle for nothing
    assert bench.leftovers() == []


async def test_the_end_of_the_text_comes_back_where_it_is_asked_for(bench: Bench, pod: Path) -> None:
    (pod / "app" / "0.log").write_bytes(lines("first", "second"))
    assert "text" not in (await fetch(bench, pod)).details
    assert (await fetch(bench, pod, tell=1000)).details["text"] == b"first\nsecond\n"
    assert (await fetch(bench, pod, tell=8)).details["text"] == b"\nsecond\n"


@pytest.mark.parametrize("how", ["link", "second name", "fifo", "device", "foreign", "directory", "directory link"])
async def test_what_is_no_log_of_the_kubelets(bench: Bench, pod: Path, how: str) -> None:
    file, secret = pod / "app" / "0.log", pod.parent.parent / "shadow"
    if how == "link":
        file.symlink_to(secret)
    elif how == "second name":
        file.hardlink_to(secret)
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "device":
        os.mknod(file, 0o20666, os.makedev(1, 5))  # /dev/zero
    elif how == "foreign":
        file.write_bytes(SECRET)
        os.chown(file, 65534, 65534)
    elif how == "directory":
        file.mkdir()
    else:
        (pod / "app").rmdir()
        elsewhere = pod.parent.parent / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "0.log").write_bytes(SECRET)
        (pod / "app").symlink_to(elsewhere)
    result = await fetch(bench, pod)
    assert not result.ok
    assert bench.kept() == []
    (pod / "proxy").mkdir()
    (pod / "proxy" / "0.log").write_bytes(lines("honest"))
    assert (await fetched(bench, pod))[0] == b"honest\n"


@pytest.mark.parametrize("name", ["", ".", "..", "../shop_web_uid", "a/b"])
async def test_a_pod_that_is_none(bench: Bench, pod: Path, name: str) -> None:
    (pod / "app" / "0.log").write_bytes(lines("x"))
    result = await fetch(bench, pod.parent / "none")
    assert not result.ok
    job = LogJob(**bench.common(()), directory=str(pod.parent), pod=name)
    result = await bench.workers.run(job, 20.0)
    assert (result.ok, "is no name" in result.reason) == (False, True)


async def test_huge_ones(bench: Bench, pod: Path) -> None:
    app = pod / "app"
    (app / "0.log.20261124-120000.gz").write_bytes(gzip.compress(bytes(log.MAX_UNPACKED + 10**6), 1))
    with (app / "0.log").open("wb") as file:
        file.truncate(100 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + lines(*(str(number) for number in range(1000))))
    text, manifest = await fetched(bench, pod, lines=3)
    assert text == b"997\n998\n999\n"
    text, manifest = await fetched(bench, pod, lines=2000, bytes=10_000, attempt=0)
    assert len(text) <= 10_000
    assert text.endswith(b"\n998\n999\n")
    assert any("older lines" in each.why for each in manifest.missing)
    (app / "0.log").unlink()
    text, manifest = await fetched(bench, pod)
    assert len(text) <= crilog.MAX_LINE + 1
    assert any("unpacks to more" in each.why for each in manifest.missing)


def put(path: bytes) -> None:
    """A log that is none."""
    Path(os.fsdecode(path)).write_bytes(lines("forged"))


async def test_hostile_names(bench: Bench, pod: Path) -> None:
    raw = os.fsencode(pod)
    for name in (b"\n\x1b[31m", b"\xff\xfe", b"x" * 255):
        os.mkdir(raw + b"/" + name)
        put(raw + b"/" + name + b"/0.log")
        put(raw + b"/app/" + name)
    (pod / "app" / "0.log").write_bytes(lines("honest"))
    assert (await fetched(bench, pod))[0] == b"honest\n"
