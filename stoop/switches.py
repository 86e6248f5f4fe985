"""What a person switches while the agent runs: its mode, and rules that disarmed themselves. Kept over restarts.

Two small files beside the journal, replaced by rename so that a crash leaves the old or the new one. What a person
switched is synced before he has his answer; a rule that disarms itself is not, for that is on the way to an act. A mode
that can't be read means observe: the emergency stop must not be undone by a broken file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from stoop.spec import (
    Mode,
)

T = TypeVar("T")

MODE_FILE = "mode.json"
DISARMED_FILE = "disarmed.json"

MAX_FILE = 1024 * 1024
"""A larger file is not ours: 10,000 rule names fit many times."""


class Warn(Protocol):
    """Says something loudly: a constant message and keys."""

    def __call__(self, event: str, **fields: object) -> None: ...


class Switched(msgspec.Struct, frozen=True):
    """A mode set by a person: until `until_ns` (CLOCK_REALTIME), 0 for good."""

    mode: Mode
    until_ns: int = 0


class Switches:
    """The mode in force and the disarmed rules. The constructor reads nothing; call `load` first."""

    def __init__(self, state_dir: Path, configured: Mode, warn: Warn) -> None:
        self._dir = state_dir
        self._configured = configured
        self._warn = warn
        self._switched: Switched | None = None
        self.disarmed: dict[str, str] = {}

    def load(self) -> None:
        """Read both files. Trouble with them is said and answered on the safe side, never raised."""
        self._switched = self._read(MODE_FILE, Switched, Switched(Mode.OBSERVE))
        disarmed = self._read(DISARMED_FILE, dict[str, str], {"*": f"{DISARMED_FILE} can't be read"})
        self.disarmed = disarmed if disarmed is not None else {}

    def mode(self, now_ns: int) -> Mode:
        """The mode in force: what was switched to, while it lasts, else what is configured."""
        switched = self._switched
        if switched is None:
            return self._configured
        if switched.until_ns and now_ns >= switched.until_ns:
            self._switched = None
            self._warn("the switched mode ended", was=str(switched.mode), now=str(self._configured))
            self._remove(MODE_FILE)
            return self._configured
        return switched.mode

    @property
    def until_ns(self) -> int:
        """When the switched mode ends; 0 when it does not."""
        return self._switched.until_ns if self._switched is not None else 0

    def switch(self, mode: Mode, until_ns: int = 0) -> bool:
        """Another mode from now on. Holds at once; False when the file can't be written, so not over a restart."""
        self._switched = Switched(mode, until_ns)
        return self._write(MODE_FILE, self._switched)

    def disarm(self, rule: str, reason: str) -> None:
        """Keep that a rule disarmed itself."""
        self.disarmed[rule] = reason
        self._write(DISARMED_FILE, self.disarmed)

    def arm(self, rule: str) -> None:
        """Keep that a rule is armed again (`*`: all of them)."""
        if rule == "*":
            self.disarmed.clear()
        self.disarmed.pop(rule, None)
        self._write(DISARMED_FILE, self.disarmed)

    def sync(self) -> str:
        """Wait until the disk has what was kept last (fsync(2)): for a thread. Gives "", or why it may not have it."""
        try:
            for name in (MODE_FILE, DISARMED_FILE, "."):  # the directory holds their names
                _sync(self._dir / name)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _read(self, name: str, kind: type[T], otherwise: T) -> T | None:
        path = self._dir / name
        try:
            # Not to be waited for: what is no file (a pipe) gives nothing, which is no mode either.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                return msgspec.json.decode(file.read(MAX_FILE), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._warn("a switch can't be read: taken on the safe side", file=str(path), error=str(error))
            return otherwise

    def _write(self, name: str, value: object) -> bool:
        path, fresh = self._dir / name, self._dir / f"{name}.new"
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(value))
            fresh.replace(path)
        except OSError as error:
            self._warn("a switch can't be kept: it holds until the agent ends", file=str(path), error=str(error))
            return False
        return True

    def _remove(self, name: str) -> None:
        try:
            (self._dir / name).unlink(missing_ok=True)
        except OSError as error:
            self._warn("a switch can't be removed", file=str(self._dir / name), error=str(error))


def _sync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing was switched, or it ended
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
