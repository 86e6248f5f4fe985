"""evidence:memory: what processes have in memory, by kind of region, bounded, streamed.

Only pages that are there are read, as /proc/PID/pagemap tells: to read a page that is not would make it, in the target,
and a mapping of any size costs nothing to make. /proc/PID/mem is opened once: after an exec it reads nothing, never
another program's memory (proc(5)).
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from agent.jobs import NICE, VOLATILE, MemoryJob
from agent.node.procfs import text
from agent.work.held import Process, hold_all
from agent.work.process import MAPS_BYTES
from agent.work.telling import Teller
from stoop.errors import TargetGone

KINDS = {
    "unbacked": "executable memory that no file on disk backs: injected code, memfd, deleted files",
    "heap": "the heap",
    "stack": "the first thread's stack (those of others are anonymous)",
    "data": "private, writable mappings of files: a program's variables",
    "anonymous": "memory that belongs to no file",
    "shared": "mappings shared with others",
    "code": "executable mappings of files",
    "file": "other mappings of files",
}

PAGE = mmap.PAGESIZE
CHUNK = 256 * 1024
MAX_REGIONS = 4096
"""Regions of one job, each a part."""

MAX_RUNS = 4096
"""Runs of present pages told of one region; the rest of a more scattered one is left out, and told."""

_PAGEMAP_BYTES = 64 * 1024
_ENTRY = 8
_TOP_BYTE = _ENTRY - 1 if sys.byteorder == "little" else 0
_PRESENT = re.compile(rb"[\x40-\xff]+")
# Bits 63 (present) and 62 (swapped) of an entry (admin-guide/mm/pagemap.rst), in its highest byte.

_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ([rwxsp-]{4}) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+) *(.*)")


class Region(NamedTuple):
    """One line of /proc/PID/maps. `path`: as the kernel says it; a target can choose it."""

    begin: int
    end: int
    rights: str
    inode: int
    path: bytes

    @property
    def name(self) -> str:
        """Its place: what its part is named by."""
        return f"{self.begin:012x}"


def parse_maps(data: bytes) -> list[Region]:
    """Parse /proc/PID/maps (proc(5)): lines that are none are left out."""
    matches = (_LINE.fullmatch(line) for line in data.split(b"\n"))
    return [
        Region(int(match[1], 16), int(match[2], 16), match[3].decode(), int(match[4]), match[5])
        for match in matches
        if match is not None
    ]


def kinds_of(region: Region) -> frozenset[str]:
    """Which kinds it is of; none for what the kernel itself put there."""
    if region.path.startswith((b"[vvar", b"[vsyscall", b"[vdso", b"[uprobes")):
        return frozenset()
    executable = "x" in region.rights
    if region.inode == 0:
        kind = {b"[heap]": "heap", b"[stack]": "stack"}.get(region.path, "anonymous")
        kinds = {"shared"} if region.rights.endswith("s") else {kind}
    elif region.rights.endswith("s"):
        kinds = {"shared"}
    elif executable:
        kinds = {"code"}
    else:
        kinds = {"data" if "w" in region.rights else "file"}
    if executable and (region.inode == 0 or region.path.endswith(b" (deleted)") or region.path.startswith(b"/memfd:")):
        kinds.add("unbacked")
    return frozenset(kinds)


def chosen(regions: list[Region], wanted: tuple[str, ...]) -> list[Region]:
    """Those of the wanted kinds, in the order in which the kinds are wanted, and by address within one."""
    found: dict[Region, None] = {}
    for kind in wanted:
        found |= dict.fromkeys(region for region in regions if kind in kinds_of(region))
    return list(found)


def read(teller: Teller, job: MemoryJob, fds: tuple[int, ...]) -> None:
    """Read the memory of a job's processes. Raises TargetGone when none of them is left."""
    held = hold_all(teller, job, fds)
    if not held:
        raise TargetGone("none of its processes is left")
    os.nice(NICE)
    _Memory(teller, job).read(held)
    teller.phase(VOLATILE)


