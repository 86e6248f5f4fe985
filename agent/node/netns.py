"""Network namespaces: whose one is, that it isn't the node's own, and where its links end on the host.

A pod may name, number and make links as it likes, and say of each that it ends at any number on the host. So nothing
that is seen inside is believed: a link's end is taken for the pod's only if the *host's* link says so itself, that it
ends in this namespace (by the host's own id of it) and at this very link.

Sources: rtnetlink(7), ip-link(8), network_namespaces(7), include/uapi/linux/if_link.h, net_namespace.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from agent.node.netlink import F_ECHO, Netlink, TooMany, attribute, attributes
from stoop.errors import ActFailed, TargetGone, TargetRefused

if TYPE_CHECKING:  # the hand needs no trio
    from agent.node.held import LinuxHeld

MAX_POD_LINKS = 64
"""Links of a pod that are looked at; one and the loopback are usual, a dozen with several networks."""

MAX_HOST_LINKS = 8192
"""Links of the host that are looked through when the pod's are too many: at 250 pods some 300."""

_RTM_GETLINK, _RTM_GETQDISC, _RTM_GETNSID = 18, 38, 90
_TCA_KIND, _TC_H_INGRESS = 1, 0xFFFFFFF1
_RTEXT_SKIP_STATS = 1 << 3
_IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_EXT_MASK = 3, 5, 18, 29
_IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_TARGET_NETNSID = 37, 43, 46
_IFLA_XDP_ATTACHED = 2
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND = 1, 4
_NETNSA_NSID, _NETNSA_FD = 1, 3
_IFF_LOOPBACK = 0x8

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_TCMSG = struct.Struct("=B3xiIII")  # struct tcmsg: family, link, handle, parent, info
_NSID = struct.Struct("=B3x")  # struct rtgenmsg, aligned
_U32, _I32 = struct.Struct("=I"), struct.Struct("=i")

_NO_STATS = attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_SKIP_STATS))
_CLONE_NEWNET = 0x40000000

_HELD_ELSEWHERE = frozenset({"tun", "wireguard"})

PAIRED = frozenset({"veth", "netkit"})
"""Kinds of link that have a second end which is a link too: what comes out there can be held up there."""


class Link(NamedTuple):
    """A link as one namespace sees it. `peer`: the number of what it is tied to, where that is; 0 for nothing.

    `peer_nsid`: the id of the namespace where that is, None when it is this one.
    """

    number: int
    name: str
    kind: str
    loopback: bool
    peer: int
    peer_nsid: int | None
    has_xdp: bool
    bridged: bool

    @property
    def leads_out(self) -> bool:
        """Whether packets may leave the namespace by it: what is tied to a link elsewhere, a device, a tunnel whose
        other side a program elsewhere may hold. A bridge, a VLAN or a tunnel of this namespace leaves by another link.
        """
        return not self.loopback and (not self.kind or self.peer_nsid is not None or self.kind in _HELD_ELSEWHERE)


class LinkEnd(NamedTuple):
    """The host's end of a pod's link, and the number of the pod's end in the pod.

    `ahead`: what on the host may take packets off this link before nftables' hooks see them, "" for nothing known.
    `bridged`: it is a port of a bridge.
    """

    host_index: int
    host: str
    pod_index: int
    ahead: str = ""
    bridged: bool = False


