"""network:isolate: a pod reaches nothing and nothing reaches it, but what the rule says and its own loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop.actions.holding import DEFAULT_TTL, Ttl, check_ttl
from stoop.actions.network import acting
from stoop.actions.network.ruleset import ACT, Place, Rules, matches, network_faults, networks
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    ParameterFault,
    Parameters,
    Reach,
    Reversal,
    Scope,
    TargetKind,
)

MAX_RESOLVERS = 16
"""resolv.conf(5) uses three; a dual-stack cluster has two."""

MAX_PROBES = 4096
"""Connections of probes at one time and the two minutes after: a dozen containers probed each second make 1,440."""

PROBE_SECONDS = 120
"""How long a probe's connection may take. Kubernetes' own limit is timeoutSeconds, 1 unless set."""

NEIGHBOURS_PER_SECOND = 20
"""Address resolution that a pod with leave to reach something may do, each way. Enough for one, too slow to leak by."""

NEIGHBOUR_BYTES = {"arp": 64, "nd": 128}
"""Longest packet that passes as address resolution: ARP takes 28 bytes (RFC 826) and an Ethernet header, neighbour
discovery up to 86 with its option (RFC 4861). Nothing fits behind it."""


class IsolateParameters(Parameters, frozen=True):
    """What stays possible. Without parameters nothing does but the pod's own loopback."""

    allow_cidr: Annotated[
        list[str],
        Meta(
            description="Networks that stay reachable in both directions, in CIDR form (`10.0.0.0/8`) or as addresses."
        ),
    ] = msgspec.field(default_factory=list)
    allow_probes: Annotated[
        bool,
        Meta(
            description="Let the node's own root processes open TCP connections into the pod, and the answers out: the "
            "kubelet's HTTP, TCP and gRPC probes. The pod itself can't begin one. Without this probes fail, and the "
            "kubelet restarts the container or takes it out of its Services."
        ),
    ] = False
    dns: Annotated[
        list[str],
        Meta(
            description="Addresses of resolvers that stay reachable at port 53. Data can be carried out by DNS queries."
        ),
    ] = msgspec.field(default_factory=list)
    ttl: Ttl = DEFAULT_TTL


class IsolatePolicy(msgspec.Struct, frozen=True, tag="isolate"):
    """The same, read. Networks and addresses are as `networks` gives them: none contains another."""

    allow: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    probes: bool = False

    def rules(self, place: Place) -> Rules:
        """What the chains of one place hold."""
        out, into = [], []
        for match in matches("daddr", self.allow):
            out.append(f"{match} counter accept")
        for match in matches("saddr", self.allow):
            into.append(f"{match} counter accept")
        for protocol in ("udp", "tcp"):
            out += [f"{match} {protocol} dport 53 counter accept" for match in matches("daddr", self.dns)]
            into += [f"{match} {protocol} sport 53 counter accept" for match in matches("saddr", self.dns)]
        if self.probes:
            out += _probe_answers(place)
            into += _probe_questions(place)
        if self.allow or self.dns or self.probes:
            out += _neighbours(place)
            into += _neighbours(place)
        sets = _probe_sets() if self.probes and place not in _BLIND else ()
        return Rules(True, tuple(out), tuple(into), sets)


def policy_of(params: IsolateParameters) -> IsolatePolicy:
    """The policy of checked parameters. Raises ValueError for what `check` finds."""
    return IsolatePolicy(networks(params.allow_cidr), networks(params.dns), params.allow_probes)


_BLIND = (Place.HOST_STACK, Place.HOST_BRIDGE)
# Only what comes out of the pod is seen here, so connections can't be noted.


def _probe_sets() -> tuple[str, ...]:
    return tuple(
        f"set probes_{family}-{ACT} {{ typeof {family} saddr . tcp sport . tcp dport; flags dynamic,timeout; "
        f"timeout {PROBE_SECONDS}s; size {MAX_PROBES}; }}"
        for family in ("ip", "ip6")
    )


