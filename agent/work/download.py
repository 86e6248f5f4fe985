"""kubernetes:download: one file out of a container, as the container calls it.

Volumes are the container's files too, so mounts are crossed; no name leads out of its root. What is found is looked at
before it is opened: only a regular file is, and none of the kernel's own file systems.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from agent.jobs import VOLATILE, DownloadJob
from agent.node.procfs import text
from agent.work.files import look, pieces, reopen
from agent.work.rootfs import container_root, find, kernels
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetRefused

PART = "file.bin"


def read(teller: Teller, job: DownloadJob, fds: tuple[int, ...]) -> None:
    """Copy the file. Raises TargetGone, TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    with container_root(job, fds, job.host_mounts) as (_, root):
        if not teller.may("find the file"):
            return
        found = find(root, job.path)
        try:
            copy(teller, found, job.path, job.limit, look(root).device)
        finally:
            os.close(found)


def copy(
    teller: Teller, found: int, path: bytes, most: int, root_device: str, more: dict[str, Any] | None = None
) -> None:
    """The content of what an O_PATH descriptor stands for; `more` is told of it. Raises TargetRefused, ActFailed."""
    looks = look(found)
    if not looks.is_regular:
        raise TargetRefused(f"{text(path)}: it is no regular file")
    if not teller.may("file system"):
        return
    try:
        kind = kernels(found)
        if kind:
            raise TargetRefused(f"{text(path)}: it is one of the kernel's own ({kind})")
        if not teller.may("open the file"):
            return
        fd = reopen(found)
    except OSError as error:
        raise ActFailed(f"{text(path)}: {error.strerror}") from error
    size = min(looks.size, most)
    about = {
        "path": text(path),
        "resolved": text(os.readlink(f"/proc/self/fd/{found}".encode())),
        "device": looks.device,
        "inode": looks.inode,
        "volume": looks.device != root_device,
        "mode": f"{looks.mode & 0o7777:04o}",
        "uid": looks.uid,
        "gid": looks.gid,
        "links": looks.links,
        "size": looks.size,
        "mtime_ns": looks.mtime_ns,
        "ctime_ns": looks.ctime_ns,
    } | (more or {})
    try:
        if size < looks.size:
            teller.lacks(PART, f"the first {size} of {looks.size} bytes: the act's bound")
        if teller.may("copy the file") and teller.begin(PART, size, about):
            with contextlib.suppress(OSError):  # the rest is a gap, and told so
                for piece in pieces(fd, size):
                    teller.piece(piece)
            teller.end()
    finally:
        os.close(fd)
