"""network:block: a pod no longer reaches one peer, or given networks and ports, nor they it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from stoop.actions.holding import DEFAULT_TTL, Ttl, check_ttl
from stoop.actions.network import acting
from stoop.actions.network.ruleset import (
    MAX_PORTS,
    PORT_MAX,
    Place,
    Rules,
    event_address,
    matches,
    network_faults,
    networks,
    port_range,
    port_set,
)
from stoop.errors import TargetRefused
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

Protocols = Literal["any", "tcp", "udp"]

_NUMBERS = {"tcp": 6, "udp": 17}
_WITH_PORTS = ("tcp", "udp", "sctp")


class BlockParameters(Parameters, frozen=True):
    """Which peers. With neither networks nor ports it is the event's own peer."""

    cidr: Annotated[
        list[str],
        Meta(description="Networks in CIDR form (`203.0.113.0/24`) or addresses. With none, and `ports` given: all."),
    ] = msgspec.field(default_factory=list)
    ports: Annotated[
        list[str],
        Meta(description="The peer's ports, as texts: `'443'`, `'8000-8080'`. With none: all."),
    ] = msgspec.field(default_factory=list)
    protocol: Annotated[Protocols, Meta(description="`tcp`, `udp`, or `any` (with ports: TCP, UDP and SCTP).")] = "any"
    whole_peer: Annotated[
        bool,
        Meta(
            description="Of the event's peer (`fd.rip`) block every port, not just `fd.rport`. For a connection that "
            "came in, whose remote port is chosen anew each time."
        ),
    ] = False
    ttl: Ttl = DEFAULT_TTL


class BlockPolicy(msgspec.Struct, frozen=True, tag="block"):
    """The same, read. No networks: every peer. No ports: every port."""

    peers: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    protocol: Protocols = "any"

    def rules(self, place: Place) -> Rules:
        """What the chains of one place hold; the same at each."""
        return Rules(False, tuple(self._drops("daddr", "dport")), tuple(self._drops("saddr", "sport")))

    def _drops(self, side: str, port: str) -> Iterator[str]:
        for match in matches(side, self.peers) if self.peers else [""]:
            if not self.ports:
                only = f"meta l4proto {_NUMBERS[self.protocol]} " if self.protocol != "any" else ""
                yield f"{match} {only}counter drop".strip()
                continue
            for protocol in _WITH_PORTS if self.protocol == "any" else (self.protocol,):
                yield f"{match} {protocol} {port} {port_set(self.ports)} counter drop".strip()
            if not match.startswith("ip "):
                # The first piece of an IPv6 packet need not reach as far as the ports (RFC 7112 came later).
                yield f"{match} exthdr frag exists counter drop".strip()


def policy_of(params: BlockParameters, fields: Mapping[str, Any]) -> BlockPolicy:
    """The policy of checked parameters, or that of the event's peer. `fields`: the alert's.

    Raises TargetRefused when the alert names no peer, ValueError for what `check` finds.
    """
    if params.cidr or params.ports:
        return BlockPolicy(networks(params.cidr), tuple(map(port_range, params.ports)), params.protocol)
    if fields.get("fd.rip") in (None, ""):
        raise TargetRefused("the alert has no fd.rip: give cidr or ports, or have the Falco rule output it")
    peer = event_address(fields["fd.rip"], "fd.rip")
    ports = () if params.whole_peer else (_event_port(fields.get("fd.rport")),)
    return BlockPolicy((str(peer),), ports, params.protocol)


def _event_port(value: object) -> tuple[int, int]:
    """Falco gives a number; senders in between make it a text."""
    try:
        number = int(value) if isinstance(value, str) and value.isascii() else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= PORT_MAX:
        raise TargetRefused(f"the alert's fd.rport is no port: {str(value)[:64]!r} (whole_peer: true does without)")
    return number, number


def check(params: BlockParameters) -> Iterator[ParameterFault]:
    """Networks and ports must be some, and not too many."""
    yield from check_ttl(params.ttl)
    yield from network_faults("cidr", params.cidr)
    if len(params.ports) > MAX_PORTS:
        yield ParameterFault("param-value", "ports", f"ports may hold at most {MAX_PORTS} entries")
    for text in params.ports:
        try:
            port_range(text)
        except ValueError as error:
            yield ParameterFault("param-value", "ports", f"ports: {error}")
    if params.whole_peer and (params.cidr or params.ports):
        yield ParameterFault(
            "param-value", "whole_peer", "whole_peer is about the event's peer: leave out cidr and ports"
        )


SPEC = ActionSpec(
    name="network:block",
    description="Drops the packets between the pod and a peer, both ways: the event's own (`fd.rip` and `fd.rport`), "
    "or given networks and ports. At the same places as `network:isolate`. Live connections with it are cut.",
    parameters=BlockParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.POD,
    # One peer less is no end: go on.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    reversible=True,
    idempotent=True,
    # A hostile namespace can hold nftables' lock for long.
    blocking=True,
    node_rights=("CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
    example="""\
- action: Block the peer
  actionner: network:block
  parameters:
    whole_peer: true
- rule: A shell talks to the outside
  match:
    rules: [Redirect STDOUT/STDIN to Network Connection in Container]
  actions:
    - action: Block the peer
""",
)


def plan(ctx: ActContext) -> Outcome | Reversal:
    """Whose network it is, and what of it is held."""
    policy = policy_of(ctx.params, ctx.fields)
    ports = ",".join(f"{low}-{high}" for low, high in policy.ports)
    return acting.plan_of(ctx, f"blocked {policy.protocol} {','.join(policy.peers)} {ports}".rstrip())


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Carry it out, and see that it stands."""
    return await acting.cut(ctx, lambda given: policy_of(given.params, given.fields))


ACTION = Action(
    spec=SPEC,
    begin=acting.begin,
    verify=verify,
    overdue=acting.overdue,
    plan=plan,
    undo=acting.undo,
    drift=acting.drift,
)
