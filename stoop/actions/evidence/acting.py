"""What `evidence:snapshot` and `evidence:memory` share: the capture in its lane, what its record says, the manifest."""

from __future__ import annotations

from typing import Any

from stoop.actions.evidence.standing import Standing, stand
from stoop.captures import Captured, Still, Wanted
from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.node import CaptureHands, ContainerFacts, NodeHost, ProcessFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)

ANSWER_SECONDS = 1.0
"""What an act gets beyond its capture's own deadline, to hear of it."""

NOT_HERE = "evidence can't be taken: its workers are not started yet"


def begin(ctx: ActContext) -> Outcome | Begun:
    """Nothing yet: whoever looks into what a target made may be held up there."""
    if ctx.process is None:
        return Outcome(Verdict.REFUSED, "no process is held")
    if ctx.process.has_exited():
        return Outcome(Verdict.SKIPPED, "already exited")
    return Begun(acted=False)


async def take(ctx: ActContext, wanted: Wanted, scope: str, freeze_s: float) -> Outcome:
    """Take it. The target goes on after `freeze_s` at the latest, whatever becomes of the capture."""
    hands = ctx.host.capture
    if hands is None:
        return Outcome(Verdict.REFUSED, NOT_HERE)
    try:
        standing = stand(ctx, scope, still=freeze_s > 0)
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    except ActFailed as error:
        return Outcome(Verdict.FAILED, error.reason)
    try:
        captured = await _captured(hands, wanted, standing, freeze_s)
    finally:
        standing.close()
    details = captured.details | {"scope": scope} | ({"not_frozen": standing.moves} if standing.moves else {})
    if captured.ok:
        missing = captured.details.get("missing", 0)
        return Outcome(
            Verdict.DONE, f"{missing} things are missing or cut: the bundle says which" * bool(missing), details
        )
    if ctx.process is not None and ctx.process.has_exited():
        return Outcome(Verdict.SKIPPED, "already exited", details)
    return Outcome(Verdict.FAILED, captured.reason, details)


async def _captured(hands: CaptureHands, wanted: Wanted, standing: Standing, freeze_s: float) -> Captured:
    still = Still(standing.thaw, freeze_s) if standing.is_ours else None
    return await hands.take(wanted, standing.processes, standing.container, still)


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first."""
    return Outcome(Verdict.FAILED, "the worker did not answer in time")


def told(host: NodeHost, process: ProcessFacts | None, container: ContainerFacts | None) -> dict[str, Any]:
    """Whom it is of, for the manifest: facts of the node's, no claims."""
    found: dict[str, Any] = {}
    if process is not None:
        found |= {"pid": process.pid, "birth": process.birth, "comm": process.comm, "exe": process.exe}
        found |= {"uid": process.uid, "identity": process.identity}
    known: ProcessFacts | ContainerFacts | None = container if container is not None else process
    if known is not None and known.container_id:
        found |= {"container_id": known.container_id}
        found |= host.pod_of(known.container_id, known.pod_uid).describe()
    return found
