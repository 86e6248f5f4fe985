"""kubernetes:sysdig: the system calls of the pod, or of its node, by the node's own sysdig. No Job is created."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop import values
from stoop.actions.evidence import acting, reading
from stoop.actions.evidence.reading import Data
from stoop.captures import SyscallsWanted
from stoop.errors import TargetError
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
    Verdict,
)

MIN_DURATION, MAX_DURATION = 1, 30  # seconds: Talon's
MIN_BUFFER = 128  # bytes of each call's data

DEFAULT_SECONDS, DEFAULT_BUFFER = 5, 2048

MAX_BUFFER = 65_000
"""Bytes of each call's data that sysdig's drivers take at most (SNAPLEN_MAX of libscap)."""

DEFAULT_IMAGE = "issif/sysdig:latest"

MAX_BYTES = 256 * 2**20
"""Bytes of a capture, compressed: a busy node makes some 10 MiB a second."""

MAX_CONTAINERS = 64
"""Containers of a pod that are told apart: more make a filter that slows each call."""

DATA = Data("sysdig.scap.gz", "sysdig.scap.gz")

START_SECONDS = 45.0
"""For a worker's place, the driver's loading, and writing twice what was captured."""


class SysdigParameters(Parameters, frozen=True):
    """How long, of whom, how much of each call, with which image."""

    duration: Annotated[int, Meta(description="Seconds to capture, 1 to 30. 0 means 5.")] = DEFAULT_SECONDS
    scope: Annotated[str, Meta(description="`pod`: the containers of the pod. `node`: everything on its node.")] = "pod"
    buffer_size: Annotated[
        int, Meta(description="Bytes to keep of each call's data, at least 128, 65000 at most. 0 means 2048.")
    ] = DEFAULT_BUFFER
    image: Annotated[
        str, Meta(description="Of no meaning here: the node's own sysdig is run, and no Job is created.")
    ] = DEFAULT_IMAGE

    @property
    def seconds(self) -> int:
        """Of the capture."""
        return self.duration or DEFAULT_SECONDS

    @property
    def snaplen(self) -> int:
        """Bytes of each call's data."""
        return min(self.buffer_size or DEFAULT_BUFFER, MAX_BUFFER)


def check(params: SysdigParameters) -> Iterator[ParameterFault]:
    """The value rules of this action; 0 stands for the default."""
    if params.buffer_size:
        yield from values.number("buffer_size", params.buffer_size, MIN_BUFFER)
    if params.duration:
        yield from values.number("duration", params.duration, MIN_DURATION, MAX_DURATION)
    yield from values.choice("scope", params.scope, ("pod", "node"))


SPEC = ActionSpec(
    name="kubernetes:sysdig",
    description="Captures system calls with the node's own sysdig and its modern eBPF driver, and sends "
    "`sysdig.scap.gz` to the output. With 256 MiB it ends before its time. Where there is no sysdig that works it is "
    "refused.",
    parameters=SysdigParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    # The furthest that `scope` allows.
    reach=Reach.NODE,
    continue_default=False,
    output=OutputUse.REQUIRED,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    # No Job is left, unlike with Talon.
    idempotent=True,
    blocking=True,
    # As Falco documents for its modern eBPF driver, which is the same; to end it.
    node_rights=("CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_BPF", "CAP_PERFMON", "CAP_KILL"),
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


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Capture it."""
    assert ctx.about is not None
    params: SysdigParameters = ctx.params
    try:
        container = reading.need(ctx)
        containers = ctx.host.pod_containers(container) if params.scope != "node" else ()
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    wanted = SyscallsWanted(
        about=ctx.about(),
        deadline_s=params.seconds + START_SECONDS,
        target=reading.target(ctx),
        containers=tuple(each[:12] for each in containers[:MAX_CONTAINERS]),
        seconds=params.seconds,
        snaplen=params.snaplen,
        bytes=MAX_BYTES,
    )
    outcome = await reading.take(ctx, wanted, [], DATA)
    if params.image in ("", DEFAULT_IMAGE):
        return outcome
    ignored = {"image": "no Job is created: the node's own sysdig was run"}
    return msgspec.structs.replace(outcome, details=outcome.details | {"ignored": ignored})


ACTION = Action(
    spec=SPEC,
    begin=reading.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: params.seconds + START_SECONDS + acting.ANSWER_SECONDS,
    lane="syscalls",
)
