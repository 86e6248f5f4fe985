"""evidence:pcap: what passes in the pod's network, kept in a bundle. kubernetes:tcpdump, without a container for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.evidence import acting, reading, traffic
from stoop.actions.evidence.bounds import size
from stoop.actions.evidence.traffic import MAX_SECONDS
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)
from stoop.units import parse_size

DEFAULT_SECONDS = 5
MAX_SNAPLEN = 262_144
"""Bytes of a packet that tcpdump keeps at most."""

MAX_CAPTURE = 2 * 1024**3
"""Bytes: what the store takes in one bundle by default."""


class PcapParameters(Parameters, frozen=True):
    """How long, how much of each packet, how much in all."""

    duration: Annotated[int, Meta(description="Seconds to capture, at most 3600. 0 means 5.")] = DEFAULT_SECONDS
    snaplen: Annotated[
        int, Meta(description="Bytes to keep of each packet, at most 262144. 0 keeps whole packets.")
    ] = 0
    max_bytes: Annotated[str, Meta(description="With so many bytes it ends before its time, at most 2GiB.")] = "256MiB"

    @property
    def seconds(self) -> int:
        """Of the capture."""
        return self.duration or DEFAULT_SECONDS

    @property
    def bytes(self) -> int:
        """Of the capture."""
        return parse_size(self.max_bytes)


def check(params: PcapParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.number("duration", params.duration, 0, MAX_SECONDS)
    yield from values.number("snaplen", params.snaplen, 0, MAX_SNAPLEN)
    yield from size("max_bytes", params.max_bytes, MAX_CAPTURE, "2GiB", least=4096)


SPEC = ActionSpec(
    name="evidence:pcap",
    description="Captures what passes on all links of the pod's network with the node's tcpdump, from outside the pod: "
    "nothing is added to it, and nothing in it is used. A pod in the node's network is refused.",
    parameters=PcapParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.POD,
    # Nothing was changed.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    idempotent=True,
    blocking=True,
    output=OutputUse.ALLOWED,
    node_rights=traffic.NODE_RIGHTS,
    example="""\
- action: Keep its traffic
  actionner: evidence:pcap
  parameters:
    duration: 30
    snaplen: 256
- rule: An unexpected connection
  match:
    rules: [Unexpected outbound connection destination]
  actions:
    - action: Keep its traffic
""",
)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Capture it."""
    params: PcapParameters = ctx.params
    return await traffic.take(ctx, params.seconds, params.snaplen, params.bytes)


ACTION = Action(
    spec=SPEC,
    begin=reading.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: traffic.answer_s(params.seconds, params.bytes),
    lane=traffic.LANE,
)
