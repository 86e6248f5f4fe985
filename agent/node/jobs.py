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

DEVICES = "@DEVICES@"
"""Where a table's text names the links."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")
"""Names of links that can stand in a rule. A pod may call its own anything but blanks, `/` and `:`."""

PROBE = "stoop-probe"


class Standing(msgspec.Struct, frozen=True):
    """An act's chains in one table as they were read: a fingerprint, and what their counters had seen."""

    fingerprint: str
    counters: dict[str, tuple[int, int]] = {}


class Part(msgspec.Struct, frozen=True):
    """What an act has in one table: its name, chains and sets. `shared`: the table is for other acts too."""

    family: str
    table: str
    chains: tuple[str, ...]
    shared: bool = False


class Put(msgspec.Struct, frozen=True):
    """A part as text for nft, and how many rules each of its chains has. DEVICES in it stands for the links."""

    part: Part
    text: str
    counts: dict[str, int]


class Apply(msgspec.Struct, frozen=True, tag="apply"):
    """Set an act's parts, instead of those that are there under its name.

    `devices`: the links for DEVICES, by name and number; in a pod None, which means its own, as they are found. Without
    any there is no netdev table.
    """

    puts: tuple[Put, ...]
    devices: tuple[tuple[str, int], ...] | None = None


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Take an act's parts away."""

    parts: tuple[Part, ...]


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read an act's parts."""

    parts: tuple[Part, ...]


class Sever(msgspec.Struct, frozen=True, tag="sever"):
    """End live connections."""

    cutting: sockets.Cutting


class Survey(msgspec.Struct, frozen=True, tag="survey"):
    """Name the chains of a shared table."""

    family: str
    table: str


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Try all that is needed, in a new namespace that ends with the thread."""


Job = Apply | Remove | Read | Sever | Survey | Probe


class Reply(msgspec.Struct, frozen=True):
    """What came of a job. `fault`: one line, "" when it was done; `code` its errno.

    `standing`: the parts by family, as read after `Apply`, and before `Remove`. `links`: those by which packets leave
    the pod, when they were looked at (number, name, kind). `remarks`: what is weaker than it should be.
    """

    fault: str = ""
    code: int = 0
    standing: dict[str, Standing] = {}
    links: tuple[tuple[int, str, str], ...] = ()
    replaced: bool = False
    ended: int = 0
    chains: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


encode = msgspec.msgpack.Encoder().encode
read_job = msgspec.msgpack.Decoder(Job).decode
read_reply = msgspec.msgpack.Decoder(Reply).decode


class Contexts:
    """Where a job's nftables context comes from, and when it is closed: not before its answer.

    Closing its socket waits for the kernel to free what the transactions replaced (net/netfilter/nf_tables_api.c:
    nft_rcv_nl_event), some 10 ms, and holds nftables' lock of that namespace meanwhile. A hand of one namespace keeps
    its context for good (`keep`); its jobs must come one by one.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self._kept: nft.Nft | None = None

    def get(self, after: contextlib.ExitStack) -> nft.Nft:
        """The context of this thread's namespace. Raises NftError."""
        if self._kept is not None:
            return self._kept
        context = nft.Nft()
        if self.keep:
            self._kept = context
        else:
            after.callback(context.close)
        return context


def carry_out(job: Job, namespace_fd: int | None, contexts: Contexts, after: contextlib.ExitStack) -> Reply:
    """Do it in that namespace (None: in the one where we are), for good. Never raises for what the world does.

    What may take long and nobody waits for is left to `after`.
    """
    try:
        if isinstance(job, Probe):
            _unshare()
            return _probe(Contexts(keep=False).get(after))
        if namespace_fd is not None:
            enter(namespace_fd)
        if isinstance(job, Sever):
            ended, remarks = sockets.cut(job.cutting)
            return Reply(ended=ended, remarks=remarks)
        context = contexts.get(after)
        if isinstance(job, Apply):
            return _apply(context, job)
        if isinstance(job, Remove):
            return _remove(context, job.parts)
        if isinstance(job, Survey):
            listed = context.listed(f"list table {job.family} {job.table}") or ""
            return Reply(chains=tuple(nft.rule_counts(listed)))
        return Reply(standing=_standing(context, job.parts))
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
    devices = tuple(name for name, _ in job.devices or ())
    for last in (False,) * (DEVICE_TRIES - 1) + (True,):
        if job.devices is None:
            devices, found, remarks = _own_devices(give_up=last)
        wanted = [put for put in job.puts if devices or DEVICES not in put.text]
        named = ", ".join(f'"{device}"' for device in devices)
        try:
            replaced = _transaction(context, wanted, "".join(put.text for put in wanted).replace(DEVICES, named))
            break
        except nft.NftError as error:
            # One of the pod's links has gone, or is called something else, since it was listed.
            if last or job.devices is not None or error.errno == errno.EPERM:
                raise
    for name, number in job.devices or ():
        # Rules name a link, and a name can come to mean another one. What they hold on to now stays the same link.
        if _number_of(name) != number:
            context.run("".join(_removal(context, put.part) for put in wanted))
            return Reply(f"the host's end {name} is not the link any more that it was", errno.ENODEV)
    standing, fault = {}, ""
    for put in wanted:
        listed = _listed(context, put.part) or ""
        counts = nft.rule_counts(listed)
        standing[put.part.family] = Standing(nft.fingerprint(listed))
        if counts != put.counts:
            fault = f"the {put.part.family} table is not what was set: {counts} rules instead of {put.counts}"
    seen = tuple((link.number, link.name, link.kind) for link in found if link.leads_out)
    code = errno.EIO if fault else 0
    return Reply(fault, code, standing, seen, replaced, remarks=tuple(remarks))


