"""Taking parts out of a bundle into a new folder, whoever made the bundle: nothing outside that folder is touched."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from stoop.errors import UserError
from stoop.evidence.manifest import MANIFEST, Part, is_part_name
from stoop.evidence.reading import BundleReader

MAX_EXTRACTED = 64 * 1024**3
"""Bytes of all parts taken out at once: a few MiB of zeros' frames can name any size."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Folder:
    """Files below one folder, which must be empty: no name in it is a link that somebody left there."""

    def __init__(self, path: str) -> None:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"can't be used: {error.strerror}", where=path) from error
        if os.listdir(self._root):
            os.close(self._root)
            raise UserError("is not empty", where=path, hint="name a folder that does not exist yet")
        self._file = -1

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._file, self._root):
            if fd >= 0:
                os.close(fd)
        self._file = self._root = -1

    def create(self, name: str) -> None:
        """Open this new file, folders made as needed. Each step is taken by descriptor, so no link is followed."""
        *folders, last = name.split("/")
        at = os.dup(self._root)
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700, dir_fd=at)
                below = os.open(folder, _FOLDER, dir_fd=at)
                os.close(at)
                at = below
            self._file = os.open(last, _NEW, 0o600, dir_fd=at)
        finally:
            os.close(at)

    def take(self, data: bytes) -> None:
        """Write on; b"" ends the file."""
        if not data:
            os.close(self._file)
            self._file = -1
        while data:
            data = data[os.write(self._file, data) :]


def extract(reader: BundleReader, to: str, wanted: Callable[[Part], bool]) -> tuple[int, list[str]]:
    """Take the wanted parts and the manifest into the folder `to`. How many parts, and what is wrong with them.

    Raises UserError (the folder, too much to extract), BundleError, OSError.
    """
    parts = [part for part in reader.manifest.parts if wanted(part)]
    unsafe = next((part.name for part in parts if not is_part_name(part.name)), None)
    if unsafe is not None:
        raise UserError(f"a part is named {unsafe!r}: such a name is never extracted", where=reader.manifest.bundle)
    total = sum(part.size for part in parts)
    if total > MAX_EXTRACTED:
        raise UserError(f"{total >> 30} GiB would be extracted; the limit is {MAX_EXTRACTED >> 30}", hint="name parts")
    folder = _Folder(to)
    current: Part | None = None

    def sink(part: Part, data: bytes) -> None:
        nonlocal current
        if part is not current:
            folder.create(part.name)
            current = part
        folder.take(data)

    try:
        folder.create(MANIFEST)
        folder.take(reader.raw_manifest)
        folder.take(b"")
        wrong = reader.check(sink, wanted)
    finally:
        folder.close()
    return len(parts), wrong
