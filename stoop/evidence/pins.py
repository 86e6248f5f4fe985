"""Bundles that an act needs to give something back: a file for each such act, and while it is there the bundle stays.

    .pin-<act>   its content: the bundle's name
It is made before the bundle has its name, under the store's lock, and removed once nothing is held by the act; what a
kill left is cleared at the next start, which knows what is held.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator

from stoop.evidence.limits import Limits
from stoop.evidence.manifest import SUFFIX, sequence_of

PIN = ".pin-"

SHARE = 2
"""Pinned bundles take at most one part in so many of the store: the rest stays for new evidence."""

MAX_NAME = 128
"""Bytes of a pin: a bundle's name has some 42."""

_ACT = re.compile(r"[0-9a-z]{1,64}", re.ASCII)
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def pin(store: int, bundle: str, act: str) -> None:
    """Keep this bundle for that act. `store`: the directory's descriptor. Raises OSError, ValueError (no act's id)."""
    if not _ACT.fullmatch(act):
        raise ValueError(f"{act!r} is no act's id")
    fd = os.open(PIN + act, _FLAGS, 0o600, dir_fd=store)
    try:
        os.write(fd, bundle.encode())
        os.fdatasync(fd)
    finally:
        os.close(fd)


def unpin(directory: str, act: str) -> None:
    """The act needs no bundle any more. Twice is harmless, and so is an act that never had one."""
    if _ACT.fullmatch(act):
        with contextlib.suppress(OSError):  # it stays pinned until the next start
            os.unlink(f"{directory}/{PIN}{act}")


def pinned(store: int) -> frozenset[str]:
    """Names of the bundles that must stay."""
    return frozenset(bundle for _, bundle, _ in _pins(store))


def _pins(store: int) -> Iterator[tuple[str, str, int]]:
    """(act, bundle, when it was made: CLOCK_REALTIME, ns) of each."""
    for name in os.listdir(store):
        if not name.startswith(PIN):
            continue
        with contextlib.suppress(OSError):  # removed just now
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=store)
            try:
                bundle = os.read(fd, MAX_NAME).decode("ascii", "replace")
                made_ns = os.fstat(fd).st_mtime_ns
            finally:
                os.close(fd)
            if sequence_of(bundle):
                yield name.removeprefix(PIN), bundle, made_ns


def room(store: int, limits: Limits, beside: str = "") -> int:
    """Bytes that more bundles may be pinned with; 0 for none. `beside`: this one is not counted."""
    sizes = []
    for bundle in pinned(store) - {beside}:
        with contextlib.suppress(FileNotFoundError):
            sizes.append(os.stat(bundle + SUFFIX, dir_fd=store, follow_symlinks=False).st_size)
    if limits.max_count and len(sizes) >= limits.max_count // SHARE:
        return 0
    return max(0, limits.max_bytes // SHARE - sum(sizes)) if limits.max_bytes else 2**62


def clear(store: int, held: Collection[str], before_ns: int) -> list[str]:
    """Remove pins of acts that hold nothing, made before that time (CLOCK_REALTIME, ns). The bundles' names."""
    gone = []
    for act, bundle, made_ns in _pins(store):
        if act not in held and made_ns < before_ns:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(PIN + act, dir_fd=store)
            gone.append(bundle)
    return gone
