"""SOCKS5 without authentication, one CONNECT, then HTTP on the same connection (RFC 1928): pure, no socket.

libcurl speaks it over a unix socket when `http_proxy=socks5h://localhost/<path>` is set, which is the only way to
lead Falco's http_output there. Where it wants to connect to does not matter: it is connected to us.
"""

from __future__ import annotations

from stoop.errors import AlertError
from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import Limits
from stoop.intake.talk import Haul

VERSION = 5
_NO_AUTHENTICATION = 0
_CONNECT = 1
_ADDRESS_BYTES = {1: 4, 4: 16}  # ATYP: IPv4, IPv6; 3 is a name with its length before it
_NAME = 3

_METHOD_CHOSEN = bytes([VERSION, _NO_AUTHENTICATION])
_NO_METHOD = bytes([VERSION, 0xFF])
_SUCCEEDED, _BAD_COMMAND, _BAD_ADDRESS = 0, 7, 8


def _reply(code: int) -> bytes:
    return bytes([VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0])


class SocksTalk:
    """The greeting and the CONNECT; whatever comes after them is HTTP's. At most 262 bytes are kept."""

    __slots__ = ("_greeted", "_http", "_limits", "_pending")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pending = b""
        self._greeted = False
        self._http: HttpTalk | None = None

    def feed(self, data: bytes) -> Haul:
        """Take the next bytes, in pieces of any size."""
        if self._http is not None:
            return self._http.feed(data)
        self._pending += data
        haul = Haul()
        if not self._greeted:
            self._greet(haul)
        if self._greeted and not haul.closing:
            self._connect(haul)
        if self._http is not None and self._pending:
            rest, self._pending = self._pending, b""
            after = self._http.feed(rest)
            after.answer = haul.answer + after.answer
            return after
        return haul

    def end(self) -> Haul:
        """The sender has closed its side."""
        if self._http is not None:
            return self._http.end()
        haul = Haul()
        haul.faults.append(AlertError("the connection ended within the SOCKS5 greeting", "truncated"))
        return haul

    def patience(self) -> float:
        return self._http.patience() if self._http is not None else self._limits.slow_seconds

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def _greet(self, haul: Haul) -> None:
        """VER, NMETHODS, METHODS."""
        data = self._pending
        if len(data) < 2 or len(data) < 2 + data[1]:
            return
        methods = data[2 : 2 + data[1]]
        self._pending = data[2 + data[1] :]
        if _NO_AUTHENTICATION in methods:
            self._greeted = True
            haul.answer = _METHOD_CHOSEN
        else:
            self._refuse(haul, _NO_METHOD, "SOCKS5 without authentication is not offered by the sender")

    def _connect(self, haul: Haul) -> None:
        """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT."""
        data = self._pending
        if len(data) < 5:
            return
        version, command, _, kind, first = data[:5]
        if version != VERSION or command != _CONNECT:
            self._refuse(haul, _reply(_BAD_COMMAND), "only SOCKS5 CONNECT is served")
        elif kind != _NAME and kind not in _ADDRESS_BYTES:
            self._refuse(haul, _reply(_BAD_ADDRESS), f"SOCKS5 address type {kind} is unknown")
        else:
            size = 4 + (1 + first if kind == _NAME else _ADDRESS_BYTES[kind]) + 2
            if len(data) >= size:
                self._pending = data[size:]
                haul.answer += _reply(_SUCCEEDED)
                self._http = HttpTalk(self._limits)

    def _refuse(self, haul: Haul, answer: bytes, reason: str) -> None:
        haul.answer += answer
        haul.closing = True
        haul.faults.append(AlertError(reason, "protocol"))
