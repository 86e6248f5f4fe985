"""What captures of a container and its pod share: they change nothing, stop nothing, and have lanes of their own.

`kubernetes:log`, `kubernetes:download`, `kubernetes:tcpdump`, `kubernetes:sysdig` and `evidence:pcap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from stoop.actions.container.init import hold_init
from stoop.actions.evidence import acting
from stoop.captures import Captured, Wanted
from stoop.errors import TargetGone
from stoop.node import ContainerFacts, HeldProcess
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Verdict,
)

MAX_TOLD = 256
"""Characters of a text from alert or rule that a record repeats."""


class Data(msgspec.Struct, frozen=True):
    """What of a bundle an output sends: the part's name in the bundle, and what Talon calls it."""

    part: str
    name: str


def begin(ctx: ActContext) -> Outcome | Begun:
    """Nothing yet: a worker does it, in the act's lane."""
    if ctx.container is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    return Begun(acted=False)


def need(ctx: ActContext) -> ContainerFacts:
    """The container of the act: `begin` has seen it. Raises TargetGone."""
    if ctx.container is None:
        raise TargetGone("no container was found for it")
    return ctx.container


def init_of(ctx: ActContext) -> HeldProcess:
    """The container's first process, held: the caller closes it. Raises TargetGone, TargetRefused."""
    container = need(ctx)
    held = hold_init(ctx, container)
    if held is None:
        raise TargetGone(f"the first process of container {container.container_id[:12]} has ended")
    return held


async def take(ctx: ActContext, wanted: Wanted, held: Sequence[HeldProcess], data: Data) -> Outcome:
    """Keep it in a bundle. `held`: processes that the capture is of; they stay the caller's."""
    hands = ctx.host.capture
    if hands is None:
        return Outcome(Verdict.REFUSED, acting.NOT_HERE)
    captured = await hands.take(wanted, [process.facts for process in held], need(ctx))
    if not captured.ok:
        return _failed(captured)
    missing = captured.details.get("missing", 0)
    reason = f"{missing} things are missing or cut: the bundle says which" if missing else ""
    part = f"{captured.details.get('folder', '')}{data.part}"  # a run's later captures have a folder in its bundle
    return Outcome(Verdict.DONE, reason, captured.details | {"data": {"part": part, "name": data.name}})


def _failed(captured: Captured) -> Outcome:
    verdict = Verdict.SKIPPED if captured.gone else Verdict.REFUSED if captured.refused else Verdict.FAILED
    return Outcome(verdict, captured.reason, captured.details)


def target(ctx: ActContext) -> dict[str, Any]:
    """Whom it is of, for the manifest."""
    return acting.told(ctx.host, None, ctx.container)
