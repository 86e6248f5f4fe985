"""kubernetes:tcpdump: capture the pod's network traffic from an ephemeral container.

It destroys nothing; each run leaves an ephemeral container in the pod, so it is not repeatable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import EXEC_IN_POD, POD_NEEDS, READ_POD
from stoop.spec import (
    Action,
    ActionSpec,
    ClusterRight,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)


class TcpdumpParameters(Parameters, frozen=True):
    """How long, how much of each packet, with which image."""

    duration: Annotated[int, Meta(description="Seconds to capture. 0 means 5.")] = 5
    snaplen: Annotated[int, Meta(description="Bytes to keep of each packet. 0 keeps whole packets.")] = 0
    image: Annotated[
        str, Meta(description="Image of the ephemeral container; it must hold tcpdump. Empty means the default.")
    ] = "issif/tcpdump:latest"


def check(params: TcpdumpParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.number("duration", params.duration, 0)
    yield from values.number("snaplen", params.snaplen, 0)


SPEC = ActionSpec(
    name="kubernetes:tcpdump",
    description="Captures the pod's traffic on all its interfaces, from a privileged ephemeral container that stays "
    "in the pod's specification, and sends `tcpdump.pcap` to the output.",
    parameters=TcpdumpParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.POD,
    continue_default=False,
    output=OutputUse.REQUIRED,
    sources=("syscall",),
    needs=POD_NEEDS,
    blocking=True,
    cluster_rights=(
        READ_POD,
        ClusterRight(group="", resources=("pods/ephemeralcontainers",), verbs=("patch",)),
        EXEC_IN_POD,
    ),
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

ACTION = Action(spec=SPEC)
