"""A unix listening socket in the file system: made, taken over when stale, refused when live, removed when our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from stoop.errors import StartRefused
from stoop.intake.limits import BACKLOG, SOCKET_PATH_BYTES

# struct ucred (unix(7)): pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")

# The directory is made for the owner alone; one that is there keeps its mode.
_DIRECTORY_MODE = 0o700


class HasOptions(Protocol):
    """A socket of the standard library's or of trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def credentials(sock: HasOptions) -> tuple[int, int]:
    """(pid, uid) of the other side: who connected, or, on a socket that has connected, who listens."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def listen_unix(path: str, mode: int, setting: str) -> tuple[socket.socket, tuple[int, int]]:
    """The listening, non-blocking socket and its (device, inode) in the file system.

    `mode`: its permission bits. `setting`: the configuration key that an error tells to change. Raises StartRefused:
    another process listens there (its pid is named), the path is not a socket, too long, or not writable.
    """
    try:
        return _listen(path, mode, setting)
    except OSError as error:
        raise StartRefused(
            f"can't listen: {error.strerror}", where=path, hint=f"set {setting} to a writable place"
        ) from error


def _listen(path: str, mode: int, setting: str) -> tuple[socket.socket, tuple[int, int]]:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise StartRefused(
            f"the path of a unix socket has at most {SOCKET_PATH_BYTES} bytes", where=path, hint="choose a shorter one"
        )
    directory = Path(path).parent
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with _locked(directory):
        _clear(path, setting)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # No umask is touched (it is the whole process's): before listen(2) nobody can connect, whatever the mode.
            sock.bind(path)
            os.chmod(path, mode)
            sock.listen(BACKLOG)
            there = os.lstat(path)
        except OSError:
            sock.close()
            raise
    return sock, (there.st_dev, there.st_ino)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two agents that start at once must not each take the other's new socket for a stale one."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StartRefused("another agent is starting here", where=str(directory), hint="try again") from error
    finally:
        os.close(fd)


def _clear(path: str, setting: str) -> None:
    """Remove a stale socket; raise StartRefused for a live one and for what is not a socket."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise StartRefused("is there and is not a socket", where=path, hint=f"remove it, or set {setting}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # somebody listens, and the backlog is full
            raise _live(path, 0, setting) from None
        raise _live(path, credentials(probe)[0], setting)


def _live(path: str, pid: int, setting: str) -> StartRefused:
    who = f"process {pid}" if pid else "another process"
    return StartRefused(f"{who} listens here already", where=path, hint=f"stop it, or set {setting}")


def unlink_own(path: str, own: tuple[int, int]) -> None:
    """Remove the socket if it is still the one that was made."""
    with contextlib.suppress(OSError):
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == own:
            os.unlink(path)
