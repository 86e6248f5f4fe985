"""kubernetes:download: keep a file of the container, read from outside it. It only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop import values
from stoop.actions.evidence import acting, reading
from stoop.actions.evidence.reading import Data
from stoop.actions.named import named
from stoop.captures import DownloadWanted
from stoop.errors import TargetError, TargetGone, TargetRefused
from stoop.printable import printable
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
from stoop.template import expand

MAX_FILE = 256 * 2**20
"""Bytes of the file: a hostile container could push all else out of the store by a few large ones. The rest is cut."""

BYTES_PER_SECOND = 8 * 2**20
"""What disks give and take at least, for the deadline."""

SECONDS = 30.0 + MAX_FILE / BYTES_PER_SECOND

PATH_BYTES = 4095
"""PATH_MAX of the kernel, less its NUL."""

PART = "file.bin"


class DownloadParameters(Parameters, frozen=True):
    """Which file."""

    file: Annotated[
        str,
        Meta(description="The file's path in the container. `${FD_NAME}` and the like stand for fields of the alert."),
    ]


def check(params: DownloadParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("file", params.file)


SPEC = ActionSpec(
    name="kubernetes:download",
    description="Keeps one regular file of the alert's container, on a volume too, by the name that the container has "
    "for it, and sends it to the output. What is longer than 256 MiB is cut.",
    parameters=DownloadParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    continue_default=True,
    output=OutputUse.REQUIRED,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    idempotent=True,
    blocking=True,
    # The root of another user's process; its files, whoever may read them.
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
    example="""\
- action: Keep the file
  actionner: kubernetes:download
  parameters:
    file: ${FD_NAME}
  output:
    target: local:file
    parameters:
      destination: /var/log/stoop/evidence
- rule: A binary directory was written to
  match:
    rules: [Write below binary dir]
  actions:
    - action: Keep the file
""",
)


def path_of(ctx: ActContext) -> str:
    """The path, with the alert's words in it. Raises TargetRefused."""
    path = ctx.params.file if ctx.alert is None else expand(ctx.params.file, ctx.alert)
    shown = printable(path[: reading.MAX_TOLD])
    if not path.startswith("/"):
        raise TargetRefused(f"{shown!r} is no path from the container's root")
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        raise TargetRefused(f"{shown!r} is no path: it holds a NUL, or has more than {PATH_BYTES} bytes")
    return path


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Copy it."""
    assert ctx.about is not None
    try:
        path = path_of(ctx)
        container = reading.need(ctx)
        facts = ctx.host.namespaces_of(container, named(ctx, container))
        held = reading.init_of(ctx)
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    wanted = DownloadWanted(
        about=ctx.about(),
        deadline_s=SECONDS,
        target=reading.target(ctx),
        path=path.encode("utf-8", "surrogateescape"),
        limit=MAX_FILE,
        host_mounts=(facts.host_mnt,) if facts.host_mnt else (),
    )
    try:
        outcome = await reading.take(ctx, wanted, [held], Data(PART, path))
    finally:
        held.close()
    told: dict[str, object] = {"file": printable(path[:PATH_BYTES])}
    if facts.elsewhere:  # it may know another file by this name
        told["process_elsewhere"] = list(facts.elsewhere)
    return msgspec.structs.replace(outcome, details=outcome.details | told)


ACTION = Action(
    spec=SPEC,
    begin=reading.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: SECONDS + acting.ANSWER_SECONDS,
    lane="download",
)
