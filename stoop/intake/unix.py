"""The unix socket that Falco sends to: NDJSON, HTTP/1.1 and SOCKS5 on one path, told apart by the first byte."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection

import trio

from stoop.errors import AlertError
from stoop.intake.http1 import HttpTalk
from stoop.intake.listener import Listener, Welcome
from stoop.intake.sink import Desk, Peer
from stoop.intake.socks import VERSION as SOCKS_VERSION
from stoop.intake.socks import SocksTalk
from stoop.intake.talk import LineTalk, Talk
from stoop.intake.unixsocket import credentials, listen_unix, unlink_own


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
        sock, own = listen_unix(self._path, self._mode, "intake.unix.path")
        try:
            task_status.started(self._path)
            welcome = Welcome(peer_of=self._peer_of, choose=self._choose, known=True)
            await Listener(sock, welcome, self._desk).serve()
        finally:
            sock.close()
            unlink_own(self._path, own)

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
