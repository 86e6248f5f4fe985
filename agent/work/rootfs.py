"""Files of a container by the names that it calls them: from its init's root, which no name leads out of.

The root is reached by the descriptor of /proc/PID of a process that is held, so it is that process's own. A process
that went into the node's mount namespace, or whose root is the node's, has no files of a container, and is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from agent.jobs import Job
from agent.node.procfs import text
from agent.work.aside import libc
from agent.work.files import look, open_beneath
from agent.work.held import Process, hold
from stoop.errors import ActFailed, TargetGone, TargetRefused

IN_ROOT_NO_MAGIC = 0x10 | 0x02
"""RESOLVE_IN_ROOT, NO_MAGICLINKS (openat2(2)): links lead as they do for the container, `..` and `/` stay in its root.
Mounts are crossed: volumes are a container's files too."""

ONE_FILE_SYSTEM = IN_ROOT_NO_MAGIC | 0x01
"""The same with NO_XDEV: what lies on a volume or hostPath is not found."""

TRIES = 8
"""openat2 gives EAGAIN where something was renamed or mounted amid a `..`: a target can do so for ever."""

_PATH = os.O_PATH | os.O_CLOEXEC

_KERNELS = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x27E0EB: "cgroup", 0x63677270: "cgroup2", 0x64626720: "debugfs",
    0x74726163: "tracefs", 0x73636673: "securityfs", 0xCAFE4A11: "bpf", 0x62656570: "configfs", 0x6165676C: "pstore",
    0xDE5E81E4: "efivarfs", 0xF97CFF8C: "selinuxfs", 0x6E736673: "nsfs", 0x50494446: "pidfs", 0x1CD1: "devpts",
    0x42494E4D: "binfmt_misc", 0x19800202: "mqueue",
}  # fmt: skip
# include/uapi/linux/magic.h; statfs(2). What they show depends on who reads, and a worker may more than the container.

_OVERLAY = 0x794C7630


class _Statfs(ctypes.Structure):
    """struct statfs of 64-bit machines (statfs(2)): only its type is used."""

    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


@contextlib.contextmanager
def container_root(job: Job, fds: tuple[int, ...], host_mounts: tuple[int, ...]) -> Iterator[tuple[Process, int]]:
    """The job's first process, held, and its root (O_PATH). Raises TargetGone, TargetRefused."""
    if not job.processes:
        raise TargetGone("no process of the container is known")
    first = job.processes[0]
    held = hold(first.pid, first.birth, fds[0] if fds else -1)
    try:
        root = _root(held, host_mounts)
    except OSError as error:
        held.close()
        raise TargetGone(f"the root of pid {first.pid} can't be opened: {error.strerror}") from error
    except TargetRefused:
        held.close()
        raise
    try:
        yield held, root
    finally:
        os.close(root)
        held.close()


def _root(held: Process, host_mounts: tuple[int, ...]) -> int:
    mounts = os.stat("ns/mnt", dir_fd=held.directory).st_ino
    if mounts in {*host_mounts, os.stat("/proc/self/ns/mnt").st_ino}:
        raise TargetRefused(f"pid {held.pid} is in the node's mount namespace: its files are the node's")
    root = os.open("root", _PATH | os.O_DIRECTORY, dir_fd=held.directory)
    # Once more: it may have gone there in between. The root that was opened is of whichever namespace came last.
    if os.stat("ns/mnt", dir_fd=held.directory).st_ino != mounts or _same(root, "/") or _same(root, "/proc/1/root"):
        os.close(root)
        raise TargetRefused(f"the root of pid {held.pid} is the node's")
    return root


def _same(fd: int, path: str) -> bool:
    """Whether it is this directory; one that can't be looked at is not."""
    try:
        other = os.open(path, _PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        ours, theirs = look(fd), look(other)
    finally:
        os.close(other)
    return (ours.device, ours.inode) == (theirs.device, theirs.inode)


def find(root: int, path: bytes, resolve: int = IN_ROOT_NO_MAGIC, flags: int = _PATH) -> int:
    """What the container calls so, as an O_PATH descriptor: nothing of it is opened yet. Raises ActFailed."""
    fault = OSError(errno.EAGAIN, "it is renamed or mounted all the time")
    for _ in range(TRIES):
        try:
            return open_beneath(root, path, flags, resolve)
        except OSError as error:
            fault = error
            if error.errno != errno.EAGAIN:
                break
    why = {errno.EXDEV: "it lies on another file system or volume", errno.ELOOP: "it leads through a link of /proc"}
    raise ActFailed(f"{text(path)}: {why.get(fault.errno or 0, fault.strerror)}") from fault


def kernels(fd: int) -> str:
    """The name of the kernel's own file system that it lies on; "" for one that stores files. Raises OSError."""
    return _KERNELS.get(_kind(fd), "")


def is_overlay(fd: int) -> bool:
    """Whether it lies on an overlay. Raises OSError."""
    return _kind(fd) == _OVERLAY


def _kind(fd: int) -> int:
    found = _Statfs()
    if libc.fstatfs(fd, ctypes.byref(found)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found.type) & 0xFFFFFFFF
