"""Writing a bundle: a tar archive (POSIX ustar, GNU sizes) in zstd frames, streamed into a file.

    frame: header, content, padding of each part · frame: manifest.json, end of archive · skippable frame: its place
`tar --zstd -xf` reads it. Sizes stand before contents in tar, so each part's is declared first; what then can't be read
is zeros, and told as a gap. What is held in memory does not grow with the bundle.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import struct
import tarfile
from collections.abc import Callable
from typing import Any

from stoop.errors import ActFailed
from stoop.evidence.manifest import MANIFEST, MAX_MISSING, MAX_PARTS, Missing, Part, is_part_name
from stoop.evidence.zstd import CompressionParameter, ZstdCompressor

LEVEL = 1
"""Of zstd: some 800 MB/s here; each level above costs a third and gains a few percent on memory and executables."""

CHUNK = 1024 * 1024
"""Bytes of one step of whoever streams into a part."""

MAX_GAPS = 1024
"""Gaps told of one part; later ones are merged with the last."""

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)

FOOTER = struct.Struct("<II8sQ")
FOOTER_MAGIC = 0x184D2A5E
"""A skippable frame (RFC 8878, 3.1.2): every decoder passes over it."""
FOOTER_TAG = b"stoopev1"

_NO_COPY = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL)
"""What copy_file_range(2) says where the file systems can't: then the bytes go through this process."""

_ZEROS = b"\0" * (64 * 1024)
_OPTIONS: dict[int, int] = {CompressionParameter.compression_level: LEVEL, CompressionParameter.checksum_flag: 1}


def header(name: str, size: int, second: int) -> bytes:
    """The tar header of a regular file that only its owner may read."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, second, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


class BundleWriter:
    """Writes into a file descriptor that the caller owns. Raises ActFailed when it can't be written.

    `max_bytes` bounds the file: beyond it contents become gaps, and no part begins any more. `find_folder`: says what
    is put before every part's name, "" or ending with `/`; it is asked with the first part.
    """

    def __init__(self, fd: int, second: int, max_bytes: int, find_folder: Callable[[], str] = str) -> None:
        self._fd = fd
        self._find_folder = find_folder
        self._second = second
        self._max = max_bytes
        self._zstd = ZstdCompressor(options=_OPTIONS)
        self._open: PartWriter | None = None
        self._names: set[str] = set()
        self.written = 0
        self.parts: list[Part] = []
        self.missing: list[Missing] = []
        self.missing_count = 0

    @property
    def full(self) -> bool:
        """Whether the file has reached its bound."""
        return self.written >= self._max

    def lacks(self, what: str, why: str) -> None:
        """Say that something is missing or cut."""
        self.missing_count += 1
        if len(self.missing) < MAX_MISSING:
            self.missing.append(Missing(what, why))

    def add(self, name: str, data: bytes, about: dict[str, Any] | None = None) -> bool:
        """A whole part at once; False (and told as missing) when there is no room for it."""
        part = self.begin(name, len(data), about)
        if part is None:
            return False
        part.write(data)
        part.end()
        return True

    def begin(self, name: str, size: int, about: dict[str, Any] | None = None) -> PartWriter | None:
        """A part of this size, to be streamed and ended before the next begins; None when there is no room for it."""
        if not is_part_name(self.folder + name) or name in self._names:
            raise ValueError(f"{name!r} can't be a part's name")
        if self._open is not None:
            raise ValueError(f"{self._open.name} has not ended")
        if self.full or len(self.parts) >= MAX_PARTS:
            self.lacks(name, "the bundle is full")
            return None
        self._names.add(name)
        self.put(header(self.folder + name, size, self._second))
        self._open = PartWriter(self, name, size, about or {})
        return self._open

    def ended(self, part: Part) -> None:
        """For `PartWriter.end`."""
        self.parts.append(part)
        self._open = None

    def put(self, data: bytes | memoryview) -> None:
        """Compress and write, for `PartWriter`."""
        self._write(self._zstd.compress(data))

    def seal_parts(self) -> None:
        """No part comes any more. A part that was not ended is (its rest a gap)."""
        if self._open is not None:
            self._open.end()
        self._write(self._zstd.flush(ZstdCompressor.FLUSH_FRAME))

    @functools.cached_property
    def folder(self) -> str:
        """What is put before every part's name. Raises ActFailed."""
        try:
            return self._find_folder()
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error

    @property
    def told(self) -> frozenset[str]:
        """Names of the parts that are there, without the folder."""
        return frozenset(part.name.removeprefix(self.folder) for part in self.parts)

    def append(self, fd: int, begin: int, end: int) -> None:
        """Frames of another bundle's parts, as they are: these bytes of that file. After `seal_parts`."""
        try:
            while begin < end:
                done = _copy(fd, self._fd, begin, min(end - begin, CHUNK))
                if not done:
                    raise ActFailed("the evidence can't be joined: the run's bundle was cut off")
                begin += done
                self.written += done
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error

    def back_to(self, size: int) -> None:
        """Forget what was appended beyond this size."""
        try:
            os.ftruncate(self._fd, size)
            os.lseek(self._fd, size, os.SEEK_SET)
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error
        self.written = size

    def seal(self, manifest: bytes) -> None:
        """The manifest, the end of the archive, and where the manifest begins. After `seal_parts`."""
        begins = self.written
        body = header(MANIFEST, len(manifest), self._second) + manifest + padding(len(manifest)) + END
        self._write(self._zstd.compress(body, ZstdCompressor.FLUSH_FRAME))
        self._write(FOOTER.pack(FOOTER_MAGIC, FOOTER.size - 8, FOOTER_TAG, begins))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error
        self.written += len(data)


