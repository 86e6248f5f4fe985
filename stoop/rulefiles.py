"""Reads the rules files and tells when their content has settled on something new. Runs in the reflex: it never parses.

A change is not one event. An editor truncates and writes in pieces, or renames a new file over the old one; Kubernetes
swaps a symlink two directories up. So events only start a look; what counts is that nothing writes any more (no event
for QUIET_SECONDS, every writer has closed) and that two readings agree.

    settled    the content differs from the last one told: told as a Reading without a problem
    suspect    gone, cut to nothing, or still being written after SETTLE_SECONDS: told as a Reading with a problem,
               so that the old rules stay; the watch goes on, and what the files settle on later is told as well
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from stoop.errors import UserError
from stoop.watching import Watch

QUIET_SECONDS = 0.05
"""Without an event for so long a save is taken to be over: editors write in one go, in far less."""

SETTLE_SECONDS = 2.0
"""How long to wait for a save to end, or for a file to come back: longer than any editor or ConfigMap update takes."""

POLL_SECONDS = 2.0
"""How often to look where inotify can't: a directory that is not there yet."""

SLOW_POLL_SECONDS = 30.0
"""How often to look where inotify watches, for what it can't see: network file systems, a directory moved further up."""

MAX_FILE = 16 * 1024 * 1024
"""Bytes of one rules file: some 50,000 rules. What is larger is something else, and would not fit into one frame."""

Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The files as they are now: (path as configured, content) in order. With a `problem` they must not be used."""

    files: Files
    problem: str = ""


class RuleFiles:
    """The rules files of a configuration. `read` once at the start, then `watch`; `reload` asks for a look (SIGHUP)."""

    def __init__(self, paths: Sequence[str], *, use_inotify: bool = True) -> None:
        self._paths = tuple(paths)
        self._use_inotify = use_inotify
        self._told = Reading(())
        self._good: Files = ()
        self._look = trio.Event()
        self._forced = False

    def read(self) -> Files:
        """All files, at the start. Raises UserError for the first that can't be read."""
        self._good = tuple((path, read_file(path)) for path in self._paths)
        self._told = Reading(self._good)
        return self._good

    def reload(self) -> None:
        """Look now, and tell the content even if it has not changed."""
        self._forced = True
        self._look.set()
