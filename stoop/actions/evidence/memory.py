"""evidence:memory: what processes have in memory, by kind of region, kept in a bundle before it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, field

from stoop import values
from stoop.actions.evidence import acting
from stoop.actions.evidence.bounds import size
from stoop.captures import MemoryWanted
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

REGIONS = ("unbacked", "heap", "stack", "data", "anonymous", "shared", "code", "file")
"""Kinds of regions (`agent.work.memory.KINDS` has the same, and says what each is)."""

DEFAULT_REGIONS = ("unbacked", "heap", "stack", "data", "anonymous")
"""What no file has: injected code first, which is what one looks for."""

BYTES_PER_SECOND = 16 * 2**20
"""What a disk takes at least, for the deadline."""

SHORTEST_SECONDS, LONGEST_SECONDS = 30.0, 600.0
"""Deadlines of small and of large images: other acts on the same process wait so long at most."""

MAX_MEMORY = 64 * 2**30
"""Bytes: the store's own bound of a bundle comes first."""

Scopes = Literal["process", "tree", "container"]


class MemoryParameters(Parameters, frozen=True):
    """Of whom, what, and how much."""

    scope: Annotated[
        Scopes,
        Meta(
            description="`process`: the one process. `tree`: it and its descendants of that moment. `container`: every "
            "process of its container."
        ),
    ] = "process"
    regions: Annotated[
        list[str],
        Meta(
            description="Kinds of regions, the most important first. `unbacked`: executable memory that no file on "
            "disk backs (injected code, memfd, deleted files). `heap`, `stack`. `data`: writable private mappings of "
            "files. `anonymous`: what belongs to no file. `shared`, `code`, `file`: other mappings. Only pages "
            "that are in memory are read. Default: unbacked, heap, stack, data, anonymous."
        ),
    ] = field(default_factory=list)
    max_bytes: Annotated[
        str, Meta(description="How much is kept, of all processes together, before it is compressed, at most 64GiB.")
    ] = "256MiB"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds wanted, in order."""
        return tuple(self.regions) or DEFAULT_REGIONS

    @property
    def bytes(self) -> int:
        """Of all processes together."""
        return parse_size(self.max_bytes)


def check(params: MemoryParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    for region in params.regions:
        yield from values.given("regions", region)
        yield from values.choice("regions", region, REGIONS)
    yield from size("max_bytes", params.max_bytes, MAX_MEMORY, "64GiB", least=4096)


SPEC = ActionSpec(
    name="evidence:memory",
    description="Keeps what the target has in memory in a bundle: the regions that are wanted, only pages that are "
    "there, up to a bound. It holds secrets, as memory does: only root can read the bundle.",
    parameters=MemoryParameters,
    check=check,
    target=TargetKind.PROCESS,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    # Nothing was changed.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid",),),
    idempotent=True,
    blocking=True,
    output=OutputUse.ALLOWED,
    # /proc/PID/mem belongs to the process's user, mode 0600.
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
    example="""\
- action: Keep its memory
  actionner: evidence:memory
  parameters:
    regions: [unbacked, heap, stack]
    max_bytes: 128MiB
- rule: Code was run from memory
  match:
    rules: [Fileless execution via memfd_create]
  actions:
    - action: Keep its memory
""",
)


def seconds(params: MemoryParameters) -> float:
    """How long an image with these parameters may take."""
    return min(SHORTEST_SECONDS + params.bytes / BYTES_PER_SECOND, LONGEST_SECONDS)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Take it. The target runs on: to read its memory takes seconds."""
    params, process = ctx.params, ctx.process
    assert ctx.about is not None
    wanted = MemoryWanted(
        about=ctx.about(),
        deadline_s=seconds(params),
        target=acting.told(ctx.host, process.facts if process is not None else None, None),
        regions=params.kinds,
        bytes=params.bytes,
    )
    return await acting.take(ctx, wanted, params.scope, 0.0)


ACTION = Action(
    spec=SPEC,
    begin=acting.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: seconds(params) + acting.ANSWER_SECONDS,
)
