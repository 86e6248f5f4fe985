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

from stoop.units import format_duration, format_size, parse_duration, parse_size

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class Kind(msgspec.Struct, frozen=True):
    """How one kind of setting is read and shown. `many`: a list, each item read by `parse`."""

    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str
    many: bool = False


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

RATES = (10, 4000)
"""Calls a second: above 4,000 Falco's latency gains nothing (measured), below 10 there is nothing to gain at all."""

MAX_PID = 4_194_304
"""The largest pid of a 64-bit machine (PID_MAX_LIMIT of the kernel)."""

MAX_UID = 2**32 - 2
"""(uid_t)-1 means "no one" to the kernel (chown(2))."""


class Secret(str):
    """A text that does not show itself where a value with it is printed (`repr`); `str` is the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(self))


def parse_secret(text: str) -> Secret:
    """Any text without a NUL."""
    return Secret(parse_text(text))


def masked(value: str) -> str:
    """That there is something, and no more."""
    return "***" if value else ""


KINDS: dict[str, Kind] = {
    "str": Kind(parse_text),
    "secret": Kind(parse_secret, masked),
    "strs": Kind(parse_text, many=True),
    "bool": Kind(parse_bool, format_bool),
    "count": Kind(whole_number(0, MAX_COUNT)),
    "port": Kind(whole_number(0, 65535)),
    "pid": Kind(whole_number(1, MAX_PID)),
    "rate": Kind(whole_number(*RATES)),
    "uids": Kind(whole_number(0, MAX_UID), many=True),
    "mode": Kind(parse_mode, format_mode),
    "duration": Kind(parse_duration, format_duration),
    "size": Kind(parse_size, format_size),
    "address": Kind(parse_address),
}
"""Every kind of setting by name. Enumerations bring their own words (`choice`)."""
