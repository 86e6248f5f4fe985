"""kubernetes:log: the last lines of the pod's log, out of the kubelet's files on the node. It only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from stoop import values
from stoop.actions.evidence import acting, reading
from stoop.actions.evidence.reading import Data
from stoop.captures import LogWanted
from stoop.errors import TargetError
from stoop.pods import PodFacts
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

DEFAULT_LINES = 20

LOG_SECONDS = 30.0
"""For all of it: usually some 30 ms. A disk that is busy, and packed files of 256 MiB, take their time."""

DATA = Data("log.txt", "log")

TELL_BYTES = 16 * 1024
"""Of the text in the record: with escapes, quotes and all else that is in it a record must stay below 64 KiB."""


class LogParameters(Parameters, frozen=True):
    """How much of the log."""

    tail_lines: Annotated[int, Meta(description="How many of the last lines. 0 means 20.")] = DEFAULT_LINES


def check(params: LogParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.number("tail_lines", params.tail_lines, 0)


SPEC = ActionSpec(
    name="kubernetes:log",
    description="Keeps the last log lines of the alert's container, or, where that has none, of the pod's first one "
    "that has any: out of the kubelet's files, rotated ones and those of earlier instances too. Without an output the "
    "last 16 KiB also go to the record of the act.",
    parameters=LogParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.POD,
    continue_default=True,
    output=OutputUse.ALLOWED,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    idempotent=True,
    blocking=True,
    example="""\
- action: Keep the log
  actionner: kubernetes:log
  parameters:
    tail_lines: 200
  output:
    target: aws:s3
    parameters:
      bucket: evidence
      prefix: logs
- rule: A sensitive file was read
  match:
    rules: [Read sensitive file untrusted]
  actions:
    - action: Keep the log
""",
)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Read it."""
    assert ctx.about is not None
    try:
        container = reading.need(ctx)
    except TargetError as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    pod = ctx.host.pod_of(container.container_id, container.pod_uid)
    if unknown := _unknown(pod):
        return Outcome(Verdict.REFUSED, unknown)
    wanted = LogWanted(
        about=ctx.about(),
        deadline_s=LOG_SECONDS,
        target=reading.target(ctx),
        lines=ctx.params.tail_lines or DEFAULT_LINES,
        tell=0 if ctx.has_output else TELL_BYTES,
    )
    outcome = await reading.take(ctx, wanted, [], DATA)
    details = dict(outcome.details)
    text = details.pop("text", b"")
    return msgspec.structs.replace(outcome, details=details | shown(text) if text else details)


def shown(text: bytes) -> dict[str, object]:
    """The end of a log as a record has it: lines without anything that moves a cursor, hides or reorders text. Pure."""
    lines: list[str] = []
    left = TELL_BYTES
    found = text.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n")
    for line in reversed(found):
        safe = printable(line).encode()
        if len(safe) >= left and lines:
            break
        lines.append(safe[-left:].decode("utf-8", "ignore"))
        left -= len(safe) + 1
        if left <= 0:
            break
    cut = left < 0 or len(lines) < len(found) or len(text) >= TELL_BYTES
    return {"log": lines[::-1]} | ({"log_cut": True} if cut else {})


def _unknown(pod: PodFacts) -> str:
    """Why the kubelet's files can't be found, "" when they can."""
    names = {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid, "container name": pod.container}
    missing = [what for what, told in names.items() if not told.value]
    if pod.in_pod is False:
        return "its container is in no pod: the kubelet has no log of it"
    return f"the node does not tell its {', '.join(missing)}: {pod.why or 'no log is found'}" if missing else ""


ACTION = Action(
    spec=SPEC,
    begin=reading.begin,
    verify=verify,
    overdue=acting.overdue,
    deadline_s=lambda params: LOG_SECONDS + acting.ANSWER_SECONDS,
    lane="log",
)
