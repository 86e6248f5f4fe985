"""Settings as a person writes them: text → value and back. Pure.

YAML and the environment both hand in text, so `"2803"` and `2803` mean the same (as in Talon), and `mode: off` stays
the word that was written (YAML 1.1 would make it a boolean). Every parser raises ValueError with what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

import msgspec

_DURATION_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_DURATION_UNITS |= {"h": 3600 * 10**9, "d": 86400 * 10**9}
_NUMBER = r"([0-9]{1,18})(?:\.([0-9]{1,9}))?"
_DURATION_PART = re.compile(rf"{_NUMBER}(ns|us|µs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_SIZE = re.compile(rf"{_NUMBER}\s*([a-z]*)")
_SIZE_UNITS = {"": 1, "b": 1}
_SIZE_UNITS |= {letter + tail: 1024**power for power, letter in enumerate("kmgt", 1) for tail in ("i", "ib")}
_SIZE_UNITS |= {letter + tail: 1000**power for power, letter in enumerate("kmgt", 1) for tail in ("", "b")}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})

MAX_DURATION_NS = 100 * 365 * 86400 * 10**9
"""A century: every sum with the clock stays within 64 bits."""

MAX_SIZE = 2**50
"""1 PiB: above it a size is a slip of the pen."""


class Kind(msgspec.Struct, frozen=True):
    """How one kind of setting is read and shown. `many`: a list, each item read by `parse`."""

    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str
    many: bool = False


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


def parse_bool(text: str) -> bool:
    """`true`, `yes`, `on`, `1` or `false`, `no`, `off`, `0`."""
    word = text.strip().lower()
    if word not in _TRUE and word not in _FALSE:
        raise ValueError(f"{text!r} is neither true nor false: write one of the two")
    return word in _TRUE


def format_bool(value: bool) -> str:
    """`true` or `false`."""
    return "true" if value else "false"


def parse_mode(text: str) -> int:
    """File mode bits in octal: `0600`, `600`, `0o600`. They are octal without a leading zero too."""
    digits = text.strip().lower().removeprefix("0o")
    if not re.fullmatch(r"[0-7]{1,5}", digits) or int(digits, 8) > 0o777:
        raise ValueError(f'{text!r} is not a file mode: write octal digits in quotes, such as "0600" or "0660"')
    return int(digits, 8)


def format_mode(mode: int) -> str:
    """Four octal digits."""
    return f"{mode:04o}"


def parse_text(text: str) -> str:
    """Any text without a NUL (no path, name or address holds one)."""
    if "\0" in text:
        raise ValueError("it holds a NUL byte")
    return text


def parse_address(text: str) -> str:
    """An IP address, or `localhost`. Names are not resolved: what is listened on must not depend on a name server."""
    word = text.strip().removeprefix("[").removesuffix("]")
    if word.lower() == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(word))
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address: write 127.0.0.1, or 0.0.0.0 for every interface") from error


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole decimal numbers from `low` to `high`."""

    def parse(text: str) -> int:
        digits = text.strip().replace("_", "")
        # Longer than any limit here: int() of a million digits would take seconds.
        number = int(digits) if re.fullmatch(r"[+-]?[0-9]{1,19}", digits) else None
        if number is None or not low <= number <= high:
            raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return number

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """A parser for one of these words, in any case."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError(f"{text!r} is not known: write one of {', '.join(words)}")
        return word

    return parse


MAX_COUNT = 1_000_000
"""Limits on targets above a million bound nothing."""

MAX_UID = 2**32 - 2
"""(uid_t)-1 means "no one" to the kernel (chown(2))."""

KINDS: dict[str, Kind] = {
    "str": Kind(parse_text),
    "strs": Kind(parse_text, many=True),
    "bool": Kind(parse_bool, format_bool),
    "count": Kind(whole_number(0, MAX_COUNT)),
    "port": Kind(whole_number(0, 65535)),
    "uids": Kind(whole_number(0, MAX_UID), many=True),
    "mode": Kind(parse_mode, format_mode),
    "duration": Kind(parse_duration, format_duration),
    "size": Kind(parse_size, format_size),
    "address": Kind(parse_address),
}
"""Every kind of setting by name. Enumerations bring their own words (`choice`)."""
