"""What bounds the evidence store. Apart, so that the reflex can say limits without loading what writes bundles."""

from __future__ import annotations

import msgspec

DIRECTORY = "evidence"
"""Below the state directory."""

DELIVERIES = "deliveries"
"""Beside it: what waits to be sent somewhere, one file `BUNDLE.ACT.json` each."""

MAX_BYTES = 4 * 1024**3
"""Of all bundles: some thousand snapshots and a few memory images, on a node whose disk is not made for that."""

MAX_BUNDLE_BYTES = 2 * 1024**3
"""Of one bundle's file: what comes beyond is told as missing. One must never push out all others."""

MAX_COUNT = 2000
"""Bundles: their names are listed whenever one is added."""

MAX_AGE_S = 30 * 24 * 3600.0
"""Seconds after which a bundle is let go."""

MIN_FREE_BYTES = 256 * 1024**2
"""Of the file system: nothing is begun below it, for the journal lies on the same one."""


class Limits(msgspec.Struct, frozen=True):
    """What the store may hold; 0 is no limit."""

    max_bytes: int = MAX_BYTES
    max_count: int = MAX_COUNT
    max_age_s: float = MAX_AGE_S
    max_bundle_bytes: int = MAX_BUNDLE_BYTES
    min_free_bytes: int = MIN_FREE_BYTES
