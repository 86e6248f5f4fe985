"""JSON and times as Go's standard library reads them into Falco Talon's struct: more tolerant than Python's.

Pure: no I/O, no clock. Sources: talon.md sections 1.2 and 11, the `decode` cases of conformance.jsonl, RFC 8259, RFC
3339 and the public documentation of Go's packages encoding/json and time.
"""

from __future__ import annotations

import json
import math
import re
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import accumulate

import msgspec

from stoop.errors import AlertError

# Containers inside one another, the alert itself included. Falco's alerts nest 3 deep. While it is read, each level
# takes one of the 1,000 levels of the interpreter's stack: 512 leaves the rest to the program around it.
MAX_NESTING = 512

TEXT_KEYS = frozenset({"hostname", "output", "priority", "rule", "source", "trace_id"})
OBJECT_KEYS = frozenset({"output_fields", "context"})
KNOWN_KEYS = TEXT_KEYS | OBJECT_KEYS | {"tags", "time"}
LONGEST_KEY = max(map(len, KNOWN_KEYS))


class SentAlert(msgspec.Struct):
    """What an alert says, as Go's decoder leaves it in Talon's struct: absent and null are the same.

    `start` and `end` are offsets in the bytes that were read; `time_ns` counts from the epoch, 0 = none.
    """

    text: dict[str, str] = {}
    objects: dict[str, dict[str, object]] = {}
    tags: list[object] = []
    time_ns: int = 0
    start: int = 0
    end: int = 0


# ---------------------------------------------------------------- JSON


def read_alert(data: bytes) -> SentAlert:
    """Read the first JSON value of `data`; what follows it is ignored. Raises AlertError for everything else.

    Keys match in any case, the last of equal keys wins, repeated objects are merged, null leaves what was there
    (objects and tags are emptied), invalid UTF-8 and lone surrogates become U+FFFD. Of repeated `time` keys only the
    last is parsed.
    """
    lenient = data.decode("utf-8", "surrogateescape")
    text = _replace_lone_escapes(_ESCAPED_BYTES.sub("\ufffd", lenient))
    start = _after_blanks(text, 0)
    end, alert = _read_top(text, start)
    _check_nesting(text[start:end])
    alert.start = _byte_offset(lenient, start)
    alert.end = _byte_offset(lenient, end)
    return alert


def read_object(data: bytes) -> dict[str, object]:
    """Read one JSON object that is known to be one, with the same tolerance for its text and numbers."""
    text = _ESCAPED_BYTES.sub("\ufffd", data.decode("utf-8", "surrogateescape"))
    value, _ = _JSON.raw_decode(_replace_lone_escapes(text))
    return dict(value)


def _integer(text: str) -> int | float | Decimal:
    """The exact value of a JSON number without fraction and exponent.

    `-0` is the float -0.0, which Go tells from 0. A Decimal has more digits than Python reads as an integer (4,300
    unless set otherwise): Talon loses an alert with such a number.
    """
    if text == "-0":
        return -0.0
    try:
        return int(text)
    except ValueError:
        return _decimal(text)


def _float(text: str) -> float | Decimal:
    """The value of any other JSON number, as Decimal beyond the float range (`1e999`)."""
    value = float(text)
    return _decimal(text) if math.isinf(value) else value


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of more than 18 digits
        return Decimal("-Infinity" if text.startswith("-") else "Infinity")


def _refuse_constant(name: str) -> object:
    """Python's parser takes NaN and Infinity; JSON has neither (RFC 8259, section 6)."""
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_float=_float, parse_int=_integer, parse_constant=_refuse_constant)
_BLANKS = re.compile(r"[ \t\n\r]*")

# What `surrogateescape` makes of each invalid byte; Go puts one U+FFFD for each of them, Python's own `replace` one for
# a run of them.
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _replace_lone_escapes(text: str) -> str:
    """`text` with each escaped surrogate that has no partner replaced by an escaped U+FFFD of the same length."""
    if not _SURROGATE_ESCAPE.search(text):
        return text
    return _ESCAPES.sub(lambda found: "\\ufffd" if found["lone"] else found[0], text)


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _byte_offset(text: str, at: int) -> int:
    return at if text.isascii() else len(text[:at].encode("utf-8", "surrogateescape"))


def _read_top(text: str, start: int) -> tuple[int, SentAlert]:
    if text.startswith("{", start):
        return _read_members(text, start)
    if text.startswith("null", start):  # Go leaves its struct as it was: an alert that says nothing
        return start + 4, SentAlert()
    raise _not_an_object(text, start)


def _read_members(text: str, start: int) -> tuple[int, SentAlert]:
    alert = SentAlert()
    time_text = None
    at = _after_blanks(text, start + 1)
    if text.startswith("}", at):
        return at + 1, alert
    while True:
        key, value_at = _read_key(text, at)
        value, at = _read_value(text, value_at)
        name = known_key(key)
        if name == "time":
            time_text = text[value_at + 1 : at - 1] if _is_text(name, value) else time_text
        elif name:
            _take(alert, name, value)
        at = _after_blanks(text, at)
        if text.startswith("}", at):
            break
        at = _after_blanks(text, _expect(text, at, ","))
    if time_text is not None:
        alert.time_ns = time_ns(time_text)
    return at + 1, alert


