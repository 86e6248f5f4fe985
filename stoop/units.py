"""Durations and sizes as a person writes them: text → number and back. Pure.

Every parser raises ValueError with what to write instead.
"""

from __future__ import annotations

import re

_DURATION_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_DURATION_UNITS |= {"h": 3600 * 10**9, "d": 86400 * 10**9}
_NUMBER = r"([0-9]{1,18})(?:\.([0-9]{1,9}))?"
_DURATION_PART = re.compile(rf"{_NUMBER}(ns|us|µs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_SIZE = re.compile(rf"{_NUMBER}\s*([a-z]*)")
_SIZE_UNITS = {"": 1, "b": 1}
_SIZE_UNITS |= {letter + tail: 1024**power for power, letter in enumerate("kmgt", 1) for tail in ("i", "ib")}
_SIZE_UNITS |= {letter + tail: 1000**power for power, letter in enumerate("kmgt", 1) for tail in ("", "b")}

MAX_DURATION_NS = 100 * 365 * 86400 * 10**9
"""A century: every sum with the clock stays within 64 bits."""

MAX_SIZE = 2**50
"""1 PiB: above it a size is a slip of the pen."""


def _scaled(whole: str, part: str, unit: int) -> int:
    """`whole.part` units, exactly: a float has but 53 bits."""
    return int(whole) * unit + int(part.ljust(9, "0")) * unit // 10**9


def parse_duration(text: str) -> int:
    """`60s`, `1h30m`, `30d` or `0` → nanoseconds."""
    text = text.strip().lower()
    if text == "0":
        return 0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration: write a number and a unit, such as 500ms, 60s, 5m, 1h or 30d")
    total = sum(_scaled(whole, part, _DURATION_UNITS[unit]) for whole, part, unit in _DURATION_PART.findall(text))
    if total > MAX_DURATION_NS:
        raise ValueError(f"{text!r} is too long: at most 36500d")
    return total


def format_duration(nanoseconds: int) -> str:
    """The shortest exact form with one unit: `60s`, `30d`, `0`."""
    if not nanoseconds:
        return "0"
    unit = max((u for u in _DURATION_UNITS if not nanoseconds % _DURATION_UNITS[u]), key=_DURATION_UNITS.__getitem__)
    return f"{nanoseconds // _DURATION_UNITS[unit]}{unit}"


def parse_size(text: str) -> int:
    """`256MiB`, `1Gi`, `10MB` or plain bytes → bytes. The letters' case does not matter."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[3] not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number and a unit, such as 64KiB, 256MiB or 1GiB")
    size = _scaled(match[1], match[2] or "", _SIZE_UNITS[match[3]])
    if size > MAX_SIZE:
        raise ValueError(f"{text!r} is too large: at most {format_size(MAX_SIZE)}")
    return size


def format_size(size: int) -> str:
    """The shortest exact form: `256MiB`, or bytes where no larger unit divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _SIZE_UNITS[unit.lower()]
        if size and not size % factor:
            return f"{size // factor}{unit}"
    return str(size)
