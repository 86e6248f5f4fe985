"""kubernetes:sysdig: capture the system calls of the pod or of its node from a privileged Job.

It destroys nothing; each run creates a Job, so it is not repeatable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import EXEC_IN_POD, POD_NEEDS
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

MIN_DURATION, MAX_DURATION = 1, 30  # seconds; the Job that captures lives for a minute, start included
MIN_BUFFER = 128  # bytes of each call's data


class SysdigParameters(Parameters, frozen=True):
    """How long, of whom, how much of each call, with which image."""

    duration: Annotated[int, Meta(description="Seconds to capture, 1 to 30. 0 means 5.")] = 5
    scope: Annotated[str, Meta(description="`pod`: the containers of the pod. `node`: everything on its node.")] = "pod"
    buffer_size: Annotated[int, Meta(description="Bytes to keep of each call's data, at least 128. 0 means 2048.")] = (
        2048
    )
    image: Annotated[str, Meta(description="Image of the Job; it must hold sysdig. Empty means the default.")] = (
        "issif/sysdig:latest"
    )


def check(params: SysdigParameters) -> Iterator[ParameterFault]:
    """The value rules of this action; 0 stands for the default."""
    if params.buffer_size:
        yield from values.number("buffer_size", params.buffer_size, MIN_BUFFER)
    if params.duration:
        yield from values.number("duration", params.duration, MIN_DURATION, MAX_DURATION)
    yield from values.choice("scope", params.scope, ("pod", "node"))


SPEC = ActionSpec(
    name="kubernetes:sysdig",
    description="Captures system calls with a privileged Job on the pod's node, and sends `sysdig.scap.gz` to the "
    "output.",
    parameters=SysdigParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    # The furthest that `scope` allows.
    reach=Reach.NODE,
    continue_default=False,
    output=OutputUse.REQUIRED,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    blocking=True,
    cluster_rights=(
        # `list` finds the pod that the Job started.
        ClusterRight(group="", resources=("pods",), verbs=("get", "list")),
        EXEC_IN_POD,
        ClusterRight(group="batch", resources=("jobs",), verbs=("create", "get")),
    ),
    example="""\
- action: Capture the system calls
  actionner: kubernetes:sysdig
  parameters:
    duration: 20
    scope: pod
  output:
    target: minio:s3
    parameters:
      bucket: evidence
      prefix: captures
- rule: A process traces another
  match:
    rules: [PTRACE attached to process]
  actions:
    - action: Capture the system calls
""",
)

ACTION = Action(spec=SPEC)
