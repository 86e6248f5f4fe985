"""evidence:snapshot: what there is to know of a process, a tree or a container, kept in a bundle before it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from stoop.actions.evidence import acting
from stoop.actions.evidence.bounds import duration, size
from stoop.captures import SnapshotWanted
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
from stoop.units import parse_duration, parse_size

MAX_FREEZE_NS = 5 * 10**9
"""Longer, and a liveness probe (10 s by default, three times) may come to see it."""

SNAPSHOT_SECONDS = 30.0
"""For all of it, on disk too: usually some 50 ms. A slow disk takes the executables at 2 MiB/s in that time."""

MAX_EXECUTABLES = 2**30
MAX_LOG = 64 * 2**20
"""Bytes: what is kept by many snapshots must not push out the rest."""

Scopes = Literal["process", "tree", "container"]


class SnapshotParameters(Parameters, frozen=True):
    """Of whom, and how much."""

    scope: Annotated[
        Scopes,
        Meta(
            description="`process`: the one process. `tree`: it and its descendants of that moment. `container`: every "
            "process of its container, with what changed in its files and the end of its log."
        ),
    ] = "process"
    freeze_for: Annotated[
        str,
        Meta(
            description="How long the target may stand still while what changes is read, at most 5s; it goes on as "
            "soon as that was read. `0`: it is not frozen, and what is read of it may not fit together."
        ),
    ] = "200ms"
    executables: Annotated[
        str,
        Meta(description="How much of the executables is kept, of all together, at most 1GiB. `0`: nothing."),
    ] = "64MiB"
    log: Annotated[str, Meta(description="How much of the end of the container's log, at most 64MiB.")] = "256KiB"
    changes: Annotated[
        bool, Meta(description="Whether to list what changed in the container's files (the overlay's upper directory).")
    ] = True

    @property
    def freeze_ns(self) -> int:
        """Nanoseconds."""
        return parse_duration(self.freeze_for)

    @property
    def executable_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.executables)

    @property
    def log_bytes(self) -> int:
        """Bytes."""
        return parse_size(self.log)


def check(params: SnapshotParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from duration("freeze_for", params.freeze_for, MAX_FREEZE_NS, "5s")
    yield from size("executables", params.executables, MAX_EXECUTABLES, "1GiB")
    yield from size("log", params.log, MAX_LOG, "64MiB")


SPEC = ActionSpec(
    name="evidence:snapshot",
    description="Keeps what there is to know of the target in a bundle: command lines, environment (what looks like a "
    "secret masked), memory maps, descriptors, sockets with their peers, namespaces, capabilities, cgroup values, the "
    "executables even when deleted, what changed in the files. The target stands still for a moment and goes on.",
    parameters=SnapshotParameters,
    check=check,
    target=TargetKind.PROCESS,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    # Nothing was changed: what else the rule says still makes sense, and more so.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid",),),
    idempotent=True,
    blocking=True,
    output=OutputUse.ALLOWED,
    # To read /proc/PID of another user's processes; to look into the runtime's and the kubelet's directories.
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
    example="""\
- action: Keep what there is to know
  actionner: evidence:snapshot
  parameters:
    scope: container
    freeze_for: 200ms
- rule: A binary that was not part of the image was executed
  match:
    rules: [Drop and execute new binary in container]
  actions:
    - action: Keep what there is to know
""",
)


def wanted(ctx: ActContext, params: SnapshotParameters, deadline_s: float = SNAPSHOT_SECONDS) -> SnapshotWanted:
    """What a snapshot with these parameters keeps, of the act in this context."""
    assert ctx.about is not None
    return SnapshotWanted(
        about=ctx.about(),
        deadline_s=deadline_s,
        target=acting.told(ctx.host, ctx.process.facts if ctx.process is not None else None, ctx.container),
        executable_bytes=params.executable_bytes,
        log_bytes=params.log_bytes,
        changes=params.changes,
    )


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Take it."""
    return await acting.take(ctx, wanted(ctx, ctx.params), ctx.params.scope, ctx.params.freeze_ns / 1e9)


ACTION = Action(
    spec=SPEC,
    begin=acting.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: SNAPSHOT_SECONDS + acting.ANSWER_SECONDS,
)
