"""The beacon: a directory of the agent alone, and one file in it for as long as a beat takes."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from itertools import islice

import trio

from stoop.heartbeat import Beat, is_token

MAX_LEFTOVERS = 1000
"""Files of earlier agents removed at a start. Each that was killed amid a beat leaves one at most."""


class Beacon:
    """Makes and removes files below `path`, in a thread: a file system may block.

    One that hangs holds its thread for as long as that lasts; no second one is started beside it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._one = trio.CapacityLimiter(1)

    async def prepare(self) -> None:
        """Make the directory, or see that the one there is ours alone; remove what earlier agents left in it.

        Raises OSError; PermissionError where another user could open files in it, and so answer for the agent.
        """
        await trio.to_thread.run_sync(_prepare, self._path, abandon_on_cancel=True, limiter=self._one)

    async def touch(self, beat: Beat) -> None:
        """Make, open for writing, close and remove the beat's file. The times around the open go into the beat.

        Raises OSError. The path goes whole to the kernel (no dir_fd): Falco tells it as it was given (`fd.name`).
        """
        await trio.to_thread.run_sync(_touch, self._path, beat, abandon_on_cancel=True, limiter=self._one)


def _prepare(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(0, "it must be a directory of the agent's own user with mode 0700", path)
    with os.scandir(path) as entries:
        for entry in islice(entries, MAX_LEFTOVERS):
            if is_token(entry.name):
                os.unlink(entry.path)


def _touch(path: str, beat: Beat) -> None:
    name = f"{path}/{beat.token}"
    beat.begun_mono_ns = time.monotonic_ns()
    beat.begun_ns = time.time_ns()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    beat.done_ns = time.time_ns()
    os.close(fd)
    os.unlink(name)
