"""The process that a container began with: what is protected about it protects the whole container."""

from __future__ import annotations

from stoop.errors import TargetGone
from stoop.node import ContainerFacts, HeldProcess
from stoop.spec import (
    ActContext,
)


def hold_init(ctx: ActContext, container: ContainerFacts) -> HeldProcess | None:
    """The container's init, held; None when it has gone, or its number means another process by now.

    Often it is the alert's own process, which is held: that spares a second look, a tenth of a millisecond.
    """
    seen, wanted = ctx.process or ctx.seen, (container.init_pid, container.container_id)
    if seen is not None and (seen.facts.pid, seen.facts.container_id) == wanted and not seen.has_exited():
        return seen.again()
    try:
        init = ctx.host.hold(container.init_pid)
    except TargetGone:
        return None
    if init.facts.container_id == container.container_id:
        return init
    init.close()
    return None


def protected_init(ctx: ActContext, container: ContainerFacts) -> str:
    """Why the container's init must not be touched; "" when it may be, and when it has gone. Raises TargetRefused."""
    init = hold_init(ctx, container)
    if init is None:
        return ""
    reason = ctx.protects(init.facts)
    init.close()
    return f"the container's init: {reason}" if reason else ""
