"""kubernetes:tcpdump: Talon's name for `evidence:pcap`. Nothing is added to the pod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop import values
from stoop.actions.evidence import acting, reading, traffic
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

DEFAULT_SECONDS = 5

DEFAULT_IMAGE = "issif/tcpdump:latest"

MAX_BYTES = 256 * 2**20
"""Bytes of a capture: Talon has no bound, and keeps all of it in memory. `evidence:pcap` has one to be set."""


class TcpdumpParameters(Parameters, frozen=True):
    """How long, how much of each packet."""

    duration: Annotated[
        int, Meta(description="Seconds to capture. 0 means 5. After 3600 it ends, and the record says so.")
    ] = DEFAULT_SECONDS
    snaplen: Annotated[
        int, Meta(description="Bytes to keep of each packet, at most 262144. 0 keeps whole packets.")
    ] = 0
    image: Annotated[
        str, Meta(description="Of no meaning here: the node's own tcpdump is run, and no container is started.")
    ] = DEFAULT_IMAGE

    @property
    def seconds(self) -> int:
        """Of the capture."""
        return min(self.duration or DEFAULT_SECONDS, traffic.MAX_SECONDS)


def check(params: TcpdumpParameters) -> Iterator[ParameterFault]:
    """The value rules of this action: Talon's, so that its files load."""
    yield from values.number("duration", params.duration, 0)
    yield from values.number("snaplen", params.snaplen, 0)


SPEC = ActionSpec(
    name="kubernetes:tcpdump",
    description="Captures what passes on all links of the pod's network with the node's tcpdump, from outside the pod "
    "(as `evidence:pcap`), and sends `tcpdump.pcap` to the output. With 256 MiB it ends before its time. A pod in the "
    "node's network is refused.",
    parameters=TcpdumpParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.POD,
    continue_default=False,
    output=OutputUse.REQUIRED,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    # Nothing is left in the pod, unlike Talon's ephemeral container.
    idempotent=True,
    blocking=True,
    node_rights=traffic.NODE_RIGHTS,
    example="""\
- action: Capture the traffic
  actionner: kubernetes:tcpdump
  parameters:
    duration: 10
    snaplen: 4096
  output:
    target: gcp:gcs
    parameters:
      bucket: evidence
- rule: An unexpected connection
  match:
    rules: [Unexpected outbound connection destination]
  actions:
    - action: Capture the traffic
""",
)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Capture it."""
    params: TcpdumpParameters = ctx.params
    outcome = await traffic.take(ctx, params.seconds, params.snaplen, MAX_BYTES)
    ignored: dict[str, object] = {}
    if params.duration > params.seconds:
        ignored["duration"] = f"{params.duration} s: at most {params.seconds} are captured"
    if params.image not in ("", DEFAULT_IMAGE):
        ignored["image"] = "no container is started: the node's own tcpdump was run"
    return msgspec.structs.replace(outcome, details=outcome.details | {"ignored": ignored}) if ignored else outcome


ACTION = Action(
    spec=SPEC,
    begin=reading.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: traffic.answer_s(params.seconds, MAX_BYTES),
    lane=traffic.LANE,
)
