"""Files whose names or contents a target chose, read by a worker: bounded, through descriptors, no link followed.

openat2(2), statx(2): Python 3.11 has neither. Nothing here opens a name without saying how far it may lead.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from agent.work.aside import libc

BENEATH_NO_LINKS = 0x01 | 0x02 | 0x04 | 0x08
"""RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH (include/uapi/linux/openat2.h): below the directory, on its file
system, through no link at all."""

CHUNK = 256 * 1024
FIRST = 16 * 1024

_SYS_OPENAT2 = 437
# The same number on every architecture (asm-generic/unistd.h).

_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_BASIC = 0x7FF

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: a FIFO without a writer is opened at once (and then seen to be none of ours)."""


class _How(ctypes.Structure):
    """struct open_how (openat2(2))."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_uint32), ("reserved", ctypes.c_int32))


class _Statx(ctypes.Structure):
    """struct statx (statx(2))."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("spare", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _Time),
        ("btime", _Time),
        ("ctime", _Time),
        ("mtime", _Time),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("tail", ctypes.c_uint64 * 14),
    )


class Looks(NamedTuple):
    """What the kernel has of a file without asking its file system. Times: ns since 1970. `device`: MAJOR:MINOR."""

    device: str
    inode: int
    mode: int
    size: int
    links: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    rdev: tuple[int, int]

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


def look(fd: int, name: bytes = b"") -> Looks:
    """Of a descriptor (also O_PATH), or of a name in this directory, no link followed. Raises OSError."""
    found = _Statx()
    flags = _AT_STATX_DONT_SYNC | (_AT_SYMLINK_NOFOLLOW if name else _AT_EMPTY_PATH)
    if libc.statx(fd, name, flags, _STATX_BASIC, ctypes.byref(found)):
        raise _error(name)
    return Looks(
        f"{found.dev_major}:{found.dev_minor}",
        found.ino,
        found.mode,
        found.size,
        found.nlink,
        found.uid,
        found.gid,
        found.mtime.seconds * 10**9 + found.mtime.nanoseconds,
        found.ctime.seconds * 10**9 + found.ctime.nanoseconds,
        (found.rdev_major, found.rdev_minor),
    )


def open_beneath(directory: int, name: bytes, flags: int = READ, resolve: int = BENEATH_NO_LINKS) -> int:
    """openat2(2). Raises OSError: ELOOP for a link, EXDEV for what lies elsewhere, ENOSYS before Linux 5.6."""
    if b"\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    fd = libc.syscall(_SYS_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        raise _error(name)
    return int(fd)


def reopen(path_fd: int) -> int:
    """Open for reading what an O_PATH descriptor stands for. The caller has looked that it is a regular file."""
    return os.open(f"/proc/self/fd/{path_fd}", READ)


def read_at(directory: int, name: str, limit: int, *, at_once: bool = False) -> tuple[bytes, bool]:
    """A whole small file of /proc or a cgroup, at most so many bytes, and whether it was cut. Raises OSError.

    `at_once`: the kernel makes it whole for the first read, so one that is not filled is the end.
    """
    fd = os.open(name, READ, dir_fd=directory)
    try:
        # Few are larger, and what is asked for is made first.
        data = os.read(fd, min(limit + 1, FIRST))
        if not data or len(data) > limit or (at_once and len(data) < FIRST):
            return data[:limit], len(data) > limit
        parts, size = [data], len(data)
        while size <= limit and (data := os.read(fd, min(limit + 1 - size, CHUNK))):
            parts.append(data)
            size += len(data)
    finally:
        os.close(fd)
    return (parts[0] if len(parts) == 1 else b"".join(parts))[:limit], size > limit


def names(directory: int, limit: int) -> list[bytes]:
    """At most so many names in a directory, in the order in which the kernel gives them. Raises OSError.

    One at a time: a target can make a directory with more names than there is memory for.
    """
    with os.scandir(directory) as entries:
        return [os.fsencode(entry.name) for entry in itertools.islice(entries, limit)]


def pieces(fd: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes from where the descriptor stands; fewer when the file has shrunk. Raises OSError."""
    while size > 0 and (data := os.read(fd, min(size, CHUNK))):
        size -= len(data)
        yield data


def _error(name: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fsdecode(name) or None)
