"""nftables tables as text, from rules in two directions: out of the pod and into it. Pure.

The same rules stand at up to four places, and only the hooks differ:

| place | family | out of the pod | into the pod |
|---|---|---|---|
| the host's end of the pod's link | netdev | ingress | egress |
| where the host takes in what was led past that hook | inet, bridge | prerouting | - |
| the pod's own end of it | netdev | egress | ingress |
| the pod's sockets | inet | output | input |

Everything in the text is a number, an address or a word of ours: nothing that a pod may choose can become a rule. The
links are a mark that whoever knows them replaces. Source: nft(8).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence

import msgspec

from stoop.errors import TargetRefused
from stoop.spec import (
    ParameterFault,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIORITY = -(2**31)
"""Before every other chain at the same hook: what another one redirects, or takes up into a flow table, never comes by.
The lowest there is (include/uapi/linux/netfilter/nf_tables.h: NFTA_HOOK_PRIORITY is a signed 32-bit number)."""

MAX_NETWORKS = 256
"""Networks that one list may hold: some 20 KiB of rules, and a transaction that still takes about a millisecond."""

MAX_PORTS = 64
"""Ports and ranges that one list may hold."""

PORT_MAX = 65535

_ACT_ID = re.compile(r"[0-9a-f]{8,64}")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)

SHARED_TABLE = "stoop"
"""On the host all acts share one table: libnftables 1.0.6 asks three times for each table that there is, so a table
for each act would make the hundredth some 20 ms slow."""


class Place(enum.StrEnum):
    """Where a table stands."""

    HOST_LINK = "host"
    HOST_STACK = "host stack"
    HOST_BRIDGE = "host bridge"
    POD_LINK = "pod link"
    POD_SOCKETS = "pod"

    @property
    def family(self) -> str:
        """The family of its table, as nft(8) calls it."""
        return {Place.POD_SOCKETS: "inet", Place.HOST_STACK: "inet", Place.HOST_BRIDGE: "bridge"}.get(self, "netdev")

    @property
    def on_host(self) -> bool:
        """Whether nobody in the pod can reach it."""
        return self not in (Place.POD_LINK, Place.POD_SOCKETS)

    @property
    def ways(self) -> tuple[str, ...]:
        """Its chains, each followed by the act's id."""
        if self in (Place.HOST_STACK, Place.HOST_BRIDGE):
            return ("late",)
        return ("out", "in", "through") if self is Place.POD_SOCKETS else ("out", "in")


_HOOKS = {
    Place.HOST_LINK: ("ingress", "egress"),
    Place.HOST_STACK: ("prerouting",),
    Place.HOST_BRIDGE: ("prerouting",),
    Place.POD_LINK: ("egress", "ingress"),
    Place.POD_SOCKETS: ("output", "input", "forward"),
}


class Rules(msgspec.Struct, frozen=True):
    """What one place's chains hold. What no rule decides is dropped if `closed`, else let through.

    `sets` are declarations; where a rule or a declaration names a set, ACT stands for the act's id.
    """

    closed: bool
    out: tuple[str, ...] = ()
    into: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


ACT = "@ACT@"


def check_act_id(act_id: str) -> str:
    """The id, as it may stand in a name. Raises ValueError: it is 8 to 64 hexadecimal digits."""
    if not _ACT_ID.fullmatch(act_id):
        raise ValueError(f"{act_id!r} is no act's id: 8 to 64 hexadecimal digits")
    return act_id


def table_name(place: Place, act_id: str) -> str:
    """The table of an act: in a pod its own, on the host one for all acts, whose chains and sets carry the id."""
    return SHARED_TABLE if place.on_host else f"stoop-{check_act_id(act_id)}"


def table(place: Place, act_id: str, rules: Rules, devices: str) -> str:
    """An act's chains in their table. They must not be there. `devices`: what stands for the links, if there are any.

    All or nothing of it happens (nft(8)): a chain that is not filled yet is never seen by a packet.
    """
    name = f"{place.family} {table_name(place, check_act_id(act_id))}"
    policy = "drop" if rules.closed else "accept"
    lines = [f"table {name} {{", *(f"  {declared}" for declared in rules.sets), "}"]
    for way, hook in zip(place.ways, _HOOKS[place], strict=True):
        at = hook if place.family != "netdev" else f"{hook} devices = {{ {devices} }}"
        head = f"type filter hook {at} priority {PRIORITY}; policy {policy};"
        lines.append(f"create chain {name} {way}-{act_id} {{ {head} }}")
    lines.append(f"table {name} {{")
    for way in place.ways:
        lines += [f"  chain {way}-{act_id} {{", *(f"    {line}" for line in _lines(place, way, rules, devices)), "  }"]
    return "\n".join([*lines, "}", ""]).replace(ACT, act_id)