class PartWriter:
    """One part under way: `write` and `gap` up to the size that was declared, then `end`."""

    def __init__(self, bundle: BundleWriter, name: str, size: int, about: dict[str, Any]) -> None:
        self.name = name
        self.size = size
        self.about = about
        self.offset = 0
        self._bundle = bundle
        self._hash = hashlib.sha256()
        self._gaps: list[tuple[int, int]] = []
        self._full = False

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes. Beyond the size declared they are left out; in a full bundle they become a gap."""
        data = memoryview(data)[: self.size - self.offset]
        if self._bundle.full:
            self._full = True
            self.gap(len(data))
            return
        self._put(data)

    def gap(self, length: int) -> None:
        """The next bytes could not be read: zeros."""
        length = min(length, self.size - self.offset)
        if length <= 0:
            return
        begin = self.offset
        if self._gaps and (sum(self._gaps[-1]) == begin or len(self._gaps) >= MAX_GAPS):
            begin = self._gaps.pop()[0]
        end = self.offset + length
        self._gaps.append((begin, end - begin))
        while self.offset < end:
            self._put(memoryview(_ZEROS)[: end - self.offset])

    def end(self) -> None:
        """The part is complete; what did not come of it is a gap."""
        self.gap(self.size - self.offset)
        self._bundle.put(padding(self.size))
        if self._gaps:
            lost = sum(length for _, length in self._gaps)
            why = "the bundle is full" if self._full else "could not be read"
            self._bundle.lacks(self.name, f"{lost} of {self.size} bytes are zeros: {why}")
        name = self._bundle.folder + self.name
        self._bundle.ended(Part(name, self.size, self._hash.hexdigest(), self.about, tuple(self._gaps)))

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        self._bundle.put(data)
        self.offset += len(data)


def _copy(source: int, target: int, offset: int, size: int) -> int:
    """Some bytes from an offset to where the target's is. 0 at the end of the file."""
    try:
        return os.copy_file_range(source, target, size, offset)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    data = os.pread(source, size, offset)
    return os.write(target, data) if data else 0


def padding(size: int) -> bytes:
    """What fills the last block of a member."""
    return b"\0" * (-size % BLOCK)
