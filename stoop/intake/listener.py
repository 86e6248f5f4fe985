"""Accepts the connections of one listening socket and serves each in a task of its own."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable

import msgspec
import trio

from stoop.errors import AlertError
from stoop.intake.connection import Connection
from stoop.intake.limits import NO_DESCRIPTOR_SECONDS
from stoop.intake.sink import Desk, Peer
from stoop.intake.talk import Talk

# accept(2): no descriptor or memory now, perhaps later.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# accept(2): this connection is lost already, or its network is; the listener is whole.
_LOST = frozenset(
    {
        errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
        errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
    }
)  # fmt: skip


class Welcome(msgspec.Struct, frozen=True):
    """How one intake meets a connection.

    `peer_of`: who it is; None when it may not send (said there). `choose`: the protocol by its first bytes.
    `known`: it may send before it has said a word. `patience`: seconds that it may be silent at first.
    """

    peer_of: Callable[[socket.socket], Peer | None]
    choose: Callable[[bytes], Talk]
    known: bool
    patience: float = math.inf


class Listener:
    """Serves a listening, non-blocking socket until cancelled. The socket stays its owner's to close."""

    def __init__(self, sock: socket.socket, welcome: Welcome, desk: Desk) -> None:
        self._sock = sock
        self._welcome = welcome
        self._desk = desk
        self._connections: dict[Connection, None] = {}  # the oldest first
        self._no_room = False

    async def serve(self) -> None:
        """Accept until cancelled; the connections end with it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                sock = await self._accept()
                if sock is not None:
                    self._meet(sock, nursery)

    async def _accept(self) -> socket.socket | None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                await self._wait_for_room(error)
            elif error.errno not in _LOST:
                raise
            return None
        self._no_room = False
        sock.setblocking(False)
        return sock

    async def _wait_for_room(self, error: OSError) -> None:
        """The connection stays in the backlog. Said once until accepting works again."""
        if not self._no_room:
            self._no_room = True
            self._desk.warn("a connection can't be accepted now, trying again", error=error.strerror)
        await trio.sleep(NO_DESCRIPTOR_SECONDS)

    def _meet(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        peer = self._welcome.peer_of(sock)
        if peer is None:
            sock.close()
        elif len(self._connections) >= self._desk.limits.connections and not self._make_room():
            sock.close()
            self._desk.sink.refuse(self._too_many(), peer)
        else:
            connection = Connection(sock, peer, self._welcome.choose, self._desk)
            self._connections[connection] = None
            nursery.start_soon(self._run, connection)

    def _make_room(self) -> bool:
        """Cut the oldest that has not shown its token: silent strangers must not keep out who would show it now."""
        stranger = next((one for one in self._connections if one.stranger), None)
        if stranger is None or self._welcome.known:
            return False
        del self._connections[stranger]
        stranger.cut(self._too_many())
        return True

    def _too_many(self) -> AlertError:
        return AlertError(
            f"there are {self._desk.limits.connections} connections already; this one was closed", "too many"
        )

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run(known=self._welcome.known, patience=self._welcome.patience)
        finally:
            self._connections.pop(connection, None)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self._desk.limits.sweep_seconds)
            now = trio.current_time()
            for connection in tuple(self._connections):
                connection.overdue(now)