class Namespace:
    """A network namespace, held open by a descriptor. `close` it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino

    def close(self) -> None:
        """Let go. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def namespace_of(held: LinuxHeld, proc: str = "/proc") -> Namespace:
    """The network namespace of a held process. Raises TargetGone, TargetRefused (it can't be opened)."""
    pid = held.facts.pid
    try:
        found = namespace_at(f"{proc}/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetGone("it has exited meanwhile, and its network namespace can't be reached through it") from None
    except OSError as error:
        hint = " (CAP_SYS_PTRACE is needed)" if isinstance(error, PermissionError) else ""
        raise TargetRefused(f"the network namespace of pid {pid} can't be opened: {error.strerror}{hint}") from error
    if held.has_exited():  # then the number may have been another's when the file was opened
        found.close()
        raise TargetGone("it has exited meanwhile, and its network namespace can't be reached through it")
    return found


def namespace_at(path: str) -> Namespace:
    """The namespace that a file stands for. Raises OSError."""
    return Namespace(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def netlink_in(namespace: Namespace | None, protocol: int) -> Netlink:
    """A netlink socket of that namespace (None: of ours). It is made by a thread that ends: no other thread moves.

    Raises OSError.
    """
    if namespace is None:
        return Netlink(protocol)
    made: list[Netlink] = []
    faults: list[OSError] = []

    def make() -> None:
        try:
            enter(namespace.fd)
            made.append(Netlink(protocol))
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return made[0]


def enter(fd: int) -> None:
    """Move this thread into a network namespace (setns(2)). It must never do anything else again. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        hint = " (CAP_SYS_ADMIN is needed)" if number == errno.EPERM else ""
        raise OSError(number, f"a network namespace can't be entered: {os.strerror(number)}{hint}")


class HostLinks:
    """The host's view of links: one rtnetlink socket of its namespace. Threads may share it; `close` it.

    Each question takes the kernel's lock of all links (rtnl), which a change to a link elsewhere can hold for long:
    ask from a thread, under a limit.
    """

    def __init__(self, host: Namespace | None) -> None:
        self._host = host
        self._netlink = netlink_in(host, socket.NETLINK_ROUTE)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._netlink.close()

    def ends(self, namespace: Namespace) -> tuple[LinkEnd, ...]:
        """The host's ends of that namespace's links. Raises ActFailed."""
        with self._lock:
            try:
                return tuple(self._ends(namespace))
            except OSError as error:
                self._renew()
                raise ActFailed(f"the links of the pod can't be read: {error.strerror or error}") from error

    def name(self, index: int) -> str:
        """The name of the host's link with that number, "" when there is none. Raises ActFailed."""
        with self._lock:
            try:
                link = self._link(index)
            except OSError as error:
                raise ActFailed(f"link {index} of the host can't be read: {error.strerror or error}") from error
        return "" if link is None else link.name

    def _ends(self, namespace: Namespace) -> Iterator[LinkEnd]:
        nsid = self._nsid(namespace)
        if nsid < 0:
            # It gets one when a link of the host is looked at that ends there.
            self._links(None, MAX_HOST_LINKS)
            nsid = self._nsid(namespace)
        if nsid < 0:
            return
        try:
            wanted = [link.peer for link in self._links(nsid, MAX_POD_LINKS) if link.kind in PAIRED]
            ends = [end for end in map(self._link, wanted) if end is not None]
        except TooMany:
            self._renew()
            ends = self._links(None, MAX_HOST_LINKS)
        for end in ends:
            if end.kind in PAIRED and end.peer_nsid == nsid:
                yield LinkEnd(end.number, end.name, end.peer, self._ahead(end), end.bridged)

    def _ahead(self, end: Link) -> str:
        """The order is XDP, tc's ingress, nftables (net/core/dev.c: __netif_receive_skb_core); a packet that tc
        redirects (the CNI's bandwidth plugin, an eBPF data path) never comes to the third."""
        if end.kind == "netkit":
            return "it is a netkit link, which hands packets to eBPF programs"
        if end.has_xdp:
            return "it has an XDP program"
        body = _TCMSG.pack(socket.AF_UNSPEC, end.number, 0, _TC_H_INGRESS, 0)
        try:
            answer = self._netlink.ask(_RTM_GETQDISC, body, F_ECHO)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                return ""
            raise
        kind = _text(attributes(answer[_TCMSG.size :]).get(_TCA_KIND, b""))
        return f"it has filters of tc ({kind}), which come first" if kind else ""

    def _renew(self) -> None:
        """The rest of a dump, or a late answer, goes with its socket."""
        self._netlink.close()
        self._netlink = netlink_in(self._host, socket.NETLINK_ROUTE)

    def _nsid(self, namespace: Namespace) -> int:
        """The host's id of a namespace, -1 when it has none."""
        body = _NSID.pack(0) + attribute(_NETNSA_FD, _U32.pack(namespace.fd))
        found = attributes(self._netlink.ask(_RTM_GETNSID, body)[_NSID.size :])
        return int(_I32.unpack(found[_NETNSA_NSID])[0]) if _NETNSA_NSID in found else -1

    def _links(self, nsid: int | None, most: int) -> list[Link]:
        return links(self._netlink, most, b"" if nsid is None else attribute(_IFLA_TARGET_NETNSID, _I32.pack(nsid)))

    def _link(self, index: int) -> Link | None:
        if not index:
            return None
        try:
            return _parsed(self._netlink.ask(_RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _NO_STATS))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise


def links(netlink: Netlink, most: int, where: bytes = b"") -> list[Link]:
    """Every link of the socket's namespace. Raises TooMany, OSError."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _NO_STATS + where
    return [_parsed(payload) for payload in netlink.dump(_RTM_GETLINK, body, most)]


def _parsed(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload[_LINK.size :])
    kind = attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    peer = found.get(_IFLA_LINK)
    nsid = found.get(_IFLA_LINK_NETNSID)
    xdp = attributes(found.get(_IFLA_XDP, b"")).get(_IFLA_XDP_ATTACHED, b"")
    return Link(
        number=index,
        name=_text(found.get(_IFLA_IFNAME, b"")),
        kind=_text(kind),
        loopback=bool(flags & _IFF_LOOPBACK),
        peer=int(_U32.unpack(peer)[0]) if peer else 0,
        peer_nsid=int(_I32.unpack(nsid)[0]) if nsid else None,
        has_xdp=bool(xdp and xdp[0]),
        bridged=_text(attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_SLAVE_KIND, b"")) == "bridge",
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "backslashreplace")
