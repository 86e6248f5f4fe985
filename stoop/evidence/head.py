"""`head.json`: the end of the chain, so that bundles removed from it are missed."""

from __future__ import annotations

import os

import msgspec

HEAD = "head.json"

MAX_HEAD = 4096
"""Bytes; it has some 300."""


class Coming(msgspec.Struct, frozen=True):
    """A manifest that is about to replace an earlier one of this bundle, whose name does not tell this sequence."""

    bundle: str
    sequence: int
    manifest: str


class Head(msgspec.Struct, frozen=True):
    """The end of the chain. Places below `oldest` were let go on purpose; one missing above was not."""

    sequence: int = 0
    manifest: str = ""
    oldest: int = 1
    coming: Coming | None = None


def read_head(directory: int) -> Head | None:
    """As the file in this directory says; None where there is none that can be read."""
    try:
        fd = os.open(HEAD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(fd, MAX_HEAD), type=Head)
    except (msgspec.MsgspecError, OSError):
        return None
    finally:
        os.close(fd)


def write_head(directory: int, head: Head, draft: str) -> None:
    """Replace the file, by way of this name. Raises OSError."""
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.write(fd, msgspec.json.encode(head) + b"\n")
        os.fdatasync(fd)
    finally:
        os.close(fd)
    os.rename(draft, HEAD, src_dir_fd=directory, dst_dir_fd=directory)
