"""file:quarantine, the first half: a file of a container is found, proven to be its own, and kept. Nothing is changed.

Keep, take away and give back (`agent.work.disuse`) have the caller's journal between them, so each finds the file anew,
by descriptors, and proves again:
- the process's root is the overlay that the runtime mounted, and none of the node's (`agent.work.rootfs`);
- the file is reached without leaving that mount, so it is on no volume and no hostPath;
- it is regular, with one name, and lies in the overlay's upper directory, unless files of the image are wanted too.
The executable of a process is opened through /proc/PID/exe, wherever it was renamed to since. One that has no name any
more is in memory only (a memfd: on the kernel's own tmpfs, which is mounted nowhere) or deleted (on that very overlay).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from agent.jobs import VOLATILE, KeepFileJob, KeptFile, QuarantineJob
from agent.node.procfs import text
from agent.work.download import copy
from agent.work.files import BENEATH_NO_LINKS, Looks, look, open_beneath
from agent.work.held import Process, hold
from agent.work.rootfs import ONE_FILE_SYSTEM, container_root, find, is_overlay
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetGone, TargetRefused

ASIDE = b".stoop-quarantine-"
"""What the name in quarantine begins with; the act's id follows."""

ACT_DIGITS = 32
"""Of the act's id in that name."""

MAX_XATTRS = 256 * 1024
"""Bytes of extended attributes that are kept of one file: ext4 has room for 64 KiB."""

UPPER, IMAGE, DELETED, MEMFD = "upper", "image", "deleted", "memfd"
"""Where a file is (`KeptFile.layer`)."""

NO_LINKS = ONE_FILE_SYSTEM | 0x04
"""And RESOLVE_NO_SYMLINKS: of a name that was resolved before."""

PATH = os.O_PATH | os.O_CLOEXEC
DIRECTORY = PATH | os.O_DIRECTORY

_ORIGIN = "trusted.overlay.origin"
# overlayfs.rst: a file that was copied up has it. Only CAP_SYS_ADMIN of the node sees or makes it.

_INTERPRETER = re.compile(
    rb"(ba|da|a|k|z|c|tc|fi|mk|pdk|ya)?sh|busybox|toybox|python[0-9.]*|perl[0-9.]*|ruby[0-9.]*|node(js)?|deno|bun"
    rb"|php[0-9.]*(-fpm[0-9.]*)?|lua(jit)?[0-9.]*|java|dotnet|mono|tclsh[0-9.]*|[gm]?awk|ld(-linux|-musl)?[-.\w]*\.so[.0-9]*"
)
# What runs scripts, and the ELF loader. Only names of the image's own files are looked at, which no attacker chose.


class Place(NamedTuple):
    """A file by its descriptor (O_PATH), and the directory that it lies in (O_PATH). Without a name: no directory."""

    file: int
    parent: int
    directory: bytes
    name: bytes
    looks: Looks


