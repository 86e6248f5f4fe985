"""What a plain scalar of a rules file means: YAML 1.2's core schema with the additions that Talon's users rely on.

Talon reads its files with Go's yaml.v3, so this follows what that library does and not PyYAML's YAML 1.1: `yes`, `no`,
`on`, `off` and `1:30` are text, `014` and `0o14` are twelve, `1_000` is a number, an unquoted date is a time.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import math
import re
from typing import Any

import msgspec

NULL, BOOL, INT, FLOAT, STR = "!!null", "!!bool", "!!int", "!!float", "!!str"
TIMESTAMP, BINARY, MERGE = "!!timestamp", "!!binary", "!!merge"

YAML_TAG = "tag:yaml.org,2002:"
_RESOLVABLE_TAGS = frozenset({"", STR, BOOL, INT, FLOAT, NULL, TIMESTAMP})
_WORDS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("true", "True", "TRUE"), (BOOL, True)),
    **dict.fromkeys(("false", "False", "FALSE"), (BOOL, False)),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), (NULL, None)),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), (FLOAT, math.nan)),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), (FLOAT, math.inf)),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), (FLOAT, -math.inf)),
}
_MAX_NUMBER = 400
"""Longer digit strings are text: no float64 needs more, and Python's int() is quadratic in them."""

_INTEGER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))", re.ASCII)
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])_(?=[0-9])", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:(?:[Tt](\d\d?):(\d\d?):(\d\d?)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d))"
    r"| (\d\d?):(\d\d?):(\d\d?)(?:[.,](\d+))?)?",
    re.ASCII,
)


class ScalarError(ValueError):
    """The text does not fit the tag that the file gives it."""


class Timestamp(msgspec.Struct, frozen=True):
    """An unquoted date or time, in RFC 3339 form. It is no text: parameters that want text refuse it, as in Talon."""

    text: str


def short_tag(tag: str | None) -> str:
    """`!!int` for `tag:yaml.org,2002:int`; the empty text for none and for the non-specific tag `!`."""
    if tag is None or tag == "!":
        return ""
    return "!!" + tag.removeprefix(YAML_TAG) if tag.startswith(YAML_TAG) else tag


def resolve(tag: str, text: str) -> tuple[str, Any]:
    """The tag and the value of a scalar that is not quoted, or whose tag is written out (`tag` is a short one).

    Raises ScalarError when text and tag don't fit.
    """
    if tag == BINARY:
        return BINARY, _decoded(text)
    if tag not in _RESOLVABLE_TAGS:
        return tag, text
    if tag == STR:
        return STR, text
    found, value = _implicit(tag, text)
    if tag in ("", found):
        return found, value
    if tag == FLOAT and found == INT:
        return FLOAT, float(value)
    raise ScalarError(f"{text[:40]!r} is not a {tag}")


def _decoded(text: str) -> str:
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError) as error:
        raise ScalarError("!!binary holds no base64") from error


def _implicit(tag: str, text: str) -> tuple[str, Any]:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] == ".":
        # Unlike below, Go's ParseFloat sees the underscores here, and takes them between digits.
        return _float(_BETWEEN_DIGITS.sub("", text)) or (STR, text)
    if text[0] not in "+-0123456789":
        return STR, text
    if tag in ("", TIMESTAMP):
        time = _timestamp(text)
        if time is not None:
            return TIMESTAMP, time
    plain = text.replace("_", "")
    return _integer(plain) or _float(plain) or (STR, text)


def _integer(plain: str) -> tuple[str, int] | None:
    """Go's ParseInt with base 0, then ParseUint, which takes no sign."""
    if len(plain) > _MAX_NUMBER:
        return None
    match = _INTEGER.fullmatch(plain)
    if match is None:
        return None
    sign, hexadecimal, binary, octal, decimal = match.groups()
    digits, base = (
        (hexadecimal, 16) if hexadecimal else (binary, 2) if binary else (octal, 8) if octal else (decimal, 10)
    )
    value = int(digits, base)
    if sign == "-":
        value = -value
    highest = 2**63 if sign else 2**64
    return (INT, value) if -(2**63) <= value < highest else None


def _float(plain: str) -> tuple[str, float] | None:
    if len(plain) > _MAX_NUMBER or not _FLOAT.fullmatch(plain):
        return None
    value = float(plain)
    return None if math.isinf(value) else (FLOAT, value)


def _timestamp(text: str) -> Timestamp | None:
    """The four forms that yaml.v3 takes: a date, RFC 3339 with T or t, date and time with a space and without zone."""
    match = _TIME.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if match is None:
        return None
    year, month, day = (int(part) for part in match.group(1, 2, 3))
    if not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    clock, fraction, zone = match.group(4, 5, 6), match[7], match[8] or "Z"
    if match[9]:
        clock, fraction = match.group(9, 10, 11), match[12]
    hour, minute, second = (int(part or 0) for part in clock)
    if hour > 23 or minute > 59 or second > 59 or not _is_offset(zone):
        return None
    rest = (fraction or "")[:9].rstrip("0")
    zone = "Z" if zone in ("+00:00", "-00:00") else zone
    day_text = f"{year:04}-{month:02}-{day:02}"
    return Timestamp(f"{day_text}T{hour:02}:{minute:02}:{second:02}{'.' + rest if rest else ''}{zone}")


def _is_offset(zone: str) -> bool:
    return zone == "Z" or (int(zone[1:3]) <= 24 and int(zone[4:6]) <= 60)
