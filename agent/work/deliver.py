"""local:file: what was captured, copied into a folder of the operator's, whole or not at all.

The folder may lie on a file system that hangs, and whoever may write to it may put anything there. So it is opened
once, through no link; all else is done in it by descriptor, and nothing that is there is ever opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from agent.jobs import AnyJob, DeliverJob, Result
from agent.letters import Fate
from agent.work.files import open_beneath
from stoop.evidence.content import content_of
from stoop.evidence.manifest import SUFFIX
from stoop.evidence.reading import BundleError

NO_LINKS = 0x02 | 0x04
"""RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS (openat2(2)): mounts may be crossed, they are root's."""

BEGUN = ".stoop-"
"""How the name of a copy begins that is not whole yet. The rest is the object's: a later try removes it."""

_MEND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS, errno.EISDIR})
# A person has to see to these; the rest may pass (ENOSPC, EIO, ESTALE).

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Unfit(Exception):
    """The folder must not be used."""


def perform(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    """Copy it, or only look at the folder. Raises nothing for what becomes of it."""
    assert isinstance(job, DeliverJob)
    try:
        with _folder(job) as folder:
            return _copied(job, folder) if job.name else Result(True)
    except BundleError as error:
        return _failed(Fate.NEVER, f"the bundle is not as it was written: {error}")
    except _Unfit as error:
        return _failed(Fate.MEND, str(error))
    except OSError as error:
        return _failed(Fate.MEND if error.errno in _MEND else Fate.LATER, f"{job.folder}: {_why(job, error)}")


def _failed(fate: Fate, reason: str) -> Result:
    return Result(False, reason, {"fate": str(fate)})


def _why(job: DeliverJob, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"a symbolic link leads there: name the folder itself ({os.path.realpath(job.folder)})"
    return error.strerror or str(error)


@contextlib.contextmanager
def _folder(job: DeliverJob) -> Iterator[int]:
    """The folder's descriptor. Raises _Unfit, OSError."""
    if not job.folder.startswith("/"):
        raise _Unfit(f"{job.folder}: the destination must be an absolute path")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.fsencode(job.folder.lstrip("/")) or b"."
        folder = open_beneath(root, name, os.O_RDONLY | os.O_DIRECTORY, NO_LINKS)
    finally:
        os.close(root)
    try:
        _refuse_ours(job, folder)
        yield folder
    finally:
        os.close(folder)


def _refuse_ours(job: DeliverJob, folder: int) -> None:
    """The state directory, and what is in it, is not for others' files. Compared by inode, all the way up."""
    ours = os.stat(job.state_dir)
    at, above = os.dup(folder), -1
    try:
        while True:
            here = os.fstat(at)
            if (here.st_dev, here.st_ino) == (ours.st_dev, ours.st_ino):
                raise _Unfit(f"{job.folder} lies in the agent's own state directory: name another folder")
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            upper = os.fstat(above)
            if (upper.st_dev, upper.st_ino) == (here.st_dev, here.st_ino):
                return
            os.close(at)
            at, above = above, -1
    finally:
        os.close(at)
        if above >= 0:
            os.close(above)


def _copied(job: DeliverJob, folder: int) -> Result:
    bundle = os.open(f"{job.store}/{job.bundle}{SUFFIX}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        content = content_of(bundle, job.part)
        begun = f"{BEGUN}{job.name}"[:255]
        with contextlib.suppress(FileNotFoundError):  # of a try that was killed
            os.unlink(begun, dir_fd=folder)
        fd = os.open(begun, _NEW, 0o600, dir_fd=folder)
        try:
            for piece in content.pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(fd, left) :]
            os.fsync(fd)
            os.rename(begun, job.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(begun, dir_fd=folder)
            raise
        finally:
            os.close(fd)
        os.fsync(folder)
    finally:
        os.close(bundle)
    return Result(True, details={"fate": str(Fate.SENT), "bytes": content.size, "sha256": content.sha256})