def _number_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


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


def _transaction(context: nft.Nft, puts: list[Put], body: str) -> bool:
    """Set the parts, all at once. True when some of that name were there: they are replaced in the same moment."""
    try:
        own = (put.part for put in puts if not put.part.shared)
        context.run("".join(f"create table {part.family} {part.table}\n" for part in own) + body)
    except nft.NftError as error:
        if error.errno != errno.EEXIST:
            raise
        old = "".join(_removal(context, put.part) for put in puts)
        context.run(old + body)
        return True
    return False


def _removal(context: nft.Nft, part: Part) -> str:
    """Commands that take away what there is of it: one for what isn't there would fail all of them."""
    if not part.shared:
        return f"delete table {part.family} {part.table}\n" if _listed(context, part) is not None else ""
    chains = [chain for chain in part.chains if _chain(context, part, chain) is not None]
    sets = re.findall(r"^\tset ([\w-]+) \{", context.listed(f"list sets {part.family}") or "", re.MULTILINE)
    # Chains begin with a way and end with the act's id, sets end with it.
    act = part.chains[0].partition("-")[2]
    lines = [f"flush chain {part.family} {part.table} {chain}" for chain in chains]
    lines += [f"delete chain {part.family} {part.table} {chain}" for chain in chains]
    lines += [f"delete set {part.family} {part.table} {name}" for name in sets if name.endswith(f"-{act}")]
    return "".join(f"{line}\n" for line in lines)


def _listed(context: nft.Nft, part: Part, counted: bool = False) -> str | None:
    """The part as it stands, None when nothing of it does."""
    if not part.shared:
        return context.listed(f"list table {part.family} {part.table}", counted)
    found = [_chain(context, part, chain, counted) for chain in part.chains]
    return None if found == [None] * len(found) else "".join(text or "" for text in found)


def _chain(context: nft.Nft, part: Part, chain: str, counted: bool = False) -> str | None:
    return context.listed(f"list chain {part.family} {part.table} {chain}", counted)


def _standing(context: nft.Nft, parts: tuple[Part, ...]) -> dict[str, Standing]:
    standing = {}
    for part in parts:
        rules = _listed(context, part)
        if rules is not None:
            counted = nft.counters(_listed(context, part, counted=True) or "")
            standing[part.family] = Standing(nft.fingerprint(rules), counted)
    return standing


# ---------------------------------------------------------------- remove, probe


def _remove(context: nft.Nft, parts: tuple[Part, ...]) -> Reply:
    before = _standing(context, parts)
    for part in parts:
        try:
            context.run(_removal(context, part) or "\n")
        except nft.NftError as error:
            if error.errno != errno.ENOENT:  # somebody else was faster
                raise
        if part.shared and _is_empty(context, part):
            context.run(f"delete table {part.family} {part.table}")
    left = [part.family for part in parts if _listed(context, part) is not None]
    fault = f"still there after it was deleted: {', '.join(left)}" if left else ""
    return Reply(fault, errno.EIO if fault else 0, before)


def _is_empty(context: nft.Nft, part: Part) -> bool:
    """Whether the shared table holds nothing any more, neither ours nor anybody's."""
    listed = context.listed(f"list table {part.family} {part.table}")
    return listed is not None and "\t" not in listed


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
