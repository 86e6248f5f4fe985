"""A run has one bundle: what a further capture adds to it, and when it has to stay apart.

The file that is there is never changed. Its parts stand in frames of their own, so they are copied behind the new ones
as they are; a manifest of all follows, and the whole takes the old one's name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from stoop.evidence import manifest as manifests
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import MAX_MANIFEST, MAX_PARTS, MAX_REPLACED, SUFFIX, Capture, Link, Manifest, Part
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.writing import BundleWriter

STEP = 64 * 1024 * 1024
"""Bytes that are copied before they are waited for on disk and the time is looked at."""

TRIES = 4
"""How often a copy is made anew because another capture of the run took its place meanwhile."""


class Base(NamedTuple):
    """The run's bundle as it is now. `file`: device and inode, which no other version of it has."""

    bundle: str
    fd: int
    file: tuple[int, int]
    reader: BundleReader

    @property
    def link(self) -> Link:
        """Its manifest's place in the chain."""
        found = self.reader.manifest
        return Link(found.sequence, manifests.digest(self.reader.raw_manifest), found.previous)


@contextlib.contextmanager
def opened(directory: int, bundle: str, run: str) -> Iterator[Base]:
    """The bundle of this name, if it is of this run. Raises BundleError, OSError."""
    fd = os.open(bundle + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = os.fstat(fd)
        base = Base(bundle, fd, (found.st_dev, found.st_ino), BundleReader(fd))
        if base.reader.manifest.origin.run != run or base.reader.manifest.bundle != bundle:
            raise BundleError("it is another run's")
        yield base
    finally:
        os.close(fd)


def is_current(directory: int, base: Base) -> bool:
    """Whether it is what its name means still."""
    try:
        found = os.stat(base.bundle + SUFFIX, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == base.file


def obstacle(base: Base, writer: BundleWriter, limits: Limits, free: int) -> str:
    """Why these parts can't be added to that bundle, "" when they can. `free`: bytes of the disk."""
    found = base.reader.manifest
    size = writer.written + base.reader.size
    if limits.max_bundle_bytes and size > limits.max_bundle_bytes:
        return f"together they would have {size >> 20} MiB; the limit is {limits.max_bundle_bytes >> 20}"
    if free - base.reader.size < limits.min_free_bytes:
        return "the disk is too full to copy the run's bundle"
    if len(found.parts) + len(writer.parts) > MAX_PARTS:
        return f"together they would have more than {MAX_PARTS} parts"
    if len(found.replaces) >= MAX_REPLACED:
        return f"{MAX_REPLACED} captures were added to the run's bundle already"
    if {part.name for part in found.parts} & {part.name for part in writer.parts}:
        return "a part of the run's bundle has the same name"
    own = len(msgspec.json.encode((writer.parts, writer.missing))) * 2  # indented, it takes up to twice as much
    if own + 2 * len(base.reader.raw_manifest) > MAX_MANIFEST:
        return "the manifest of both would be too long"
    return ""


def copy(base: Base, writer: BundleWriter, fd: int, until: float) -> bool:
    """Append the parts of that bundle to the file `fd` that is being written; False when the time (CLOCK_MONOTONIC
    seconds) is over before. Raises ActFailed, OSError."""
    end = base.reader.parts_end
    for at in range(0, end, STEP):
        if time.monotonic() > until:
            return False
        writer.append(base.fd, at, min(at + STEP, end))
        os.fdatasync(fd)
    return True


def joined(base: Base, added: Capture, parts: tuple[Part, ...], place: Link) -> Manifest:
    """The manifest of that bundle and a further capture. `place`: in the chain; its own hash is not known yet."""
    found = base.reader.manifest
    act = found.origin.act
    earlier = tuple(part if found.format > 1 else msgspec.structs.replace(part, act=act) for part in found.parts)
    return msgspec.structs.replace(
        found,
        sequence=place.sequence,
        previous=place.previous,
        parts=parts + earlier,
        further=(*found.further, added),
        replaces=(*found.replaces, base.link),
        format=manifests.FORMAT,
    )
