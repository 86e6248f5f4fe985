"""file:quarantine: a file of a container is kept as evidence, then taken out of use where it lies; and given back.

Three steps, between which the caller writes its journal: `read` copies and changes nothing; `perform` takes mode and
name away; `perform` with `back` gives both back. Each finds the file anew, by descriptors, and proves again:

- the process's root is an overlay, and none of the node's file systems (`agent.work.rootfs`);
- the file is reached without leaving that mount, so it is on no volume and no hostPath;
- it is regular, with one name, and lies in the overlay's upper directory, unless files of the image are wanted too.
What is changed is a mode, by the descriptor of that very file, and a name in a directory that is the container's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from agent.jobs import VOLATILE, AnyJob, AsideJob, KeepFileJob, KeptFile, Result
from agent.node.procfs import text
from agent.work.aside import libc
from agent.work.download import copy
from agent.work.files import BENEATH_NO_LINKS, Looks, look, open_beneath
from agent.work.rootfs import ONE_FILE_SYSTEM, container_root, find, is_overlay
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetGone, TargetRefused

ASIDE = b".stoop-quarantine-"
"""What the name in quarantine begins with; the act's id follows."""

ACT_DIGITS = 32
"""Of the act's id in that name."""

_NO_LINKS = ONE_FILE_SYSTEM | 0x04  # RESOLVE_NO_SYMLINKS
_PATH = os.O_PATH | os.O_CLOEXEC
_DIRECTORY = _PATH | os.O_DIRECTORY
_ITSELF = _PATH | os.O_NOFOLLOW
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)


class Place(NamedTuple):
    """A file by its descriptor (O_PATH), and the directory that it lies in (O_PATH)."""

    file: int
    parent: int
    directory: bytes
    name: bytes
    looks: Looks


# ------------------------------------------------------------ keeping


def read(teller: Teller, job: KeepFileJob, fds: tuple[int, ...]) -> None:
    """Copy the file. Raises TargetGone, TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    with container_root(job, fds, job.host_mounts) as (_, root):
        if not teller.may("find the file"):
            return
        _prove_root(root)
        with _found(root, job.path) as place:
            _prove(place, job.upper, job.lower)
            looks = place.looks
            if looks.size > job.limit:
                raise TargetRefused(f"{text(job.path)}: {looks.size} bytes; more than {job.limit} are not kept")
            kept = KeptFile(
                place.directory,
                place.name,
                ASIDE + job.origin.act[:ACT_DIGITS].encode("ascii", "replace"),
                looks.device,
                looks.inode,
                looks.size,
                looks.mtime_ns,
                looks.ctime_ns,
                looks.mode & 0o7777,
                looks.uid,
                looks.gid,
            )
            about = {"file": msgspec.to_builtins(kept), "xattrs": _xattrs(place.file)}
            copy(teller, place.file, job.path, job.limit, looks.device, about)


def _prove_root(root: int) -> None:
    """Raises TargetRefused."""
    if not is_overlay(root):
        raise TargetRefused("its root is no overlay: what is the container's own can't be told from the node's")
    ours = look(root).device
    for path in ("/", "/proc/1/root"):
        with contextlib.suppress(OSError):
            other = os.open(path, _DIRECTORY)
            node = look(other).device
            os.close(other)
            if node == ours:
                raise TargetRefused("its root lies on the node's own file system")
    if os.statvfs(f"/proc/self/fd/{root}").f_flag & os.ST_RDONLY:
        raise TargetRefused("its root is read-only: nothing was dropped there, and nothing can be changed")


@contextlib.contextmanager
def _found(root: int, path: bytes) -> Iterator[Place]:
    """What the container calls so, links followed. Raises ActFailed, TargetRefused."""
    file = find(root, path, ONE_FILE_SYSTEM)
    try:
        if not look(file).is_regular:
            raise TargetRefused(f"{text(path)}: it is no regular file")
        directory, _, name = os.readlink(f"/proc/self/fd/{file}".encode()).rpartition(b"/")
        parent = find(root, directory or b"/", _NO_LINKS, _DIRECTORY)
        try:
            found = look(file)
            if not _is(parent, name, found.device, found.inode):
                raise TargetRefused(f"{text(path)}: it has no name any more, or is renamed meanwhile")
            yield Place(file, parent, directory or b"/", name, found)
        finally:
            os.close(parent)
    finally:
        os.close(file)


def _is(parent: int, name: bytes, device: str, inode: int) -> bool:
    """Whether this name in this directory is that file's."""
    try:
        found = look(parent, name)
    except OSError:
        return False
    return found.is_regular and (found.device, found.inode) == (device, inode)


def _prove(place: Place, upper: str, lower: bool) -> None:
    """Raises TargetRefused unless this file may be taken away."""
    if not place.looks.is_regular:
        raise TargetRefused(f"{text(place.name)}: it is no regular file")
    if place.looks.links != 1:
        raise TargetRefused(f"{text(place.name)}: it has {place.looks.links} names; only one would be taken away")
    if not lower and not _in_upper(place, upper):
        raise TargetRefused(f"{text(place.name)}: it is the image's, not in what the container wrote (lower: true)")


