"""What a short-lived thread of the hand does in one network namespace, and what it says of it.

The namespace is entered for good: the thread ends after one job. What a hostile namespace can make long or large (its
chains, sets, links and sockets) is long and large in the hand, under its limits, and not in the agent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket

import msgspec

from agent.node import nft, sockets
from agent.node.netlink import Netlink, TooMany
from agent.node.netns import MAX_POD_LINKS, Link, enter, links

DEVICE_TRIES = 3
"""How often the pod's own links are listed anew when one of them went or changed its name in between."""

FAMILIES = ("netdev", "inet")

DEVICES = "@DEVICES@"
"""Where a table's text names the links."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")
"""Names of links that can stand in a rule. A pod may call its own anything but blanks, `/` and `:`."""

PROBE = "stoop-probe"


class Standing(msgspec.Struct, frozen=True):
    """A table as it was read back: its fingerprint and what its counters had seen."""

    fingerprint: str
    counters: dict[str, tuple[int, int]] = {}


class Table(msgspec.Struct, frozen=True):
    """One table as text for nft, and how many rules each of its chains has. DEVICES in it stands for the links."""

    text: str
    counts: dict[str, int]


class Apply(msgspec.Struct, frozen=True, tag="apply"):
    """Set the tables of an act, by family, instead of those that are there under its name.

    `devices`: the links for DEVICES; in a pod None, which means its own, as they are found. Without any there is no
    netdev table.
    """

    table: str
    tables: dict[str, Table]
    devices: tuple[str, ...] | None = None


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Take the tables of an act away."""

    table: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read the tables of an act."""

    table: str


class Sever(msgspec.Struct, frozen=True, tag="sever"):
    """End live connections."""

    table: str
    cutting: sockets.Cutting


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Try all that is needed, in a new namespace that ends with the process."""

    table: str = PROBE


Job = Apply | Remove | Read | Sever | Probe


class Reply(msgspec.Struct, frozen=True):
    """What came of a job. `fault`: one line, "" when it was done; `code` its errno.

    `standing`: the tables by family, as read after `Apply`, and before `Remove`. `links`: those by which packets leave
    the pod, when they were looked at (number, name, kind). `remarks`: what is weaker than it should be.
    """

    fault: str = ""
    code: int = 0
    standing: dict[str, Standing] = {}
    links: tuple[tuple[int, str, str], ...] = ()
    replaced: bool = False
    ended: int = 0
    remarks: tuple[str, ...] = ()


encode = msgspec.msgpack.Encoder().encode
read_job = msgspec.msgpack.Decoder(Job).decode
read_reply = msgspec.msgpack.Decoder(Reply).decode


def carry_out(job: Job, namespace_fd: int | None) -> Reply:
    """Do it in that namespace (None: in the one where we are), for good. Never raises for what the world does."""
    try:
        if isinstance(job, Probe):
            _unshare()
        elif namespace_fd is not None:
            enter(namespace_fd)
        if isinstance(job, Sever):
            ended, remarks = sockets.cut(job.cutting)
            return Reply(ended=ended, remarks=remarks)
        with contextlib.closing(nft.Nft()) as context:
            if isinstance(job, Apply):
                return _apply(context, job)
            if isinstance(job, Remove):
                return _remove(context, job.table)
            if isinstance(job, Read):
                return Reply(standing=_standing(context, job.table))
            return _probe(context)
    except MemoryError:
        return Reply("the namespace holds more than can be read", errno.ENOMEM)
    except OSError as error:
        return Reply(_told(error), error.errno or errno.EIO)


def _told(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text} (CAP_NET_ADMIN is needed)" if text.endswith(os.strerror(errno.EPERM)) else text


def _unshare() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:  # CLONE_NEWNET
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace can be made: {os.strerror(number)} (CAP_SYS_ADMIN is needed)")


# ---------------------------------------------------------------- apply


