"""Netlink, as far as it is needed: one question, its answers, attributes put together and taken apart.

Sources: netlink(7), include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

F_REQUEST, F_ACK, F_ECHO, F_DUMP = 0x1, 0x4, 0x8, 0x300
_F_DUMP_INTR = 0x10
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF
# The two upper bits of an attribute's type are flags: nested, network byte order.

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with header, type
_INT = struct.Struct("=i")
_READ_BYTES = 64 * 1024
# The kernel's dumps come in pieces of 32 KiB at most (netlink_recvmsg(), NLMSG_GOODSIZE).

DUMP_TRIES = 3
"""A dump during which something changed is asked again so often; then the last one counts."""

WAIT_SECONDS = 1.0
"""For an answer. The kernel answers within the request; a dump's next piece when it is read."""


class TooMany(OSError):
    """A dump has more entries than the caller takes: a pod may make as many links and sockets as it likes.

    `found`: those that came before. The socket holds the rest, so it is of no more use.
    """

    def __init__(self, found: list[bytes]) -> None:
        self.found = found
        super().__init__(errno.E2BIG, f"more than {len(found)} entries")


class Netlink:
    """One socket, of the network namespace in which it was made, whoever uses it later. `close` it."""

    def __init__(self, protocol: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._protocol = protocol
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(WAIT_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """One question with one answer, or an acknowledgement (b""). Raises OSError with the kernel's number."""
        self._send(kind, F_REQUEST | flags, body)
        for _, _, payload in self._answers():
            return payload
        return b""

    def dump(self, kind: int, body: bytes, most: int) -> list[bytes]:
        """Every entry of a table, `most` of them. Raises TooMany, OSError: the socket is of no use after."""
        for _ in range(DUMP_TRIES):
            self._send(kind, F_REQUEST | F_DUMP, body)
            found: list[bytes] = []
            torn = False
            for _, flags, payload in self._answers():
                torn = torn or bool(flags & _F_DUMP_INTR)
                if len(found) == most:
                    raise TooMany(found)
                found.append(payload)
            if not torn:
                break
        return found

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, payload) of each answer to the last question. Answers to earlier ones are passed over."""
        more = True
        while more:
            data = memoryview(self._socket.recv(_READ_BYTES))
            more = False
            while len(data) >= _HEADER.size:
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
                if not _HEADER.size <= length <= len(data):
                    raise OSError(errno.EBADMSG, "netlink answered something that is no message")
                payload = bytes(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    more = True
                    continue
                if kind == _DONE or (kind == _ERROR and _INT.unpack_from(payload)[0] == 0):
                    return
                if kind == _ERROR:
                    number = -_INT.unpack_from(payload)[0]
                    raise OSError(number, os.strerror(number))
                more = more or bool(flags & 0x2)  # NLM_F_MULTI: goes on until NLMSG_DONE
                yield kind, flags, payload


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of one that comes twice the last. What is cut off at the end is left out."""
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
