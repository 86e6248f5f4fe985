"""Wakes up when a file or its directory changes: inotify(7), and a slow look as a safety net."""

from __future__ import annotations

import contextlib
import errno
import os

import trio
from inotify_simple import INotify, flags

from stoop.intake.sink import Warn

_DIRECTORY = flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
_FILE = flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF


class FileWatch:
    """Watches one path. Without inotify (its limits are reached) it only looks every `poll_seconds`, and says so."""

    def __init__(self, path: str, poll_seconds: float, warn: Warn) -> None:
        self._path = path
        self._directory = os.path.dirname(path) or "."
        self._poll_seconds = poll_seconds
        self._warn = warn
        self._said = False
        self._inotify: INotify | None = None
        self._watches: set[int] = set()

    def __enter__(self) -> FileWatch:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            self._say(error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def renew(self) -> None:
        """Watch the directory and whatever the path names now. A watch stays with its inode over a rename."""
        if self._inotify is None:
            return
        for path, mask in ((self._directory, _DIRECTORY), (self._path, _FILE)):
            try:
                self._watches.add(self._inotify.add_watch(path, mask))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    self._say(error)

    def forget(self) -> None:
        """Drop every watch: after a rotation the old file needs none. `renew` sets new ones."""
        while self._inotify is not None and self._watches:
            with contextlib.suppress(OSError):  # EINVAL: the file is gone, and its watch with it
                self._inotify.rm_watch(self._watches.pop())

    async def wait(self) -> bool:
        """Return when something changed, or after `poll_seconds`; True unless it was only written to the file."""
        if self._inotify is None:
            await trio.sleep(self._poll_seconds)
            return True
        with trio.move_on_after(self._poll_seconds):
            await trio.lowlevel.wait_readable(self._inotify.fileno())
        masks = [event.mask for event in self._inotify.read(timeout=0)]
        return not masks or any(mask & ~flags.MODIFY for mask in masks)

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            self._warn(
                "inotify is not to be had: the file is only looked at from time to time",
                path=self._path,
                seconds=self._poll_seconds,
                error=error.strerror,
            )