def _in_upper(place: Place, upper: str) -> bool:
    """Whether the upper directory has this file at the same place: the overlay shows its times, mode and owner."""
    if not upper.startswith("/"):
        raise TargetRefused("the runtime does not tell the overlay's upper directory")
    try:
        top = os.open(upper, _DIRECTORY | os.O_NOFOLLOW)
        try:
            path = (place.directory.strip(b"/") + b"/" + place.name).lstrip(b"/")
            fd = open_beneath(top, path, _PATH, BENEATH_NO_LINKS)
        finally:
            os.close(top)
    except OSError:
        return False
    try:
        return _same(look(fd), place.looks)
    finally:
        os.close(fd)


def _same(one: Looks, other: Looks) -> bool:
    fields = ("mode", "size", "links", "uid", "gid", "mtime_ns", "ctime_ns")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def _xattrs(file: int) -> dict[str, str]:
    """Extended attributes, as hexadecimal digits: what a person needs who puts the copy back by hand."""
    path = f"/proc/self/fd/{file}"
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):
                found[text(os.fsencode(name))] = os.getxattr(path, name).hex()
    return found


# ------------------------------------------------------------ aside, and back


def perform(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    """Take it out of use, or give it back. Raises TargetGone, TargetRefused, ActFailed."""
    assert isinstance(job, AsideJob)
    with container_root(job, fds, job.host_mounts) as (_, root):
        _prove_root(root)
        kept = job.file
        parent = find(root, kept.directory, _NO_LINKS, _DIRECTORY)
        try:
            names = (kept.aside, kept.name) if job.back else (kept.name, kept.aside)
            name = next((each for each in names if _is(parent, each, kept.device, kept.inode)), None)
            if name is None:
                raise TargetGone(f"{text(kept.name)}: the file is gone, or another one has its name by now")
            file = open_beneath(parent, name, _ITSELF, _NO_LINKS)
            try:
                place = Place(file, parent, kept.directory, name, look(file))
                if (place.looks.device, place.looks.inode) != (kept.device, kept.inode):
                    raise TargetGone(f"{text(kept.name)}: it was replaced meanwhile")
                return _give_back(place, kept) if job.back else _take_away(place, job)
            finally:
                os.close(file)
        finally:
            os.close(parent)


def _take_away(place: Place, job: AsideJob) -> Result:
    kept = job.file
    _prove(place, job.upper, job.lower)
    # What the copy is of: its content (mtime, size) and, as long as we did not touch it, all else (ctime).
    ours = place.looks.mode & 0o7777 == 0
    changed = (place.looks.size, place.looks.mtime_ns) != (kept.size, kept.mtime_ns) or (
        not ours and place.looks.ctime_ns != kept.ctime_ns
    )
    _change_mode(place.file, 0)
    if place.name != kept.aside:
        _rename(place.parent, kept.name, kept.aside)
        now = look(place.file)  # a file of the image was copied up
        if not _is(place.parent, kept.aside, now.device, now.inode):
            # Somebody put another file there between the two: give that one its name back.
            with contextlib.suppress(ActFailed):
                _rename(place.parent, kept.aside, kept.name)
            raise ActFailed(f"{text(kept.name)}: it was replaced meanwhile; it has mode 000, wherever it is")
    return Result(True, details={"changed": changed})


def _give_back(place: Place, kept: KeptFile) -> Result:
    """Name and mode; a mode that somebody else gave it since is theirs, and told."""
    theirs = place.looks.mode & 0o7777 not in (0, kept.mode)
    if place.name != kept.name:
        _rename(place.parent, kept.aside, kept.name)
    if not theirs:
        _change_mode(place.file, kept.mode)
    now = look(place.file)
    content = (now.size, now.mtime_ns) != (kept.size, kept.mtime_ns)
    owner = (now.uid, now.gid) != (kept.uid, kept.gid)
    left = [word for word, is_so in (("mode", theirs), ("content", content), ("owner", owner)) if is_so]
    return Result(True, f"changed by others since, and left so: {', '.join(left)}" if left else "", {"theirs": left})


def _change_mode(file: int, mode: int) -> None:
    """By the descriptor of the file, whatever its name is by now. Raises ActFailed."""
    try:
        os.chmod(f"/proc/self/fd/{file}", mode)
    except OSError as error:
        raise ActFailed(f"its mode can't be changed: {error.strerror}") from error


def _rename(parent: int, old: bytes, new: bytes) -> None:
    """Within one directory; nothing is replaced. Raises ActFailed."""
    if libc.renameat2(parent, old, parent, new, _NOREPLACE):
        number = ctypes.get_errno()
        why = "another file has that name by now" if number == errno.EEXIST else os.strerror(number)
        raise ActFailed(f"{text(old)} can't be renamed to {text(new)}: {why}")