def read(teller: Teller, job: KeepFileJob, fds: tuple[int, ...]) -> None:
    """Copy the file. Raises TargetGone, TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    with container_root(job, fds, job.host_mounts) as (_, root):
        if not teller.may("find the file"):
            return
        prove_root(root, job.device)
        with _found(root, job) as place:
            layer = prove(place, job)
            looks = place.looks
            for most, whose in ((job.limit, "the act's bound"), (job.room, "what the evidence store has room for")):
                if looks.size > most:
                    raise TargetRefused(
                        f"{_called(place)}: {looks.size} bytes; more than {most} are not kept ({whose})"
                    )
            kept = KeptFile(
                place.directory,
                place.name,
                ASIDE + job.origin.act[:ACT_DIGITS].encode("ascii", "replace") if place.name else b"",
                looks.device,
                looks.inode,
                looks.size,
                looks.mtime_ns,
                looks.ctime_ns,
                looks.mode & 0o7777,
                looks.uid,
                looks.gid,
                layer,
            )
            about = {"file": msgspec.to_builtins(kept), "xattrs": xattrs(place.file)}
            copy(teller, place.file, job.path or place.name or layer.encode(), job.limit, looks.device, about)


def _called(place: Place) -> str:
    return text(place.name) if place.name else "its executable"


# ------------------------------------------------------------ proving


def prove_root(root: int, device: str) -> None:
    """Raises TargetRefused unless it is a container's own overlay, the one with this device where that is known."""
    if not is_overlay(root):
        raise TargetRefused("its root is no overlay: what is the container's own can't be told from the node's")
    ours = look(root).device
    for path in ("/", "/proc/1/root"):
        with contextlib.suppress(OSError):
            other = os.open(path, DIRECTORY)
            node = look(other).device
            os.close(other)
            if node == ours:
                raise TargetRefused("its root lies on the node's own file system")
    if device and device != ours:
        raise TargetRefused(f"its root is not what the runtime mounted for it: device {ours}, not {device}")
    if os.statvfs(f"/proc/self/fd/{root}").f_flag & os.ST_RDONLY:
        raise TargetRefused("its root is read-only: nothing was dropped there, and nothing can be changed")


def prove(place: Place, job: QuarantineJob) -> str:
    """Which layer the file is of (`KeptFile.layer`). Raises TargetRefused unless it may be taken away."""
    if not place.looks.is_regular:
        raise TargetRefused(f"{_called(place)}: it is no regular file")
    if not place.name:
        return MEMFD if place.looks.device == memory_device() else DELETED
    if place.looks.links != 1:
        raise TargetRefused(f"{text(place.name)}: it has {place.looks.links} names; only one would be taken away")
    if not job.upper and not job.lower:
        raise TargetRefused("the runtime does not tell the overlay's upper directory, so not what the container wrote")
    copied_up = _in_upper(place, job.upper)
    if copied_up is None and not job.lower:
        raise TargetRefused(
            f"{text(place.name)}: it is the image's, not in what the container wrote (image_files: true takes it away)"
        )
    if copied_up is not False and _INTERPRETER.fullmatch(place.name) and not job.interpreters:
        raise TargetRefused(
            f"{text(place.name)}: it is the image's, and what its scripts run by: without it the container breaks "
            "(interpreters: true takes it away; a script is to be named by `file`)"
        )
    return IMAGE if copied_up is None else UPPER


def _in_upper(place: Place, upper: str) -> bool | None:
    """Whether the file was copied up from the image; None when it is not in the upper directory at all.

    It is there when the same place has a file that looks the same: the overlay shows its times, mode and owner.
    Raises TargetRefused when the directory can't be opened.
    """
    if not upper:
        return None
    try:
        top = os.open(upper, DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise TargetRefused(f"{upper}: the overlay's upper directory can't be opened: {error.strerror}") from error
    try:
        path = (place.directory.strip(b"/") + b"/" + place.name).lstrip(b"/")
        fd = open_beneath(top, path, PATH, BENEATH_NO_LINKS)
    except OSError:
        return None
    finally:
        os.close(top)
    try:
        return _is_copied_up(fd) if _same(look(fd), place.looks) else None
    finally:
        os.close(fd)


def _is_copied_up(fd: int) -> bool:
    try:
        os.getxattr(f"/proc/self/fd/{fd}", _ORIGIN)
    except OSError:
        return False
    return True


def _same(one: Looks, other: Looks) -> bool:
    fields = ("mode", "size", "links", "uid", "gid", "mtime_ns", "ctime_ns")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def memory_device() -> str:
    """MAJOR:MINOR of the tmpfs that every memfd lies on, and nothing that has a name (memfd_create(2))."""
    own = os.memfd_create("stoop", os.MFD_CLOEXEC)
    try:
        return look(own).device
    finally:
        os.close(own)


def xattrs(file: int) -> dict[str, str]:
    """Extended attributes, as hexadecimal digits, by name. What is more than MAX_XATTRS, and names that are no plain
    text, are left out."""
    path = f"/proc/self/fd/{file}"
    found, size = {}, 0
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):
                value = os.getxattr(path, name)
                size += len(name) + len(value)
                if size > MAX_XATTRS:
                    break
                if name.isprintable():  # else it could not be set again by what the manifest says
                    found[name] = value.hex()
    return found


