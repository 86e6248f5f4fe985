"""The holds on disk: one small file each in `STATE_DIR/held`, written before the act and removed after its undo.

A file that is there is a hold; a kill in the middle of anything leaves the old state or the new one (rename(2)). It is
not synced for what dies with the machine: what was written survives the agent all the same. Formats and reasons:
docs/decisions/0007-giving-back.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import msgspec

from stoop.holds import MAX_HOLDS, Hold
from stoop.statedir import set_aside

HELD_DIR = "held"
SUFFIX = ".json"

MAX_FILE = 256 * 1024
"""A larger file is no hold: the largest has the pids of a tree (512) or the rules of a network."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Hold).decode


class HoldFiles:
    """The directory of one agent, which its lock on the state directory keeps from others."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / HELD_DIR

    def load(self) -> tuple[list[Hold], list[str]]:
        """What an earlier life holds, oldest first, and what could not be read, a line each for a person."""
        holds: list[Hold] = []
        troubles: list[str] = []
        try:
            names = sorted(os.listdir(self._dir))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self._dir}: {error.strerror}: what is held can't be read, and is not given back"]
        for name in names[: 2 * MAX_HOLDS]:
            path = self._dir / name
            if name.endswith(SUFFIX):
                self._load(path, holds, troubles)
            elif name.endswith(".new"):  # a kill before the rename: that act was never begun
                with contextlib.suppress(OSError):
                    path.unlink()
        return sorted(holds, key=lambda hold: hold.made_ns), troubles

    def _load(self, path: Path, holds: list[Hold], troubles: list[str]) -> None:
        try:
            with path.open("rb") as file:
                hold = _decode(file.read(MAX_FILE))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            troubles.append(f"{path}: not a hold: {error}; what it held is not given back; {set_aside(path)}")
            return
        if path.name == hold.act + SUFFIX:
            holds.append(hold)
        else:
            troubles.append(f"{path}: it says that it is {hold.act}; left alone")

    def keep(self, hold: Hold, *, synced: bool) -> str:
        """Write it, or what became of it; "" or why that can't be. `synced`: on the disk itself, before it returns."""
        path = self._dir / f"{hold.act}{SUFFIX}"
        # A name of its own: what is synced is written by a thread, while the loop may write the same hold.
        fresh = self._dir / f"{hold.act}{'.synced' if synced else ''}.new"
        try:
            with open(self._open(fresh), "wb", buffering=0) as file:
                data = _encode(hold)
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if synced:
                    os.fsync(file.fileno())
            os.rename(fresh, path)
            if synced:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            return f"{self._dir}: {error.strerror}"
        return ""

    def remove(self, act: str) -> str:
        """It is given back; "" or why the file stays (its undo is then tried again at the next start, harmlessly)."""
        try:
            os.unlink(self._dir / f"{act}{SUFFIX}")
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self._dir}: {error.strerror}"
        return ""

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