def _probe_questions(place: Place) -> list[str]:
    """The node opens a connection: it is noted, and what belongs to it goes in.

    At the host's end its socket is known: only a process of root's on the node itself (meta skuid: the socket's owner)
    counts, not a client from elsewhere that was given the node's address on its way. In the pod that can't be seen any
    more: there what the host's end let through is enough.
    """
    owner = "meta skuid 0 " if place is Place.HOST_LINK else ""
    begins = "tcp flags & (fin | syn | rst | ack) == syn"
    rules = []
    for family in ("ip", "ip6"):
        key = f"{family} saddr . tcp sport . tcp dport"
        rules.append(f"{begins} {owner}update @probes_{family}-{ACT} {{ {key} }} counter accept")
        rules.append(f"{key} @probes_{family}-{ACT} counter accept")
    return rules


def _probe_answers(place: Place) -> list[str]:
    """What belongs to a connection that was noted. Where none can be: to the node itself, and never the beginning of
    one; on a bridge that can't be told either, so nothing."""
    if place is Place.HOST_STACK:
        return ["fib daddr type local tcp flags & (syn | ack) != syn counter accept"]
    if place is Place.HOST_BRIDGE:
        return []
    return [
        f"tcp flags & (syn | ack) != syn {family} daddr . tcp dport . tcp sport @probes_{family}-{ACT} counter accept"
        for family in ("ip", "ip6")
    ]


def _neighbours(place: Place) -> list[str]:
    """Who has that address: without it nothing that is allowed gets anywhere. ARP never comes by the sockets' hooks."""
    limit = f"limit rate {NEIGHBOURS_PER_SECOND}/second burst {NEIGHBOURS_PER_SECOND} packets accept"
    arp = f"meta protocol arp arp operation {{ 1, 2 }} meta length <= {NEIGHBOUR_BYTES['arp']} {limit}"
    nd = f"icmpv6 type {{ 135, 136 }} ip6 hoplimit 255 meta length <= {NEIGHBOUR_BYTES['nd']} {limit}"
    return [nd] if place.family == "inet" else [arp, nd]


def check(params: IsolateParameters) -> Iterator[ParameterFault]:
    """Networks and addresses must be some, and not too many."""
    yield from check_ttl(params.ttl)
    yield from network_faults("allow_cidr", params.allow_cidr)
    yield from network_faults("dns", params.dns, MAX_RESOLVERS)
    for text in params.dns:
        if "/" in text:
            yield ParameterFault("param-value", "dns", f"dns must hold single addresses: {text!r} is a network")


SPEC = ActionSpec(
    name="network:isolate",
    description="Drops every packet of the pod, both ways, but those on its loopback and what is allowed here: at the "
    "host's end of the pod's link, where nobody in the pod can change it, and in the pod. Live connections are cut. "
    "All containers of the pod share its network, so all are isolated. A pod on the node's own network is refused; "
    "where the link has no end on the host (macvlan, ipvlan, a passed-through device) only the pod's own side is "
    "closed, and the outcome says so.",
    parameters=IsolateParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.POD,
    # The container still runs: gather evidence, label it, end it.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    reversible=True,
    # The tables are named after the act: the second time they are there already.
    idempotent=True,
    # A hostile namespace can hold nftables' lock for long.
    blocking=True,
    node_rights=("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
    example="""\
- action: Isolate the pod
  actionner: network:isolate
  parameters:
    allow_probes: true
    allow_cidr: [10.96.0.20/32]
- rule: A container talks to a miner pool
  match:
    rules: [Detect outbound connections to common miner pool ports]
  actions:
    - action: Isolate the pod
""",
)


def plan(ctx: ActContext) -> Outcome | Reversal:
    """Whose network it is, and what of it is held."""
    return acting.plan_of(ctx, "isolated")


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Carry it out, and see that it stands."""
    return await acting.cut(ctx, lambda given: policy_of(given.params))


ACTION = Action(
    spec=SPEC,
    begin=acting.begin,
    verify=verify,
    overdue=acting.overdue,
    plan=plan,
    undo=acting.undo,
    drift=acting.drift,
)
