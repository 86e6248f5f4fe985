"""The state directory: made for one agent alone, held by a lock, and kept free of broken files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from stoop.errors import StartRefused

LOCK_FILE = "lock"

MAX_ASIDE = 3
"""Broken files kept for a person to look at; the oldest makes room for a fourth."""


def boot_id() -> bytes:
    """16 bytes that change with each start of the machine (random(4)); zeros where the kernel won't tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def set_aside(path: Path, *companions: str) -> str:
    """Rename a broken file to `NAME.corrupt-N`, N ≤ `MAX_ASIDE`, and say so; the oldest makes room. Raises nothing.

    `companions` are suffixes of files that belong to it and go along.
    """
    places = [path.with_name(f"{path.name}.corrupt-{number}") for number in range(1, MAX_ASIDE + 1)]
    try:
        unused = [place for place in places if not os.path.lexists(place)]
        place = unused[0] if unused else min(places, key=lambda each: each.lstat().st_mtime_ns)
        path.rename(place)
        for suffix in companions:
            Path(f"{place}{suffix}").unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{place}{suffix}")
    except OSError as error:
        return f"it can't be set aside: {error.strerror}"
    return f"it is {place.name} now"


def make_state_dir(path: Path) -> str:
    """Make it with mode 0700, or look at the one that is there. "" or why nothing can be kept in it.

    Raises StartRefused where another user could plant records: what is read back at a start is believed.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except (FileExistsError, NotADirectoryError) as error:
        raise StartRefused("the state directory is not a directory", where=str(path)) from error
    except OSError as error:
        return f"the state directory can't be made: {error.strerror}"
    if found.st_uid not in (0, os.geteuid()):
        raise StartRefused(f"the state directory belongs to uid {found.st_uid}", where=str(path), hint="chown it")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise StartRefused("others may write to the state directory", where=str(path), hint="chmod go-w it")
    return ""


class StateLock:
    """Held for as long as the agent lives (flock(2): the kernel lets go whatever way it ends)."""

    def __init__(self, path: Path) -> None:
        self._path = path / LOCK_FILE
        self._fd = -1

    def take(self) -> str:
        """Take the lock. "" or why there is none to take; raises StartRefused when another agent holds it."""
        try:
            self._fd = self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise StartRefused(
                f"another agent (pid {holder}) uses this state directory",
                where=str(self._path.parent),
                hint="stop it, or give this one a state_dir of its own",
            ) from error
        except OSError as error:
            self.close()
            return f"the state directory can't be locked: {error.strerror}"
        with contextlib.suppress(OSError):  # the lock is what counts; the number is for a person
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        return ""

    def _open(self) -> int:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        except OSError:
            return os.open(self._path, os.O_RDONLY | flags)  # a read-only file system: a lock can be had all the same

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
