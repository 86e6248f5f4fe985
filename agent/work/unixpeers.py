"""Which unix sockets are connected with which: sock_diag(7), which /proc/PID/net/unix does not tell.

The kernel answers for the network namespace that the socket was made in. So the reader enters that of the target for as
long as it takes to make one, and comes back: it is one process with one thread, and nothing of it is the target's.

Sources: sock_diag(7), include/uapi/linux/unix_diag.h, net/unix/diag.c.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from agent.node.netlink import Netlink, TooMany, attributes
from agent.node.netns import enter
from agent.node.procfs import text
from agent.node.sockets import NETLINK_SOCK_DIAG

MAX_CONNECTED = 8192
"""Connected unix sockets of one namespace that are looked at, some 10 ms: a target may make as many as it likes."""

_BY_FAMILY = 20
_UNIX = 1  # AF_UNIX
_CONNECTED = 1 << 1  # TCP_ESTABLISHED, of datagrams too
_ALL = 0xFFFFFFFF
_SHOW_NAME, _SHOW_PEER = 0x1, 0x4
_NAME, _PEER = 0, 2
_ANY = 0xFFFFFFFF

_REQUEST = struct.Struct("=BBxxIIIII")  # struct unix_diag_req: family, protocol, states, inode, show, cookie
_ANSWER = struct.Struct("=BBBxIII")  # struct unix_diag_msg: family, type, state, inode, cookie
_INODE = struct.Struct("=I")


class Connected(NamedTuple):
    """By inode: the inode of the other end, which may be in another namespace, and the name of an end that has one (an
    accepted one has its listener's, and is in the namespace of who connected). `cut`: there are more."""

    peers: dict[int, int]
    names: dict[int, str]
    cut: bool


NONE_CONNECTED = Connected({}, {}, False)


def connected(namespace: int) -> Connected:
    """The connected unix sockets of this network namespace (a descriptor). Raises OSError: without CAP_SYS_ADMIN no
    other one than our own can be entered (setns(2)); a kernel may be without unix_diag."""
    return _ask(_netlink_in(namespace), _CONNECTED)


def names_of_node() -> dict[int, str]:
    """Names of all unix sockets of our own namespace, by inode, as far as MAX_CONNECTED reaches. Raises OSError."""
    return _ask(Netlink(NETLINK_SOCK_DIAG), _ALL).names


def _ask(netlink: Netlink, states: int) -> Connected:
    cut = False
    try:
        body = _REQUEST.pack(_UNIX, 0, states, 0, _SHOW_NAME | _SHOW_PEER, _ANY, _ANY)
        answers = netlink.dump(_BY_FAMILY, body, MAX_CONNECTED)
    except TooMany as error:
        answers, cut = error.found, True
    finally:
        netlink.close()
    peers, names = {}, {}
    for answer in answers:
        inode = _ANSWER.unpack_from(answer)[3]
        found = attributes(answer[_ANSWER.size :])
        if len(found.get(_PEER, b"")) == _INODE.size:
            peers[inode] = int(_INODE.unpack(found[_PEER])[0])
        if found.get(_NAME):
            names[inode] = name_of(found[_NAME])
    return Connected(peers, names, cut)


def name_of(raw: bytes) -> str:
    """A path, or `@` and an abstract name, as /proc/net/unix writes it (unix(7))."""
    return f"@{text(raw[1:])}" if raw.startswith(b"\0") else text(raw.rstrip(b"\0"))


def _netlink_in(namespace: int) -> Netlink:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.sameopenfile(own, namespace):
            return Netlink(NETLINK_SOCK_DIAG)
        enter(namespace)
        try:
            return Netlink(NETLINK_SOCK_DIAG)
        finally:
            enter(own)
    finally:
        os.close(own)
