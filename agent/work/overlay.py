"""What a container changed in its files: the list of its overlay's upper directory (overlayfs of the kernel's docs).

The directory is the runtime's, the names and files in it are the container's. So nothing in it is opened but
directories, each from the descriptor of the one above, without following a link; files are only looked at.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Any, NamedTuple

import msgspec

from agent.node.procfs import text
from agent.work.files import Looks, look, names, open_beneath

MAX_ENTRIES = 20_000
"""Entries told; some 250 bytes each. An unpacked archive of the attacker's may have more: the list says so."""

MAX_DEPTH = 64
"""Levels below the directory, each a descriptor while it is walked."""

_OCTAL = re.compile(rb"\\([0-7]{3})")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo, as far as it is used."""

    device: str  # MAJOR:MINOR
    point: bytes
    kind: str
    options: bytes  # of the file system


def parse_mountinfo(data: bytes) -> list[Mount]:
    """Parse /proc/PID/mountinfo (proc(5)). Lines that are none are left out."""
    found = []
    for line in data.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        words, rest = before.split(b" "), after.split(b" ", 2)
        if separator and len(words) >= 6 and len(rest) == 3:
            found.append(Mount(text(words[2]), _plain(words[4]), text(rest[0]), rest[2]))
    return found


def upper_of(mounts: list[Mount]) -> bytes:
    """The upper directory of the overlay that is the root, as whoever mounted it named it; b"" when there is none."""
    root = next((mount for mount in mounts if mount.point == b"/"), None)
    if root is None or root.kind != "overlay":
        return b""
    for option in root.options.split(b","):
        if option.startswith(b"upperdir="):
            return _plain(option.removeprefix(b"upperdir="))
    return b""


def _plain(word: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), word)


class Changes:
    """The list of one upper directory: `lines`, one JSON object each."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.lacks: list[str] = []
        self._device = ""

    def walk(self, top: int) -> None:
        """List all below the directory that this descriptor is of."""
        self._device = look(top).device
        self._directory(top, b"", 1)

    def _directory(self, fd: int, path: bytes, depth: int) -> None:
        try:
            found_names = sorted(names(fd, MAX_ENTRIES + 1 - len(self.lines)))
        except OSError as error:
            self.lacks.append(f"{text(path)}: {error.strerror}")
            return
        for name in found_names:
            if len(self.lines) >= MAX_ENTRIES:
                return
            try:
                found = look(fd, name)
            except OSError:
                continue  # removed since it was listed
            below = path + b"/" + name
            if stat.S_ISDIR(found.mode):
                self._below(fd, name, below, found, depth)
            else:
                self._tell(told(below, found))

    def _below(self, fd: int, name: bytes, path: bytes, found: Looks, depth: int) -> None:
        entry = told(path, found)
        try:
            if depth >= MAX_DEPTH:
                raise OSError(errno.ELOOP, f"more than {MAX_DEPTH} levels deep")
            directory = open_beneath(fd, name, _DIRECTORY)
        except OSError as error:
            self._tell(entry)
            self.lacks.append(f"{text(path)}: {error.strerror}")
            return
        try:
            elsewhere = look(directory).device != self._device
            if _is_opaque(directory):
                entry["change"] = "replaced"
            self._tell(entry)
            if elsewhere:
                self.lacks.append(f"{text(path)}: it lies on another file system")
            else:
                self._directory(directory, path, depth + 1)
        finally:
            os.close(directory)

    def _tell(self, entry: dict[str, Any]) -> None:
        self.lines.append(msgspec.json.encode(entry))
        if len(self.lines) == MAX_ENTRIES:
            self.lacks.append(f"more than {MAX_ENTRIES} entries: the rest is not told")


def told(path: bytes, found: Looks) -> dict[str, Any]:
    """One entry. A character device 0:0 is overlayfs's whiteout: the image's file of that name was removed."""
    kind = _KINDS.get(stat.S_IFMT(found.mode), "?")
    entry: dict[str, Any] = {
        "path": text(path),
        "kind": kind,
        "mode": f"{stat.S_IMODE(found.mode):04o}",
        "uid": found.uid,
        "gid": found.gid,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "ctime_ns": found.ctime_ns,
        "links": found.links,
        "inode": found.inode,
    }
    if stat.S_ISCHR(found.mode) and found.rdev == (0, 0):
        entry["change"] = "removed"
    return entry


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False
