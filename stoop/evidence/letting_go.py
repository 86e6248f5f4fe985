"""Which bundles the store lets go of, and what the chain is told of it. Pure.

The oldest first; what still waits to be sent somewhere only when nothing else is left, or when it is too old. So a
waiting bundle may stay while younger ones go: those are named as ranges, until all below them has gone too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stoop.evidence.limits import Limits

Ranges = tuple[tuple[int, int], ...]
"""Places in the chain, from and to, both included, ascending."""


class Kept(NamedTuple):
    """A bundle as the store has it. `age_s`: seconds since it was begun."""

    name: str
    sequence: int
    size: int
    age_s: float


def choose(bundles: Sequence[Kept], waiting: frozenset[str], limits: Limits) -> list[Kept]:
    """Those to let go of, out of all, oldest first; never the newest. `waiting`: names that are still to be sent."""
    total, count = sum(bundle.size for bundle in bundles), len(bundles)
    going = []
    for bundle in sorted(bundles[:-1], key=lambda one: (one.name in waiting, one.sequence)):
        old = limits.max_age_s and bundle.age_s > limits.max_age_s
        many = (limits.max_bytes and total > limits.max_bytes) or (limits.max_count and count > limits.max_count)
        if old or many:
            going.append(bundle)
            total, count = total - bundle.size, count - 1
    return going


def spent(oldest: int, gone: Ranges, going: Iterable[int], left: Iterable[int]) -> tuple[int, Ranges]:
    """The chain's `oldest` and `gone` once these places have gone too, and these are left.

    All below `oldest` went, and above it what is in `gone`.
    """
    least = min(left, default=0)
    ranges = _merged([*gone, *((place, place) for place in going)])
    below = [last for _, last in ranges if last < least]
    oldest = max([oldest, *(last + 1 for last in below)])
    return oldest, tuple((max(first, oldest), last) for first, last in ranges if last >= oldest)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found
