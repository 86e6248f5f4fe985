"""What is sent of a bundle, as a stream that is known to be right once it has ended: one part, or the whole file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from stoop.evidence.reading import READ_BYTES, BundleError, BundleReader, pieces_of


class Content(NamedTuple):
    """`size` in bytes and `sha256` are known before; `pieces` raises BundleError where the bytes are not those."""

    size: int
    sha256: str
    pieces: Iterator[bytes]


def content_of(fd: int, part: str) -> Content:
    """Of a bundle's descriptor, which stays the caller's: this part, or "" for all of it.

    All of it is read twice: every part is compared with the manifest before the first byte leaves. Raises BundleError,
    and OSError as pread(2) does.
    """
    reader = BundleReader(fd)
    if part:
        found, pieces = pieces_of(reader, part)
        return Content(found.size, found.sha256, pieces)
    wrong = reader.check()
    if wrong:
        raise BundleError(wrong[0])
    hashed = hashlib.sha256()
    for data in _raw(fd, reader.size):
        hashed.update(data)
    return Content(reader.size, hashed.hexdigest(), _compared(fd, reader.size, hashed.hexdigest()))


def _raw(fd: int, size: int) -> Iterator[bytes]:
    at = 0
    while at < size and (data := os.pread(fd, min(READ_BYTES, size - at), at)):
        at += len(data)
        yield data
    if at < size:
        raise BundleError("it became shorter while it was read")


def _compared(fd: int, size: int, expected: str) -> Iterator[bytes]:
    hashed = hashlib.sha256()
    for data in _raw(fd, size):
        hashed.update(data)
        yield data
    if hashed.hexdigest() != expected:
        raise BundleError("it was changed while it was read")
