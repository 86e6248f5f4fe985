"""The process that an alert names, beside the container that an act is about: only to tell where it sits."""

from __future__ import annotations

from stoop.errors import TargetError
from stoop.node import ContainerFacts, ProcessFacts
from stoop.spec import (
    ActContext,
)


def named(ctx: ActContext, container: ContainerFacts) -> ProcessFacts | None:
    """The process that the alert names, if it is in the container now: only to tell where it sits. None: not known."""
    pid = ctx.fields.get("proc.pid")
    if isinstance(pid, bool) or not isinstance(pid, int):
        return None
    try:
        held = ctx.host.hold(pid)
    except TargetError:
        return None
    held.close()
    return held.facts if held.facts.container_id == container.container_id else None