def _read_key(text: str, at: int) -> tuple[str, int]:
    """The key at `at`, and where its value begins."""
    if not text.startswith('"', at):
        raise _malformed("a key in double quotes was expected", at)
    key, at = _read_value(text, at)
    return str(key), _after_blanks(text, _expect(text, _after_blanks(text, at), ":"))


def _read_value(text: str, at: int) -> tuple[object, int]:
    try:
        return _JSON.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _malformed(error.msg, error.pos) from error
    except ValueError as error:
        raise _malformed(str(error), at) from error
    except RecursionError as error:
        raise _too_deep() from error


def _expect(text: str, at: int, sign: str) -> int:
    if not text.startswith(sign, at):
        raise _malformed(f"{sign!r} was expected", at)
    return at + 1


def known_key(key: str) -> str:
    """The key of Talon's struct that Go takes `key` for, or "": in any case; of other letters only ſ and K fold."""
    if key in KNOWN_KEYS:
        return key
    folded = key.lower().replace("ſ", "s") if len(key) <= LONGEST_KEY else ""
    return folded if folded in KNOWN_KEYS else ""


def _take(alert: SentAlert, name: str, value: object) -> None:
    """Put one member into the alert as Go does. Raises AlertError for a wrong type."""
    if name in TEXT_KEYS:
        if _is_text(name, value):
            alert.text[name] = str(value)
    elif name == "tags":
        if value is not None and not isinstance(value, list):
            raise _wrong_type(name, "a list", value)
        alert.tags = value or []
    elif value is None:
        alert.objects.pop(name, None)
    elif isinstance(value, dict):
        alert.objects.setdefault(name, {}).update(value)
    else:
        raise _wrong_type(name, "an object", value)


def _is_text(name: str, value: object) -> bool:
    """Whether it is a string; null is none and no fault. Raises AlertError for any other type."""
    if value is not None and not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    return value is not None


_IN_STRINGS_AND_BETWEEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^]["{}]++', re.DOTALL)


def _check_nesting(value: str) -> None:
    """Raise AlertError when the valid JSON `value` nests deeper than MAX_NESTING."""
    if value.count("[") + value.count("{") <= MAX_NESTING:
        return
    brackets = _IN_STRINGS_AND_BETWEEN.sub("", value)
    if max(accumulate(1 if sign in "[{" else -1 for sign in brackets)) > MAX_NESTING:
        raise _too_deep()


# ---------------------------------------------------------------- what was wrong

# Falco's text form: `10:11:12.123456789: Warning …`, or with an ISO 8601 time first (falco.md section 3).
_PLAIN_TEXT = re.compile(r"(?:\d{4}-\d\d-\d\dT)?\d\d:\d\d:\d\d\.\d{9}(?:[+-]\d{4}|Z)?: ")

_JSON_NAMES = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "null"}


def _not_an_object(text: str, start: int) -> AlertError:
    if start == len(text):
        return AlertError("there are no bytes: send one alert as a JSON object", "empty")
    if text.startswith("\ufeff", start):
        return AlertError("a byte order mark comes first: send the JSON without it", "malformed")
    if _PLAIN_TEXT.match(text, start):
        return AlertError("this is Falco's plain text: set `json_output: true` in falco.yaml", "plain-text")
    value, _ = _read_value(text, start)
    return AlertError(f"an alert must be a JSON object, this is {_json_name(value)}", "type")


def _json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), "a number")


def _wrong_type(name: str, wanted: str, value: object) -> AlertError:
    return AlertError(f"`{name}` must be {wanted}, this is {_json_name(value)}", "type")


def _malformed(what: str, at: int) -> AlertError:
    return AlertError(f"not JSON at character {at}: {what}", "malformed")


def _too_deep() -> AlertError:
    return AlertError(f"nested deeper than {MAX_NESTING} levels", "nesting")


# ---------------------------------------------------------------- times

# Go's `time.Parse(RFC3339, …)`: it takes an hour of one digit, a comma before the fraction and offsets up to 24:60.
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAYS_OF_400_YEARS = 146_097


def time_ns(text: str) -> int:
    """Nanoseconds since the epoch of a time as Go reads RFC 3339; 0 for Go's zero time. Raises AlertError.

    More than nine fraction digits are cut, as in Go.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise _bad_time(text)
    year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
    fraction, sign = found.group(7, 8)
    offset_hour, offset_minute = (int(part or 0) for part in found.group(9, 10))
    if hour > 23 or minute > 59 or second > 59 or offset_hour > 24 or offset_minute > 60:
        raise _bad_time(text)
    try:
        # date() begins with year 1; year 400 has the days of year 0, 400 years later.
        days = date(year or 400, month, day).toordinal() - _EPOCH_DAY - (0 if year else _DAYS_OF_400_YEARS)
    except ValueError as error:
        raise _bad_time(text) from error
    offset = (offset_hour * 60 + offset_minute) * (-1 if sign == "-" else 1)
    seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second
    nanoseconds = int((fraction or "0")[:9].ljust(9, "0"))
    since_epoch = seconds * 1_000_000_000 + nanoseconds
    return 0 if since_epoch == _ZERO_TIME_NS else since_epoch


_ZERO_TIME_NS = (date(1, 1, 1).toordinal() - _EPOCH_DAY) * 86_400 * 1_000_000_000


def _bad_time(text: str) -> AlertError:
    return AlertError(
        f"`time` must be an RFC 3339 time such as 2026-01-02T03:04:05.123456789Z, not {text[:64]!r}", "time"
    )