# ------------------------------------------------------------ finding


@contextlib.contextmanager
def _found(root: int, job: KeepFileJob) -> Iterator[Place]:
    """The file that the job means. Raises TargetGone, TargetRefused, ActFailed."""
    if job.path:
        file = _find(root, job.path)
    else:
        with executable(job) as (held, file):
            looks = look(file)
            named = _named(root, held.link("exe"), looks)
            if named < 0:
                yield Place(file, -1, b"", b"", looks)
                return
            file = named
    try:
        with _in_its_directory(root, job.path, file) as place:
            yield place
    finally:
        os.close(file)


@contextlib.contextmanager
def executable(job: QuarantineJob) -> Iterator[tuple[Process, int]]:
    """The job's second process, held, and its executable (O_PATH). Raises TargetGone, TargetRefused."""
    if len(job.processes) < 2:
        raise TargetGone("the process whose executable is meant is not known")
    whom = job.processes[1]
    held = hold(whom.pid, whom.birth)
    try:
        file = os.open("exe", PATH, dir_fd=held.directory)
    except OSError as error:
        held.close()
        raise TargetGone(f"the executable of pid {whom.pid} can't be opened: {error.strerror}") from error
    try:
        yield held, file
    finally:
        os.close(file)
        held.close()


def _named(root: int, name: bytes, looks: Looks) -> int:
    """An executable by its name in the container's root; -1 for one of the container's own that has none any more.

    What was deleted from the image keeps its count of names: the layer below has it still (overlayfs.rst).
    """
    own = looks.device in (memory_device(), look(root).device)
    if own and not looks.links:
        return -1
    try:
        return _same_as(root, name, looks)
    except TargetRefused:
        if own and name.endswith(b" (deleted)"):
            return -1
        raise


def _same_as(root: int, name: bytes, looks: Looks) -> int:
    """By its name in the container's root. Raises TargetRefused when that is another file."""
    file = -1
    with contextlib.suppress(TargetGone):
        file = _find(root, name)
        found = look(file)
        if (found.device, found.inode) == (looks.device, looks.inode):
            return file
    if file >= 0:
        os.close(file)
    raise TargetRefused(f"{text(name)}: the executable is not what its container has by that name")


def _find(root: int, path: bytes) -> int:
    """What the container calls so, links followed, on its own overlay. Raises TargetGone, TargetRefused, ActFailed."""
    try:
        return find(root, path, ONE_FILE_SYSTEM)
    except ActFailed as error:
        number = getattr(error.__cause__, "errno", 0)
        if number in (errno.ENOENT, errno.ENOTDIR):
            raise TargetGone(error.reason) from error
        if number in (errno.EXDEV, errno.ELOOP):
            raise TargetRefused(error.reason) from error
        raise


@contextlib.contextmanager
def _in_its_directory(root: int, path: bytes, file: int) -> Iterator[Place]:
    looks = look(file)
    if not looks.is_regular:
        raise TargetRefused(f"{text(path)}: it is no regular file")
    directory, _, name = os.readlink(f"/proc/self/fd/{file}".encode()).rpartition(b"/")
    parent = find(root, directory or b"/", NO_LINKS, DIRECTORY)
    try:
        if not is_named(parent, name, looks.inode):
            raise TargetGone(f"{text(path or name)}: it has no name any more, or is renamed meanwhile")
        yield Place(file, parent, directory or b"/", name, looks)
    finally:
        os.close(parent)


def is_named(parent: int, name: bytes, inode: int) -> bool:
    """Whether this name in this directory is that file's. The device is the directory's: nothing was crossed."""
    try:
        found = look(parent, name)
    except OSError:
        return False
    return found.is_regular and found.inode == inode