class _Memory:
    def __init__(self, teller: Teller, job: MemoryJob) -> None:
        self._teller = teller
        self._job = job
        self._left = job.bytes
        self._regions = 0
        self._buffer = bytearray(CHUNK)

    def read(self, processes: list[Process]) -> None:
        """All that is wanted of each, in order, until the bound."""
        for held in processes:
            if self._left < PAGE or self._regions >= MAX_REGIONS:
                self._teller.lacks(f"memory of {held.pid}", "the bound was reached before its turn came")
                continue
            try:
                self._process(held)
            except OSError as error:
                self._teller.lacks(f"memory of {held.pid}", f"{error.filename or 'reading'}: {error.strerror}")
            if held.ended():
                self._teller.lacks(f"memory of {held.pid}", "it exited while it was read")
        self._teller.notes["memory_bytes"] = self._job.bytes - self._left

    def _process(self, held: Process) -> None:
        if not self._teller.may(f"{held.pid}/maps"):
            return
        data, cut = held.read("maps", MAPS_BYTES)
        if cut:
            self._teller.lacks(f"maps of {held.pid}", f"cut after {MAPS_BYTES} bytes")
        self._teller.whole(f"memory/{held.pid}.maps", data)
        mem = os.open("mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.directory)
        try:
            index = [self._region(held, mem, region) for region in chosen(parse_maps(data), self._job.regions)]
        finally:
            os.close(mem)
        told = [entry for entry in index if entry is not None]
        self._teller.whole(f"memory/{held.pid}.json", msgspec.json.encode(told))

    def _region(self, held: Process, mem: int, region: Region) -> dict[str, Any] | None:
        """Read one region; what the index tells of it: which stretches of memory its part holds, one after another."""
        name = f"memory/{held.pid}/{region.name}.bin"
        if not self._teller.may(f"{held.pid}/pagemap/{region.name}"):
            return None
        if self._regions >= MAX_REGIONS or self._left < PAGE:
            self._teller.lacks(name, "the bound was reached before its turn came")
            return None
        runs, cut = self._runs(held, region)
        if not runs:
            return None
        if cut:
            self._teller.lacks(name, f"only its first {len(runs)} stretches: {cut}")
        self._regions += 1
        size = sum(length for _, length in runs)
        self._left -= size
        entry = {
            "begin": f"{region.begin:#x}",
            "end": f"{region.end:#x}",
            "rights": region.rights,
            "path": text(region.path),
            "kinds": sorted(kinds_of(region)),
            "part": name,
            "stretches": [(f"{begin:#x}", length) for begin, length in runs],
        }
        if self._teller.may(f"{held.pid}/mem/{region.name}") and self._teller.begin(name, size):
            for begin, length in runs:
                self._copy(mem, begin, length)
            self._teller.end()
        return entry

    def _runs(self, held: Process, region: Region) -> tuple[list[tuple[int, int]], str]:
        """(address, length) of what is there, within what is left; and why it is not all, or ""."""
        runs: list[tuple[int, int]] = []
        left = self._left // PAGE * PAGE
        for begin, length in _present(held, region):
            if runs and sum(runs[-1]) == begin:
                previous = runs.pop()
                begin, length = previous[0], previous[1] + length
                left += previous[1]
            if length > left:
                if left:
                    runs.append((begin, left))
                return runs, "the bound was reached"
            if len(runs) >= MAX_RUNS:
                return runs, "it is too scattered"
            runs.append((begin, length))
            left -= length
        return runs, ""

    def _copy(self, mem: int, begin: int, length: int) -> None:
        view = memoryview(self._buffer)
        at, end = begin, begin + length
        while at < end:
            want = min(CHUNK, end - at)
            got = _read(mem, view[:want], at)
            if got:
                self._teller.piece(view[:got])
            elif want > PAGE:
                got = self._page_by_page(mem, view, at, want)
            else:
                self._teller.gap(want)
                got = want
            at += got

    def _page_by_page(self, mem: int, view: memoryview, at: int, length: int) -> int:
        """A stretch in which a page could not be read: the others all the same."""
        for offset in range(0, length, PAGE):
            got = _read(mem, view[:PAGE], at + offset)
            if got:
                self._teller.piece(view[:got])
            self._teller.gap(PAGE - got)
        return length


def _read(mem: int, into: memoryview, address: int) -> int:
    """How many bytes could be read; 0 for none (unmapped since, or a device's)."""
    try:
        return os.preadv(mem, [into], address)
    except OSError:
        return 0


def _present(held: Process, region: Region) -> Iterator[tuple[int, int]]:
    """(address, length) of each run of pages that are in memory or swapped out. Raises OSError."""
    fd = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.directory)
    try:
        at, end = region.begin // PAGE * _ENTRY, region.end // PAGE * _ENTRY
        while at < end:
            data = os.pread(fd, min(_PAGEMAP_BYTES, end - at), at)
            if not data:
                return  # it has ended, or run another program
            tops = data[_TOP_BYTE::_ENTRY]
            base = at // _ENTRY
            for match in _PRESENT.finditer(tops):
                yield (base + match.start()) * PAGE, (match.end() - match.start()) * PAGE
            at += len(data)
    finally:
        os.close(fd)
