"""A file of a container made anew out of the bundle that it was kept in: content, owner, attributes, mode, time."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from agent.jobs import AsideJob
from agent.node.procfs import text
from agent.work.aside import libc
from agent.work.files import open_beneath
from agent.work.rootfs import ONE_FILE_SYSTEM
from stoop.errors import ActFailed
from stoop.evidence.manifest import Part
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.store import Store

REMADE = b".stoop-remade-"
"""What the name of a file that is being made begins with; the act's id follows. It lies beside where it will be."""

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE = ONE_FILE_SYSTEM | 0x04  # RESOLVE_NO_SYMLINKS
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)


def remake(parent: int, job: AsideJob) -> list[str]:
    """Make it in this directory (O_PATH), without permissions until it is whole; then give it its name, replacing
    nothing. Attributes that could not be set, each with the reason. Raises ActFailed."""
    kept = job.file
    beside = REMADE + kept.aside.rpartition(b"-")[2]
    try:
        with contextlib.suppress(FileNotFoundError):  # of an undo that was killed
            os.unlink(beside, dir_fd=parent)
        fd = open_beneath(parent, beside, _FLAGS, _RESOLVE)
    except OSError as error:
        raise ActFailed(f"{text(kept.name)} can't be made anew: {error.strerror}") from error
    try:
        lost = _fill(fd, job)
        os.fsync(fd)
        if libc.renameat2(parent, beside, parent, kept.name, _NOREPLACE):
            number = ctypes.get_errno()
            why = "another file has that name by now" if number == errno.EEXIST else os.strerror(number)
            raise ActFailed(f"{text(kept.name)} can't be made anew: {why}")
        return lost
    except (OSError, BundleError) as error:
        _remove(parent, beside)
        why = str(error.strerror) if isinstance(error, OSError) else f"bundle {job.bundle}: {error}"
        raise ActFailed(f"{text(kept.name)} can't be made anew: {why}") from error
    except ActFailed:
        _remove(parent, beside)
        raise
    finally:
        os.close(fd)


def _remove(parent: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=parent)


def _fill(fd: int, job: AsideJob) -> list[str]:
    """Content, then owner (which takes away set-id bits and capabilities), attributes, mode, and the time of change."""
    kept = job.file
    with Store(job.store, job.limits) as store, store.reading(job.bundle) as reader:
        part = _copy(reader, fd, job.sha256)
    os.fchown(fd, kept.uid, kept.gid)
    lost = []
    for name, value in part.about.get("xattrs", {}).items():
        try:
            os.setxattr(fd, name, bytes.fromhex(value))
        except OSError as error:
            lost.append(f"{name} ({error.strerror})")
    os.fchmod(fd, kept.mode)
    os.utime(fd, ns=(kept.mtime_ns, kept.mtime_ns))
    return lost


def _copy(reader: BundleReader, fd: int, sha256: str) -> Part:
    part = next((each for each in reader.manifest.parts if each.sha256 == sha256 and not each.gaps), None)
    if part is None:
        raise BundleError("the file's content is not in it")
    wanted = part.name

    def write(_: Part, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]

    wrong = reader.check(write, lambda each: each.name == wanted)
    if wrong:
        raise BundleError("; ".join(wrong))
    return part
