"""Which bundles the store lets go of. Pure.

A bundle's place is that of its newest manifest: so the places that are let go are always the chain's beginning, also
where captures were added to a bundle later, and one number (`Head.oldest`) tells that from bundles that were removed.
What an act needs to give something back stays, also below that number.
Those that wait to be sent may stay below that number for a while: the chain does not miss one of them that is removed,
its delivery does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stoop.evidence import manifest as manifests
from stoop.evidence.limits import Limits


class Going(NamedTuple):
    """A bundle to be let go, and its last place in the chain."""

    bundle: str
    sequence: int


class Kept(NamedTuple):
    """What stays if it can. `newest`: the chain's last place, which is never let go. `waiting`: names of bundles that
    are still to be sent somewhere: they go when nothing else is left, or when they are too old. `pinned`: of those that
    an act needs to give something back, which never go."""

    newest: int
    waiting: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()


def choose(
    bundles: Sequence[tuple[str, int]],
    limits: Limits,
    now_s: float,
    last_of: Callable[[str], int],
    kept: Kept,
) -> list[Going]:
    """The oldest beyond the limits, in order, never the newest nor a pinned one. `bundles`: names and bytes of all.

    `last_of` reads a bundle's newest sequence; it is asked only about those that may have to go.
    """
    sizes = dict(bundles)
    total = sum(sizes.values())
    going: list[Going] = []
    # A name tells the first place, which is no later than the last.
    left = [
        (name in kept.waiting, manifests.sequence_of(name), name, False) for name in sizes if name not in kept.pinned
    ]
    heapq.heapify(left)
    while left and (count := len(sizes) - len(going)) > 1:
        waits, sequence, name, is_read = left[0]
        many = (limits.max_count and count > limits.max_count) or (limits.max_bytes and total > limits.max_bytes)
        goes = many or _is_old(name, limits, now_s)
        if not goes and not kept.waiting:  # nor do the younger ones
            break
        if goes and not is_read:
            heapq.heapreplace(left, (waits, max(sequence, last_of(name)), name, True))
            continue
        heapq.heappop(left)
        if goes and sequence < kept.newest:
            going.append(Going(name, sequence))
            total -= sizes[name]
    return going


def _is_old(name: str, limits: Limits, now_s: float) -> bool:
    return bool(limits.max_age_s) and now_s - manifests.begun_of(name) > limits.max_age_s
