"""Reading a bundle: its manifest alone, or every part in order, hashed. A bundle may have been made by an enemy."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from stoop.evidence.manifest import MANIFEST, MAX_MANIFEST, Manifest, ManifestError, Part, decode
from stoop.evidence.writing import BLOCK, FOOTER, FOOTER_MAGIC, FOOTER_TAG
from stoop.evidence.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

READ_BYTES = 256 * 1024
"""One read of the file, and at most so much decompressed at a time."""

_OPTIONS: dict[int, int] = {DecompressionParameter.window_log_max: 23}
# 8 MiB of window: level 1 takes 512 KiB.

Sink = Callable[[Part, bytes], None]


class BundleError(Exception):
    """The file is no bundle, or not as it was written. One line for a person."""


class BundleReader:
    """Reads a bundle from a file descriptor that the caller owns. Raises BundleError, and OSError as read(2) does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._begins = self._footer()
        self.raw_manifest = self._manifest_bytes()
        try:
            self.manifest: Manifest = decode(self.raw_manifest)
        except ManifestError as error:
            raise BundleError(str(error)) from error

    @property
    def parts_end(self) -> int:
        """Where the frames of the parts end, and the manifest's begins."""
        return self._begins

    def _footer(self) -> int:
        data = os.pread(self._fd, FOOTER.size, max(0, self.size - FOOTER.size))
        if len(data) != FOOTER.size:
            raise BundleError("it is too short to be a bundle")
        magic, size, tag, begins = FOOTER.unpack(data)
        if (magic, size, tag) != (FOOTER_MAGIC, FOOTER.size - 8, FOOTER_TAG) or begins > self.size - FOOTER.size:
            raise BundleError("it does not end as a bundle does: cut off, or something else")
        return int(begins)

    def _manifest_bytes(self) -> bytes:
        archive = _Archive(self._fd, self._begins, self.size - FOOTER.size)
        name, size = archive.member()
        if name != MANIFEST or size > MAX_MANIFEST:
            raise BundleError(f"{MANIFEST} is not where it should be")
        data = b"".join(archive.content(size))
        archive.end()
        return data

    def content_of(self, wanted: Part) -> Iterator[bytes]:
        """For `pieces_of`."""
        archive = _Archive(self._fd, 0, self._begins)
        for part in self.manifest.parts:
            found = archive.member()
            if found != (part.name, part.size):
                raise BundleError(f"where part {part.name} should be is {found[0]!r}")
            if part is not wanted:
                for _ in archive.content(part.size):
                    pass
                continue
            hashed = hashlib.sha256()
            for data in archive.content(part.size):
                hashed.update(data)
                yield data
            if hashed.hexdigest() != part.sha256:
                raise BundleError(f"part {part.name} is not what was written: its SHA-256 differs")
            return

    def check(self, sink: Sink | None = None, wanted: Callable[[Part], bool] = lambda _: True) -> list[str]:
        """Read every part, compare sizes and hashes. What is wrong, one line each; [] when all is as it was written.

        `sink` gets the bytes of each wanted part in order, and b"" at its end, before they are known to be right.
        """
        archive = _Archive(self._fd, 0, self._begins)
        wrong = []
        for part in self.manifest.parts:
            found = archive.member()
            if found != (part.name, part.size):
                wanting, there = f"{part.name} ({part.size} bytes)", f"{found[0]!r} ({found[1]} bytes)"
                raise BundleError(f"where part {wanting} should be is {there}")
            hashed = hashlib.sha256()
            sinks = sink if sink is not None and wanted(part) else None
            for data in archive.content(part.size):
                hashed.update(data)
                if sinks is not None:
                    sinks(part, data)
            if sinks is not None:
                sinks(part, b"")
            if hashed.hexdigest() != part.sha256:
                wrong.append(f"part {part.name} is not what was written: its SHA-256 differs")
        archive.nothing_more()
        return wrong


def pieces_of(reader: BundleReader, name: str) -> tuple[Part, Iterator[bytes]]:
    """A part and its content, in pieces of at most READ_BYTES; nothing is held but the piece.

    The pieces end with BundleError where they are not what the manifest says, so whoever takes them all has the part as
    it was written. Raises BundleError where there is no such part.
    """
    part = next((part for part in reader.manifest.parts if part.name == name), None)
    if part is None:
        raise BundleError(f"it has no part {name!r}")
    return part, reader.content_of(part)


class _Archive:
    """The tar members in a stretch of zstd frames. Only plain regular files: no extension, no link."""

    def __init__(self, fd: int, begin: int, end: int) -> None:
        self._stream = _frames(fd, begin, end)
        self._buffer = b""

    def member(self) -> tuple[str, int]:
        """(name, size) of the next one."""
        block = self._take(BLOCK)
        try:
            info: Any = tarfile.TarInfo.frombuf(block, "ascii", "backslashreplace")
        except tarfile.HeaderError as error:
            raise BundleError(f"there is no tar header where one should be: {error}") from error
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise BundleError(f"{info.name!r} is no regular file")
        return str(info.name), int(info.size)

    def content(self, size: int) -> Iterator[bytes]:
        """Its bytes."""
        left = size
        while left:
            data = self._some(left)
            left -= len(data)
            yield data
        self._take(-size % BLOCK)

    def end(self) -> None:
        """The end of the archive."""
        if self._take(2 * BLOCK).strip(b"\0"):
            raise BundleError("the archive does not end where it should")
        self.nothing_more()

    def nothing_more(self) -> None:
        """Nothing is left in the frames."""
        if self._buffer or next(self._stream, b""):
            raise BundleError("it holds more than its manifest names")

    def _some(self, limit: int) -> bytes:
        if not self._buffer:
            self._buffer = next(self._stream, b"")
            if not self._buffer:
                raise BundleError("it ends too early")
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def _take(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._some(size))
            size -= len(parts[-1])
        return b"".join(parts)


def _frames(fd: int, begin: int, end: int) -> Iterator[bytes]:
    """What the zstd frames between two offsets hold, in pieces of at most READ_BYTES, none empty."""
    zstd = ZstdDecompressor(options=_OPTIONS)
    begun = False
    data = b""
    try:
        while True:
            if zstd.eof:
                data, zstd, begun = zstd.unused_data, ZstdDecompressor(options=_OPTIONS), False
            if not data and zstd.needs_input:
                data = os.pread(fd, min(READ_BYTES, end - begin), begin)
                begin += len(data)
                if not data:
                    break
            piece = zstd.decompress(data, READ_BYTES)
            data, begun = b"", True
            if piece:
                yield piece
    except ZstdError as error:
        raise BundleError(f"it is damaged: {error}") from error
    if begun:
        raise BundleError("it ends amid a frame")
