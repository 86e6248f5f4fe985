"""Alerts over TCP: HTTP/1.1 with a token, also on loopback, where any user of the machine could send."""

from __future__ import annotations

import ipaddress
import socket

import trio

from stoop.errors import StartRefused
from stoop.intake.access import TokenFile
from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import BACKLOG
from stoop.intake.listener import Listener, Welcome
from stoop.intake.sink import Desk, Peer
from stoop.intake.talk import Talk

# A sender that vanished without a word (its machine lost power) is noticed after 60 + 4 × 15 s: tcp(7).
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class HttpIntake:
    """Listens on `address`:`port` (0: any free port); the constructor does nothing yet.

    `token_file`: who shows its content may send (`Bearer T`, or `Basic` with it as password). Without one the start
    is refused, unless `insecure`: then everybody who can connect may send, and that is said.
    """

    def __init__(self, address: str, port: int, token_file: str | None, insecure: bool, desk: Desk) -> None:
        self._address = address
        self._port = port
        self._token_file = token_file
        self._insecure = insecure
        self._desk = desk
        self._token: TokenFile | None = None

    async def serve(self, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; tells (address, port) as bound once it listens.

        Raises StartRefused: no usable token and not `insecure`, or the address can't be bound.
        """
        where = f"{self._address}:{self._port}"
        self._prepare_access(where)
        try:
            sock = await _listen(self._address, self._port)
        except OSError as error:
            raise StartRefused(
                f"can't listen: {error.strerror}", where=where, hint="set intake.http.address and port"
            ) from error
        with sock:
            address, port = sock.getsockname()[:2]
            self._say_exposure(address, port)
            task_status.started((address, port))
            patience = self._desk.limits.slow_seconds
            welcome = Welcome(peer_of=_peer_of, choose=self._choose, known=False, patience=patience)
            await Listener(sock, welcome, self._desk).serve()

    def _prepare_access(self, where: str) -> None:
        if self._token_file is not None:
            limits = self._desk.limits
            self._token = TokenFile(self._token_file, self._desk.warn, trio.current_time, limits.token_seconds)
            self._token.load()
        elif not self._insecure:
            raise StartRefused(
                "alerts over HTTP need a token, on loopback too",
                where=where,
                hint="set intake.http.token_file, or insecure: true to let everybody send who can connect",
            )

    def _say_exposure(self, address: str, port: int) -> None:
        if self._token is None:
            self._desk.warn(
                "insecure: everybody who can connect may send alerts, and so have processes killed",
                address=address,
                port=port,
            )
        elif not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            self._desk.warn(
                "alerts and their token cross the network unencrypted",
                address=address,
                port=port,
            )

    def _choose(self, _first: bytes) -> Talk:
        admit = self._token.admits if self._token is not None else None
        return HttpTalk(self._desk.limits, admit=admit, trusted=False)


def _peer_of(sock: socket.socket) -> Peer | None:
    """Prepare the socket and name its other side; None when it is gone already."""
    try:
        address, port = sock.getpeername()[:2]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        return None
    return Peer("http", f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


async def _listen(address: str, port: int) -> socket.socket:
    """A listening socket on what `address` (IPv4, IPv6 or a name) means first; of a name, its IPv4 before its IPv6."""
    found = await trio.socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    family, kind, proto, _, target = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
