"""The control files of `container:limit`: what to write into which, by the hierarchy that is there. Pure.

A change is about one *entry* of a file: the whole of it (`pids.max`), or what it says of one device (`io.max`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

PERIOD_US = 100_000
"""The kernel's own period of CPU bandwidth, which the kubelet uses too (sched-bwc.rst)."""

SMALLEST_QUOTA_US = 1000
"""The kernel takes no quota below 1 ms."""

PAGE = 4096
"""Memory limits are whole pages: what is written must be what is read again."""

UNLIMITED = 2**63
"""Above every limit that can be written: what `max` and v1's -1 and 0 count as."""

_CORES = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?(m|%|)")
_THOUSANDTHS = {"": 1000, "m": 1, "%": 10}


class Limits(msgspec.Struct, frozen=True):
    """What is wanted, in the kernel's units; 0 for what is not to be limited."""

    cores_thousandths: int = 0
    pids: int = 0
    memory_bytes: int = 0
    io_bytes_per_s: int = 0


class Change(msgspec.Struct, frozen=True):
    """One entry of one control file. `controller`: of v1, "" for v2. `device`: `MAJ:MIN` where each has a line.

    `new` is what is written, `old` what it was: in the words of the kernel, without the device.
    """

    controller: str
    file: str
    device: str
    new: str
    old: str = ""

    def line(self, value: str) -> str:
        """What to write so that the entry has this value."""
        return f"{self.device} {value}" if self.device else value


def parse_cores(text: str) -> int:
    """`0.5`, `500m` or `50%` of one core → thousandths of a core. Raises ValueError with what to write instead."""
    match = _CORES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an amount of CPU: write cores, such as 0.1, 100m or 10%")
    whole, part, unit = int(match[1]), (match[2] or "").ljust(3, "0"), match[3]
    thousandths = (whole * 1000 + int(part)) * _THOUSANDTHS[unit] // 1000
    if not thousandths:
        raise ValueError(f"{text!r} is no CPU at all: the least is 1m (`container:freeze` stops it)")
    return thousandths


def wanted(limits: Limits, *, v2: bool, devices: Sequence[str]) -> Iterator[Change]:
    """What to write, with `old` still empty. Memory is left out without v2: the caller refuses that before."""
    if limits.cores_thousandths:
        quota = max(SMALLEST_QUOTA_US, limits.cores_thousandths * PERIOD_US // 1000)
        yield (
            Change("", "cpu.max", "", f"{quota} {PERIOD_US}")
            if v2
            else Change("cpu", "cpu.cfs_quota_us", "", str(quota))
        )
    if limits.pids:
        yield Change("" if v2 else "pids", "pids.max", "", str(limits.pids))
    if limits.memory_bytes and v2:
        yield Change("", "memory.high", "", str(max(PAGE, limits.memory_bytes // PAGE * PAGE)))
    if limits.io_bytes_per_s:
        rate = limits.io_bytes_per_s
        for device in devices:
            if v2:
                yield Change("", "io.max", device, f"rbps={rate} wbps={rate}")
            else:
                yield Change("blkio", "blkio.throttle.read_bps_device", device, str(rate))
                yield Change("blkio", "blkio.throttle.write_bps_device", device, str(rate))


def now_of(change: Change, content: str) -> str:
    """What the file says of this entry now, in the words in which it would be written."""
    if not change.device:
        return " ".join(content.split())
    for line in content.splitlines():
        device, _, rest = line.partition(" ")
        if device == change.device:
            return _rates(rest) if change.file == "io.max" else rest.strip()
    return "rbps=max wbps=max" if change.file == "io.max" else "0"


def is_tighter(change: Change, now: str) -> bool:
    """Whether what is there limits as much as ours would, or more."""
    return all(there <= ours for there, ours in zip(_amounts(now, change), _amounts(change.new, change), strict=True))


def _rates(rest: str) -> str:
    """The two of `io.max` that are ours; the numbers of operations are not."""
    words = dict(word.split("=", 1) for word in rest.split() if "=" in word)
    return f"rbps={words.get('rbps', 'max')} wbps={words.get('wbps', 'max')}"


def _amounts(text: str, change: Change) -> tuple[float, ...]:
    if change.file == "cpu.max":
        quota, _, period = text.partition(" ")
        return (_amount(quota) / (int(period) if period.isdigit() and int(period) else PERIOD_US),)
    if change.file == "io.max":
        return tuple(_amount(word.partition("=")[2]) for word in text.split())
    return (_amount(text, zero_is_none=bool(change.device)),)


def _amount(word: str, *, zero_is_none: bool = False) -> int:
    number = int(word) if word.isdigit() else UNLIMITED  # `max`, and v1's -1
    return UNLIMITED if zero_is_none and not number else number
