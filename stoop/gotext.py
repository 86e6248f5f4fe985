"""Values as text: Go's default formatting, which Falco Talon matches and shows, and Stoop's plain decimal form of it.

Pure: no I/O, no clock. Sources: talon.md sections 1.2, 2.4, 4.2 and 11, the public documentation of Go's packages fmt
and strconv.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal

# Plain digits are written for floats below 10^21 and not below 10^-21; beyond that a few sent bytes (`1e308`) would
# become hundreds, which a list of them multiplies.
PLAIN_EXPONENT = 21


def text_form(value: object) -> str:
    """Talon's text of a field value: Go's default formatting after every number became a 64-bit float.

    null is `<nil>`, lists `[a b]`, objects `map[k:v]` with sorted keys; numbers are in exponent form from 1,000,000 up
    and below 0.0001 (`1.234567e+06`). What no float holds keeps all its digits.
    """
    return value if type(value) is str else _text(value, _go_number)


def decimal_form(value: object) -> str:
    """Stoop's text of a field value: as `text_form`, but numbers in plain decimal digits as far as PLAIN_EXPONENT."""
    return value if type(value) is str else _text(value, _plain_number)


Writer = Callable[[int | float | Decimal], str]


def _text(value: object, write: Writer) -> str:
    if isinstance(value, (list, dict)):
        return _compound(value, write)
    return _scalar(value, write)


def _scalar(value: object, write: Writer) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return write(value)
    return str(value)


def _compound(value: object, write: Writer) -> str:
    """Written with a stack of its own: 512 levels of calls would be half of the interpreter's."""
    parts: list[str] = []
    open_levels: list[Iterator[tuple[str, object]]] = [iter([("", value)])]
    while open_levels:
        lead, item = next(open_levels[-1], (None, None))
        if lead is None:
            open_levels.pop()
            parts.append("]" if open_levels else "")
            continue
        parts.append(lead)
        if isinstance(item, (list, dict)):
            parts.append("map[" if isinstance(item, dict) else "[")
            open_levels.append(_led_items(item))
        else:
            parts.append(_scalar(item, write))
    return "".join(parts)


def _led_items(value: list[object] | dict[str, object]) -> Iterator[tuple[str, object]]:
    """Each item with what Go writes before it: the blank between two items, and the key in a map."""
    pairs = (
        [(f"{key}:", value[key]) for key in sorted(value)] if isinstance(value, dict) else [("", it) for it in value]
    )
    return ((f" {key}" if index else key, item) for index, (key, item) in enumerate(pairs))


def _go_number(value: int | float | Decimal) -> str:
    """Go's `%v` of a float64: the shortest digits that read back the same, `%e` below 1e-4 and from 1e6 (strconv)."""
    if isinstance(value, int) and -1_000_000 < value < 1_000_000:
        return str(value)
    if isinstance(value, Decimal):
        return _exponent_form(value)
    try:
        shortest = repr(float(value))
    except OverflowError:
        return _exponent_form(Decimal(value))
    if "e" in shortest:
        return shortest
    plain = shortest.removesuffix(".0")
    return _exponent_form(Decimal(plain)) if abs(value) >= 1_000_000 else plain


def _exponent_form(value: Decimal) -> str:
    """All significant digits and an exponent of at least two (`1.234567e+06`); Go's words for the infinite."""
    if value.is_infinite():
        return "+Inf" if value > 0 else "-Inf"
    mantissa, _, exponent = f"{value:e}".partition("e")
    mantissa = mantissa.rstrip("0").removesuffix(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent):+03d}"


def _plain_number(value: int | float | Decimal) -> str:
    if isinstance(value, float):
        if value == 0 or 10**-PLAIN_EXPONENT <= abs(value) < 10**PLAIN_EXPONENT:
            return f"{Decimal(repr(value)):f}".removesuffix(".0")
        return repr(value)
    if isinstance(value, Decimal):
        # Sent with digits only: kept as sent. Sent with an exponent: not unfolded.
        return _exponent_form(value) if value.is_infinite() or "E" in str(value) else str(value)
    return str(value)


# `Informational` is not in the list because Talon's pattern has `Info` before it: of `Informational x` it leaves
# `rmational x` (talon.md 11.1). [0-9]: Go's \d is ASCII.
_OUTPUT_PREFIX = re.compile(
    r"[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}: (?:debug|info|notice|warning|error|critical|alert|emergency)",
    re.IGNORECASE | re.ASCII,
)


def clean_output(text: str) -> str:
    """Falco's output without its time and priority, as Talon cuts it: the prefix, then at most one leading blank."""
    found = _OUTPUT_PREFIX.match(text)
    return (text[found.end() :] if found else text).removeprefix(" ")