def rule_counts(place: Place, act_id: str, rules: Rules) -> dict[str, int]:
    """How many rules each chain of such a table has."""
    return {f"{way}-{act_id}": len(_lines(place, way, rules, "")) for way in place.ways}


def _lines(place: Place, way: str, rules: Rules, devices: str) -> list[str]:
    last = ["counter drop"] if rules.closed else []
    if way == "late":
        # Every packet that the host takes in comes by here: those of other links go on.
        return [f"iifname != {{ {devices} }} accept", *rules.out, *last]
    if way == "through":
        # A pod that routes for namespaces of its own (a container engine in it). An isolated pod does not.
        return last if rules.closed else [*rules.out, *rules.into]
    interface = "oifname" if way == "out" else "iifname"
    loopback = [f'{interface} "lo" accept'] if place is Place.POD_SOCKETS else []
    return [*loopback, *(rules.out if way == "out" else rules.into), *last]


# ---------------------------------------------------------------- addresses and ports


def network(text: str) -> Network:
    """A network in CIDR form or one address; host bits are cut off. Raises ValueError.

    An IPv6 network of mapped IPv4 addresses (`::ffff:0:0/96` and below) is that IPv4 network: so it is on the wire.
    """
    address, slash, mask = text.partition("/")
    if "%" in address:
        raise ValueError(f"{text!r} names a zone, which means nothing outside one machine")
    parsed = ipaddress.ip_network((address, int(mask)) if slash else address, strict=False)
    mapped = parsed.network_address.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Network) else None
    if mapped is not None and parsed.prefixlen >= 96:
        return ipaddress.ip_network((mapped, parsed.prefixlen - 96), strict=False)
    return parsed


def networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Networks without those that others contain: nft refuses overlaps. Raises ValueError."""
    found = [network(text) for text in texts]
    four = [item for item in found if isinstance(item, ipaddress.IPv4Network)]
    six = [item for item in found if isinstance(item, ipaddress.IPv6Network)]
    return tuple(map(str, (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))))


def matches(side: str, texts: Sequence[str]) -> list[str]:
    """The beginnings of rules, one a family, that fit packets whose `side` (`saddr`, `daddr`) is in these networks."""
    rules = []
    wanted = [network(text) for text in texts]
    for family, version in (("ip", 4), ("ip6", 6)):
        ours = [item for item in wanted if item.version == version]
        if any(item.prefixlen == 0 for item in ours):
            rules.append(f"meta protocol {family}")
        elif ours:
            rules.append(f"{family} {side} {{ {', '.join(map(str, ours))} }}")
    return rules


def port_range(text: str) -> tuple[int, int]:
    """`443` or `8000-8080` → first and last. Raises ValueError."""
    match = _PORTS.fullmatch(text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < low <= high <= PORT_MAX:
        raise ValueError(f"{text!r} is not a port such as '443' or a range such as '8000-8080'")
    return low, high


def port_set(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of ports as a set; those that touch or overlap become one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    shown = (str(low) if low == high else f"{low}-{high}" for low, high in joined)
    return f"{{ {', '.join(shown)} }}"


def network_faults(name: str, texts: Sequence[str], most: int = MAX_NETWORKS) -> Iterable[ParameterFault]:
    """What is wrong with a list of networks or addresses."""
    if len(texts) > most:
        yield ParameterFault("param-value", name, f"{name} may hold at most {most} entries, not {len(texts)}")
    for text in texts:
        try:
            network(text)
        except ValueError:
            wanted = "a network such as '10.0.0.0/8' or '2001:db8::/32', or one address"
            yield ParameterFault("cidr", name, f"{name} must hold networks: {text!r} is not {wanted}")


def event_address(value: object, field: str) -> Network:
    """The one address of an alert's field. Raises TargetRefused for what is none, or can't be a peer elsewhere."""
    try:
        found = network(value) if isinstance(value, str) and "/" not in value else None
    except ValueError:
        found = None
    if found is None:
        raise TargetRefused(f"the alert's {field} is no address: {str(value)[:64]!r}")
    address = found.network_address
    if address.is_loopback or address.is_unspecified:
        raise TargetRefused(f"the alert's {field} is {address}: that never leaves the pod, nothing can be blocked")
    return found
