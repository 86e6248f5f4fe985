"""Which bundles the store lets go of. Pure.

A bundle's place is that of its newest manifest: so the places that are let go are always the chain's beginning, also
where captures were added to a bundle later, and one number (`Head.oldest`) tells that from bundles that were removed.
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


def choose(
    bundles: Sequence[tuple[str, int]], limits: Limits, now_s: float, last_of: Callable[[str], int]
) -> list[Going]:
    """The oldest beyond the limits, in order, never the newest. `bundles`: names and bytes of all.

    `last_of` reads a bundle's newest sequence; it is asked only about those that may have to go.
    """
    sizes = dict(bundles)
    total, going = sum(sizes.values()), []
    # A name tells the first place, which is no later than the last.
    waiting = [(manifests.sequence_of(name), name, False) for name in sizes]
    heapq.heapify(waiting)
    while len(waiting) > 1:
        sequence, name, is_read = waiting[0]
        old = limits.max_age_s and now_s - manifests.begun_of(name) > limits.max_age_s
        many = limits.max_count and len(waiting) > limits.max_count
        if not (old or many or (limits.max_bytes and total > limits.max_bytes)):
            break
        if not is_read:
            heapq.heapreplace(waiting, (max(sequence, last_of(name)), name, True))
            continue
        heapq.heappop(waiting)
        going.append(Going(name, sequence))
        total -= sizes[name]
    return going
