"""Live connections of a network namespace, ended: what a process has open gets ECONNABORTED at once.

The rules stop packets whatever is open; this is for what comes after: a process learns that it is cut off, and what was
open does not go on when the rules are taken away. Connection tracking is left alone: no rule asks it.

Sources: sock_diag(7), include/uapi/linux/inet_diag.h, net/ipv4/tcp.c (tcp_abort), net/ipv4/udp.c (udp_abort).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from agent.node.netlink import F_ACK, Netlink, TooMany

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NETLINK_SOCK_DIAG = 4

MAX_SOCKETS = 4096
"""Sockets of one protocol and family that are looked at: some 20 ms. A pod may have more; its packets are dropped all
the same."""

_BY_FAMILY, _DESTROY = 20, 21
_LISTEN, _CLOSE = 10, 7
_CONNECTED = 0xFFF & ~(1 << _LISTEN | 1 << _CLOSE)
# Bits of tcp_states.h. A UDP socket with a peer counts as established there.

_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 up to its id: family, protocol, extensions, states
_ID = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: ports and addresses in network order, then what is ours
_ID_SIZE = 48
_ID_AT = 4

_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_GONE = (errno.ENOENT, errno.ESTALE)


class Flow(NamedTuple):
    """A socket with a peer. `key`: what the kernel calls it."""

    protocol: str
    family: int
    source: Address
    peer: Address
    peer_port: int
    key: bytes


class Cut(NamedTuple):
    """What became of the connections: ended ones, and why others may go on (one line each)."""

    ended: int
    remarks: tuple[str, ...]


class Cutting(msgspec.Struct, frozen=True):
    """Which connections end: those with a peer in `peers` (empty: any) and at `ports` (empty: any), but `spared` ones.

    `protocol`: tcp, udp or any. Networks in CIDR form, ranges of ports with both ends.
    """

    peers: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    protocol: str = "any"

    def ends(self, flow: Flow) -> bool:
        """Whether this connection is one."""
        return (
            self.protocol in ("any", flow.protocol)
            and (not self.peers or _within(self.peers, flow.peer))
            and (not self.ports or any(low <= flow.peer_port <= high for low, high in self.ports))
            and not _within(self.spared, flow.peer)
        )


def _within(networks: tuple[str, ...], address: Address) -> bool:
    return any(address in ipaddress.ip_network(text) for text in networks)


def flows(remarks: list[str]) -> Iterator[Flow]:
    """Every connected TCP and UDP socket of this thread's namespace. Raises OSError."""
    for name, protocol in _PROTOCOLS.items():
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, protocol, 0, _CONNECTED) + bytes(_ID_SIZE)
            with contextlib.closing(Netlink(NETLINK_SOCK_DIAG)) as netlink:
                try:
                    found = netlink.dump(_BY_FAMILY, body, MAX_SOCKETS)
                except TooMany as error:
                    found = error.found
                    remarks.append(f"more than {MAX_SOCKETS} {name} sockets: the others are left open, without packets")
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                        raise
                    remarks.append(f"this kernel does not list {name} sockets: they are left open, without packets")
                    continue
            yield from (_flow(name, family, payload) for payload in found)


def _flow(protocol: str, family: int, payload: bytes) -> Flow:
    key = payload[_ID_AT : _ID_AT + _ID_SIZE]
    _, port, source, peer = _ID.unpack_from(key)
    return Flow(protocol, family, _address(family, source), _address(family, peer), port, key)


def _address(family: int, raw: bytes) -> Address:
    """A mapped IPv4 address is that IPv4 address: so it is on the wire."""
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(raw[:4])
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address


def cut(cutting: Cutting) -> Cut:
    """End these connections, but those within the pod. Raises OSError."""
    remarks: list[str] = []
    found = list(flows(remarks))
    own = {flow.source for flow in found}
    ended = 0
    with contextlib.closing(Netlink(NETLINK_SOCK_DIAG)) as netlink:
        for flow in found:
            inside = flow.peer in own or flow.peer.is_loopback or flow.peer.is_unspecified
            if inside or not cutting.ends(flow):
                continue
            body = _REQUEST.pack(flow.family, _PROTOCOLS[flow.protocol], 0, _CONNECTED) + flow.key
            try:
                netlink.ask(_DESTROY, body, F_ACK)
                ended += 1
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    remarks.append("this kernel does not end sockets (CONFIG_INET_DIAG_DESTROY): they are left open")
                    break
                if error.errno not in _GONE:
                    raise
    return Cut(ended, tuple(remarks))
