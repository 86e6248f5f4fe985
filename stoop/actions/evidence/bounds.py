"""Durations and sizes as parameters of evidence: text that a person writes, with a bound. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from stoop.spec import (
    ParameterFault,
)
from stoop.units import parse_duration, parse_size


def duration(name: str, value: str, most_ns: int, most: str) -> Iterator[ParameterFault]:
    """A duration up to this many nanoseconds, which a person writes as `most`."""
    try:
        fine = parse_duration(value) <= most_ns
    except ValueError as error:
        yield ParameterFault("param-value", name, f"{name}: {error}")
        return
    if not fine:
        yield ParameterFault("param-value", name, f"{name} must be at most {most}, not {value!r}")


def size(name: str, value: str, most_bytes: int, most: str, least: int = 0) -> Iterator[ParameterFault]:
    """A size up to this many bytes, which a person writes as `most`."""
    try:
        given = parse_size(value)
    except ValueError as error:
        yield ParameterFault("param-value", name, f"{name}: {error}")
        return
    if not least <= given <= most_bytes:
        low = f"at least {least} bytes and " if least else ""
        yield ParameterFault("param-value", name, f"{name} must be {low}at most {most}, not {value!r}")
