"""The process that a container began with: what is protected about it protects the whole container."""

from __future__ import annotations

from collections.abc import Callable

from stoop.errors import TargetGone
from stoop.node import ContainerFacts, HeldProcess, NodeHost, ProcessFacts


def hold_init(host: NodeHost, container: ContainerFacts) -> HeldProcess | None:
    """The container's init, held; None when it has gone, or its number means another process by now."""
    try:
        init = host.hold(container.init_pid)
    except TargetGone:
        return None
    if init.facts.container_id == container.container_id:
        return init
    init.close()
    return None


def protected_init(host: NodeHost, protects: Callable[[ProcessFacts], str], container: ContainerFacts) -> str:
    """Why the container's init must not be touched; "" when it may be, and when it has gone. Raises TargetRefused."""
    init = hold_init(host, container)
    if init is None:
        return ""
    reason = protects(init.facts)
    init.close()
    return f"the container's init: {reason}" if reason else ""
