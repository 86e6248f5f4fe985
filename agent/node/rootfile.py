"""Small files that only root could have written: read whole, within a bound, and believed for that reason alone."""

from __future__ import annotations

import errno
import os
import stat

ROOT = 0


class Unproven(Exception):
    """The file can't be believed; the message says why."""


def read(path: str, limit: int, owner: int = ROOT) -> bytes:
    """The content of a regular file of `owner` that nobody else may write, at most `limit` bytes.

    Raises FileNotFoundError, and Unproven for anything else. It never waits: neither for a FIFO nor a device
    (O_NONBLOCK), and it follows no symlink in the last step.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        what = "it is a symlink" if error.errno == errno.ELOOP else error.strerror
        raise Unproven(f"{path}: {what}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Unproven(f"{path}: not a regular file")
        if status.st_uid != owner or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unproven(f"{path}: others than uid {owner} may write it")
        if status.st_size > limit:
            raise Unproven(f"{path}: {status.st_size} bytes, more than {limit}")
        return _whole(file, path, limit)
    finally:
        os.close(file)


def _whole(file: int, path: str, limit: int) -> bytes:
    parts, total = [], 0
    while part := os.read(file, limit + 1 - total):
        parts.append(part)
        total += len(part)
        if total > limit:
            raise Unproven(f"{path}: grew beyond {limit} bytes")
    return b"".join(parts)
