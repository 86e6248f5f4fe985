"""The unix socket that Falco sends to: NDJSON, HTTP/1.1 and SOCKS5 on one path, told apart by the first byte."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import trio

from stoop.errors import AlertError, StartRefused
from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import BACKLOG, SOCKET_PATH_BYTES
from stoop.intake.listener import Listener, Welcome
from stoop.intake.sink import Desk, Peer
from stoop.intake.socks import VERSION as SOCKS_VERSION
from stoop.intake.socks import SocksTalk
from stoop.intake.talk import LineTalk, Talk

# struct ucred (unix(7)): pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")

# The directory is made for the owner alone; one that is there keeps its mode.
_DIRECTORY_MODE = 0o700


def credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other side: who connected, or, on a socket that has connected, who listens."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class UnixIntake:
    """Listens on a unix socket at `path` with permission bits `mode`; the constructor does nothing yet.

    A sender must be one of `allow_uids` or the program's own user, by the kernel's word (SO_PEERCRED).
    """

    def __init__(self, path: str, mode: int, allow_uids: Collection[int], desk: Desk) -> None:
        self._path = path
        self._mode = mode
        self._allowed = frozenset(allow_uids)
        self._desk = desk

    async def serve(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; tells the path once it listens, and removes the socket at the end if it is its own.

        Raises StartRefused: another process listens there (its pid is named), the path is not a socket, too long,
        or not writable.
        """
        try:
            sock, own = _listen(self._path, self._mode)
        except OSError as error:
            raise StartRefused(
                f"can't listen: {error.strerror}", where=self._path, hint="set intake.unix.path to a writable place"
            ) from error
        try:
            task_status.started(self._path)
            welcome = Welcome(peer_of=self._peer_of, choose=self._choose, known=True)
            await Listener(sock, welcome, self._desk).serve()
        finally:
            sock.close()
            _remove(self._path, own)

    def _peer_of(self, sock: socket.socket) -> Peer | None:
        pid, uid = credentials(sock)
        peer = Peer("unix", self._path, pid, uid)
        if uid in self._allowed or uid == os.geteuid():
            return peer
        reason = f"user {uid} may not send here; add it to intake.unix.allow_uids if it should"
        self._desk.sink.refuse(AlertError(reason, "not allowed"), peer)
        return None

    def _choose(self, first: bytes) -> Talk:
        """0x05 begins SOCKS5; no method of HTTP begins but with a capital; the rest is lines, good or bad."""
        limits = self._desk.limits
        if first[0] == SOCKS_VERSION:
            return SocksTalk(limits)
        if b"A" <= first[:1] <= b"Z":
            return HttpTalk(limits)
        return LineTalk(limits.alert_bytes, limits.slow_seconds)


# ---------------------------------------------------------------- the socket in the file system


def _listen(path: str, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    """The listening socket and its (device, inode) in the file system."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise StartRefused(
            f"the path of a unix socket has at most {SOCKET_PATH_BYTES} bytes", where=path, hint="choose a shorter one"
        )
    directory = Path(path).parent
    directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with _locked(directory):
        _clear(path)
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


def _clear(path: str) -> None:
    """Remove a stale socket; raise StartRefused for a live one and for what is not a socket."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise StartRefused("is there and is not a socket", where=path, hint="remove it, or set intake.unix.path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # somebody listens, and the backlog is full
            raise _live(path, 0) from None
        raise _live(path, credentials(probe)[0])


def _live(path: str, pid: int) -> StartRefused:
    who = f"process {pid}" if pid else "another process"
    return StartRefused(f"{who} listens here already", where=path, hint="stop it, or set intake.unix.path")


def _remove(path: str, own: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == own:
            os.unlink(path)