def _apply(context: nft.Nft, job: Apply) -> Reply:
    found: list[Link] = []
    remarks: list[str] = []
    devices = job.devices or ()
    for last in (False,) * (DEVICE_TRIES - 1) + (True,):
        if job.devices is None:
            devices, found, remarks = _own_devices(give_up=last)
        texts = _texts(job, devices)
        try:
            replaced = _transaction(context, job.table, texts)
            break
        except nft.NftError as error:
            # One of the pod's links has gone, or is called something else, since it was listed.
            if last or job.devices is not None or error.errno == errno.EPERM:
                raise
    standing, fault = {}, ""
    for family in texts:
        listed = context.rules_of(family, job.table) or ""
        counts = nft.rule_counts(listed)
        standing[family] = Standing(nft.fingerprint(listed))
        if counts != job.tables[family].counts:
            fault = f"the {family} table is not what was set: {counts} rules instead of {job.tables[family].counts}"
    seen = tuple((link.number, link.name, link.kind) for link in found if link.leads_out)
    return Reply(fault, errno.EIO if fault else 0, standing, seen, replaced, 0, tuple(remarks))


def _texts(job: Apply, devices: tuple[str, ...]) -> dict[str, str]:
    named = ", ".join(f'"{device}"' for device in devices)
    return {
        family: table.text.replace(DEVICES, named)
        for family, table in job.tables.items()
        if devices or DEVICES not in table.text
    }


def _own_devices(give_up: bool) -> tuple[tuple[str, ...], list[Link], list[str]]:
    """The names of the pod's links that rules can name; all links; what could not be named.

    After DEVICE_TRIES the pod renames faster than we look: then its sockets' hooks and the host's end must do.
    """
    with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as netlink:
        try:
            found = [link for link in links(netlink, MAX_POD_LINKS) if not link.loopback]
        except TooMany:
            return (), [], [f"the pod has more than {MAX_POD_LINKS} links: none is closed at its own end"]
    if give_up:
        return (), found, ["the pod's links change too fast: none is closed at its own end"]
    plain = tuple(link.name for link in found if PLAIN_NAME.fullmatch(link.name))
    odd = len(found) - len(plain)
    return plain, found, [f"{odd} of the pod's links have names that no rule can hold"] if odd else []


def _transaction(context: nft.Nft, name: str, texts: dict[str, str]) -> bool:
    """Set the tables, all at once. True when some of that name were there: they are replaced in the same moment."""
    body = "".join(texts.values())
    try:
        context.run("".join(f"create table {family} {name}\n" for family in texts) + body)
    except nft.NftError as error:
        if error.errno != errno.EEXIST:
            raise
        context.run("".join(f"table {family} {name}\ndelete table {family} {name}\n" for family in FAMILIES) + body)
        return True
    return False


def _standing(context: nft.Nft, name: str) -> dict[str, Standing]:
    standing = {}
    for family in FAMILIES:
        rules = context.rules_of(family, name)
        if rules is not None:
            standing[family] = Standing(nft.fingerprint(rules), context.counters_of(family, name) or {})
    return standing


# ---------------------------------------------------------------- remove, probe


def _remove(context: nft.Nft, name: str) -> Reply:
    before = _standing(context, name)
    for family in before:
        try:
            context.run(f"delete table {family} {name}")
        except nft.NftError as error:
            if error.errno != errno.ENOENT:
                raise
    left = [family for family in before if context.rules_of(family, name) is not None]
    return Reply(f"still there after it was deleted: {', '.join(left)}" if left else "", 0, before)


_PROBES = (
    ("inet tables", "table inet {0} {{ chain a {{ type filter hook output priority -1; policy drop; }}\n}}"),
    ("netdev tables", 'table netdev {0} {{ chain a {{ type filter hook ingress device "lo" priority -1; }}\n}}'),
    (
        "the netdev egress hook (Linux 5.16, CONFIG_NETFILTER_EGRESS)",
        'table netdev {0} {{ chain b {{ type filter hook egress device "lo" priority -1; meta skuid 0 drop; }}\n}}',
    ),
)


def _probe(context: nft.Nft) -> Reply:
    for what, text in _PROBES:
        try:
            context.run(text.format(PROBE))
        except nft.NftError as error:
            if error.errno == errno.EPERM:
                raise
            return Reply(f"this kernel has no {what}: {error.strerror}", error.errno or errno.EIO)
    return Reply()
