"""Things that must survive the agent, on disk: a directory of small JSON files, one a thing, named by its key.

A file that is there is such a thing; a kill in the middle of anything leaves the old state or the new one (rename(2)).
What was written survives the agent; what is `synced` survives the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from stoop.statedir import set_aside

SUFFIX = ".json"
NEW = ".new"


class Thing(Protocol):
    """What has a file. `made_ns`: CLOCK_REALTIME."""

    @property
    def made_ns(self) -> int: ...


T = TypeVar("T", bound=Thing)


class Kind(msgspec.Struct, Generic[T], frozen=True):
    """`name`: "a hold". `lost`: what follows when one can't be read. `key`: the file's name, without suffix.

    `most`: how many there are at most. `max_bytes`: a larger file is none. `is_sound`: what else must be so.
    """

    type: type[T]
    name: str
    lost: str
    key: Callable[[T], str]
    most: int
    max_bytes: int
    is_sound: Callable[[T], bool] = lambda thing: True


class SmallFiles(Generic[T]):
    """The directory of one agent, which its lock on the state directory keeps from others."""

    def __init__(self, directory: Path, kind: Kind[T]) -> None:
        self._dir = directory
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind.type).decode
        self._encode = msgspec.json.Encoder().encode

    def load(self) -> tuple[list[T], list[str]]:
        """What an earlier life left, oldest first, and what could not be read, a line each for a person.

        What was being written when that life ended is removed: it never counted. What is none is set aside.
        """
        return self._read_all(mend=True)

    def look(self) -> tuple[list[T], list[str]]:
        """The same, for whoever is not the agent: nothing is changed."""
        return self._read_all(mend=False)

    def _read_all(self, *, mend: bool) -> tuple[list[T], list[str]]:
        found: list[T] = []
        troubles: list[str] = []
        try:
            names = sorted(os.listdir(self._dir))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self._dir}: {error.strerror}: {self._kind.lost}"]
        for name in names[: 2 * self._kind.most]:
            path = self._dir / name
            if name.endswith(SUFFIX):
                thing, trouble = self._read(path)
                if thing is not None:
                    found.append(thing)
                else:
                    aside = f"; {set_aside(path)}" if mend else ""
                    troubles.append(f"{path}: {trouble}; {self._kind.lost}{aside}")
            elif mend and name.endswith(NEW):
                with contextlib.suppress(OSError):
                    path.unlink()
        return sorted(found, key=lambda thing: thing.made_ns), troubles

    def _read(self, path: Path) -> tuple[T | None, str]:
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                thing = self._decode(file.read(self._kind.max_bytes))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            return None, f"not {self._kind.name}: {error}"
        if path.name != self._kind.key(thing) + SUFFIX or not self._kind.is_sound(thing):
            return None, f"it says that it is {self._kind.key(thing)}"
        return thing, ""

    def keep(self, thing: T, *, synced: bool = False) -> str:
        """Write it, or what became of it; "" or why that can't be. `synced`: on the disk itself, before it returns."""
        key = self._kind.key(thing)
        # A name of its own: what is synced is written by a thread, while the loop may write the same thing.
        fresh = self._dir / f"{key}{'.synced' if synced else ''}{NEW}"
        try:
            self._write(fresh, self._encode(thing), synced=synced)
            os.rename(fresh, self._dir / f"{key}{SUFFIX}")
            if synced:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            return f"{self._dir}: {error.strerror}"
        return ""

    def remove(self, key: str) -> str:
        """It is over; "" or why the file stays (it is then dealt with again at the next start, harmlessly)."""
        try:
            os.unlink(self._dir / f"{key}{SUFFIX}")
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self._dir}: {error.strerror}"
        return ""

    def _write(self, path: Path, data: bytes, *, synced: bool) -> None:
        if len(data) > self._kind.max_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        with open(self._open(path), "wb", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if synced:
                os.fsync(file.fileno())

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.mkdir(self._dir, 0o700)
            return os.open(path, flags, 0o600)

    def _sync(self) -> None:
        """The names: of the file, and of the directory, which may be as new."""
        for directory in (self._dir, self._dir.parent):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
