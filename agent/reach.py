"""Whether an intake that listens can be reached: a unix socket can lose its name, and the listener does not notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class Reach:
    """Looks after falco.sock. `lost`: intakes that nobody can connect to any more, and why."""

    def __init__(self, say: Callable[..., Any]) -> None:
        self._say = say
        self._inode = 0
        self.lost: dict[str, str] = {}

    def look(self, path: str | None) -> None:
        """Compare what has the socket's name with what had it at the first look. None: there is no such intake."""
        if path is None or "unix" in self.lost:
            return
        try:
            inode = os.lstat(path).st_ino
        except OSError:
            inode = -1
        self._inode = self._inode or inode
        if inode != self._inode:
            self.lost["unix"] = f"{path} was removed or replaced: restart the agent"
            self._say(
                "error", "an intake can't be reached any more", intake="unix", path=path, hint="restart the agent"
            )
