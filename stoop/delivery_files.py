"""The deliveries on disk: one small file each in `STATE_DIR/deliveries`, written before the act's record is told.

A file that is there is still to be sent; a kill in the middle of anything leaves the old state or the new one
(rename(2)). What was sent and not yet removed is sent again, under the same name and with the same content.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import msgspec

from stoop.deliveries import MAX_DELIVERIES, Delivery, is_sound
from stoop.evidence.limits import DELIVERIES
from stoop.statedir import set_aside

SUFFIX = ".json"

MAX_FILE = 64 * 1024
"""A larger file is no delivery: names, a rule's parameters, what a person is told of the target."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Delivery).decode


class DeliveryFiles:
    """The directory of one agent, which its lock on the state directory keeps from others."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / DELIVERIES

    def load(self) -> tuple[list[Delivery], list[str]]:
        """What is still to be sent, oldest first, and what could not be read, a line each for a person."""
        found: list[Delivery] = []
        troubles: list[str] = []
        try:
            names = sorted(os.listdir(self._dir))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self._dir}: {error.strerror}: what is to be sent can't be read"]
        for name in names[: 2 * MAX_DELIVERIES]:
            path = self._dir / name
            if name.endswith(SUFFIX):
                self._load(path, found, troubles)
            elif name.endswith(".new"):  # a kill before the rename: its act was never recorded with it
                with contextlib.suppress(OSError):
                    path.unlink()
        return sorted(found, key=lambda delivery: delivery.made_ns), troubles

    def waiting(self) -> list[Delivery]:
        """The same for whoever only looks: nothing is changed, and what can't be read is left out."""
        found: list[Delivery] = []
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self._dir))[: 2 * MAX_DELIVERIES]:
                with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                    if name.endswith(SUFFIX):
                        found.append(_read(self._dir / name))
        return found

    def _load(self, path: Path, found: list[Delivery], troubles: list[str]) -> None:
        try:
            delivery = _read(path)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            troubles.append(f"{path}: not a delivery: {error}; it is not sent; {set_aside(path)}")
            return
        if path.name == delivery.key + SUFFIX and is_sound(delivery):
            found.append(delivery)
        else:
            troubles.append(f"{path}: it says that it is {delivery.key}; it is not sent; {set_aside(path)}")

    def keep(self, delivery: Delivery) -> str:
        """Write it; "" or why that can't be. Not synced: the journal's records are not either, and the bundle is."""
        path = self._dir / f"{delivery.key}{SUFFIX}"
        fresh = self._dir / f"{delivery.key}.new"
        try:
            with open(self._open(fresh), "wb", buffering=0) as file:
                data = _encode(delivery)
                if len(data) > MAX_FILE:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(fresh, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            return f"{self._dir}: {error.strerror}"
        return ""

    def remove(self, delivery: Delivery) -> str:
        """It was sent or given up; "" or why the file stays (it is then sent again at the next start, harmlessly)."""
        try:
            os.unlink(self._dir / f"{delivery.key}{SUFFIX}")
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


def _read(path: Path) -> Delivery:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return _decode(file.read(MAX_FILE))
