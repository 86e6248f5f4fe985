"""Memory of real processes: by kind of region, bounded, only what is there, and never another program's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.jobs import Whom
from agent.node.host import LinuxHost
from agent.work.memory import KINDS, Region, chosen, kinds_of, parse_maps
from tests.real.conftest import Process, Spawn, line, say
from tests.work.conftest import Bench, whom

DEADLINE_S = 30.0
MIB = 2**20

MAPS = b"""\
55d0c0000000-55d0c0001000 r-xp 00000000 08:01 131 /usr/bin/x
55d0c0001000-55d0c0002000 rw-p 00001000 08:01 131 /usr/bin/x
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000001000-7f0000002000 rw-s 00000000 00:01 9 /memfd:a b (deleted)
7f0000002000-7f0000003000 r-xp 00000000 00:01 9 /memfd:a\\012b (deleted)
7f0000003000-7f0000004000 r--p 00000000 08:01 131 /etc/x
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
7ffc00021000-7ffc00023000 r--p 00000000 00:00 0 [vvar]
nonsense
"""


def test_kinds() -> None:
    found = [(region.name[-4:], sorted(kinds_of(region))) for region in parse_maps(MAPS)]
    assert found == [
        ("0000", ["code"]),
        ("1000", ["data"]),
        ("0000", ["heap"]),
        ("0000", ["anonymous", "unbacked"]),
        ("1000", ["shared"]),
        ("2000", ["code", "unbacked"]),
        ("3000", ["file"]),
        ("0000", ["stack"]),
        ("1000", []),
    ]


def test_chosen_in_the_order_wanted() -> None:
    regions = parse_maps(MAPS)
    assert [region.begin for region in chosen(regions, ("unbacked", "heap", "anonymous"))] == [
        0x7F0000000000,
        0x7F0000002000,
        0x55D0C1000000,
    ]
    assert len(chosen(regions, tuple(KINDS))) == 8
    assert chosen(regions, ()) == []


def test_any_bytes_are_regions_or_none() -> None:
    assert parse_maps(b"\xff\n\n0-0 rwxp 0 0:0 0\n") == [Region(0, 0, "rwxp", 0, b"")]


# Maps 64 MiB, writes a mark into every 16th page of the first 4, and tells where; on a line it runs another program.
MARKS = """
import ctypes, mmap, os, sys
area = mmap.mmap(-1, 64 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
for page in range(0, 1024, 16):
    area[page * 4096 : page * 4096 + 8] = b"MARK%04d" % page
print(address, flush=True)
sys.stdin.readline()
os.execl("/bin/sleep", "sleep", "600")
"""


@pytest.fixture
def marked(spawn: Spawn) -> tuple[Process, int]:
    process = spawn(sys.executable, "-c", MARKS)
    return process, int(line(process))


async def taken(bench: Bench, job: Any) -> tuple[Any, dict[str, bytes]]:
    result = await bench.workers.run(job, DEADLINE_S)
    assert result.ok, result
    return bench.kept()[-1]


def index(parts: dict[str, bytes], pid: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(parts[f"memory/{pid}.json"])
    return found


def at(parts: dict[str, bytes], pid: int, address: int, length: int) -> bytes:
    """What a bundle has of an address; b"" for nothing."""
    for region in index(parts, pid):
        offset = 0
        for begin, size in region["stretches"]:
            inside = address - int(begin, 16)
            if 0 <= inside < size:
                return parts[region["part"]][offset + inside : offset + inside + length]
            offset += size
    return b""


async def test_what_is_there_is_read_and_nothing_else(
    bench: Bench, marked: tuple[Process, int], host: LinuxHost
) -> None:
    process, address = marked
    before = resident(process.pid)
    _, parts = await taken(bench, bench.memory(whom(process.pid, host), regions=("shared", "anonymous")))
    for page in range(0, 1024, 16):
        assert at(parts, process.pid, address + page * 4096, 8) == b"MARK%04d" % page
    assert at(parts, process.pid, address + 4096, 8) == b""
    # Pages that were not there were not made by reading.
    assert resident(process.pid) - before < 512
    sizes = [len(content) for name, content in parts.items() if name.endswith(".bin")]
    assert sum(sizes) < 32 * MIB


def resident(pid: int) -> int:
    """In KiB (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def test_bounded_by_bytes(bench: Bench, big: Callable[[int], Process], host: LinuxHost) -> None:
    process = big(50)
    manifest, parts = await taken(bench, bench.memory(whom(process.pid, host), bytes=10 * MIB))
    sizes = [len(content) for name, content in parts.items() if name.endswith(".bin")]
    assert 9 * MIB < sum(sizes) <= 10 * MIB
    assert any("the bound was reached" in missing.why for missing in manifest.missing)


# 64 GiB of addresses cost nothing to make, and must cost little to look at.
SPARSE = """
import mmap, sys
area = mmap.mmap(-1, 64 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
area[32 << 30] = 1
print("ready", flush=True)
sys.stdin.read()
"""


async def test_64_gib_of_nothing(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    process = spawn(sys.executable, "-c", SPARSE)
    assert line(process) == "ready"
    manifest, parts = await taken(bench, bench.memory(whom(process.pid, host), regions=("anonymous",)))
    assert manifest.notes["memory_bytes"] < 64 * MIB
    assert "hung" not in manifest.notes
    assert any(int(region["end"], 16) - int(region["begin"], 16) >= 64 << 30 for region in index(parts, process.pid))


async def test_a_page_that_goes_meanwhile_is_a_gap(bench: Bench, marked: tuple[Process, int], host: LinuxHost) -> None:
    """An exec between two looks: nothing of the new program is read through what was opened before."""
    process, _ = marked
    meant = whom(process.pid, host)
    say(process, "go")
    manifest, parts = await taken(bench, bench.memory(meant, regions=("shared", "anonymous", "heap", "stack")))
    assert manifest.notes["memory_bytes"] >= 0
    for region in index(parts, process.pid):
        assert len(parts[region["part"]]) == sum(size for _, size in region["stretches"])


async def test_memory_of_several_processes(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    targets = [spawn("sleep", "600") for _ in range(3)]
    job = bench.memory(*(whom(target.pid, host) for target in targets), regions=("stack",))
    _, parts = await taken(bench, job)
    for target in targets:
        (region,) = index(parts, target.pid)
        assert region["path"] == "[stack]"
        assert b"sleep\x00600\x00" in parts[region["part"]]


async def test_a_killed_target(bench: Bench, big: Callable[[int], Process], host: LinuxHost) -> None:
    process = big(20)
    meant = whom(process.pid, host)
    process.kill()
    process.wait()
    manifest, parts = await taken(bench, bench.memory(meant, Whom(2**22, 1)))
    assert parts == {}
    assert any(missing.what == "the target" for missing in manifest.missing)


@pytest.mark.parametrize("mib", [8, 256])
async def test_workers_memory_does_not_grow_with_the_capture(
    bench: Bench, big: Callable[[int], Process], host: LinuxHost, mib: int
) -> None:
    """Peak of all processes that the nursery had: the largest child's, as the kernel counts it when it is reaped."""
    process = big(mib)
    peaks: list[int] = []
    workers = bench.workers

    def look(_: str) -> None:
        for each in workers.status()["running"]:
            status = Path(f"/proc/{each['pid']}/status").read_text()
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]))

    base = resident(workers.pid)
    result = await workers.run(bench.memory(whom(process.pid, host)), DEADLINE_S, progress=look)
    assert result.ok
    assert result.details["bytes"] > mib * MIB
    assert peaks
    assert max(peaks) - base <= 16 * 1024
