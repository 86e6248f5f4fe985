"""What reversible actions share: their time to live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.spec import (
    ParameterFault,
)
from stoop.units import parse_duration

DEFAULT_TTL = "1h"
"""Long enough for a person to be woken and to look, short enough that a mistake ends by itself."""

Ttl = Annotated[
    str,
    Meta(description="How long it is held, such as `10m` or `4h`. `0`: until `stoop undo`."),
]


def check_ttl(ttl: str) -> Iterator[ParameterFault]:
    """It must be a time."""
    yield from values.duration("ttl", ttl)


def ttl_ns(ttl: str) -> int:
    """The time to live in nanoseconds, 0 for ever."""
    return parse_duration(ttl)
