"""container:kill: end every process of a container, and see that it is empty.

It destroys: what the container held in memory is lost. The kubelet or the runtime usually starts it again.
`process:kill` with `scope: container` is the same act.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import trio

from stoop.actions.container.init import hold_init
from stoop.errors import ActFailed, TargetGone, TargetRefused
from stoop.node import ContainerFacts, HeldProcess, NodeHost
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    Reach,
    Scope,
    TargetKind,
    Verdict,
)

AGAIN_SECONDS = 0.1
"""A container that is not empty by then is killed once more: an exec may have come in beside the first time. Usually it
is empty after 1 to 3 ms. Each further time comes after twice as long: what hangs in the kernel is not helped by it."""

SPEC = ActionSpec(
    name="container:kill",
    description="Kills every process of the container at once, with those that it started, and checks that it is "
    "empty. The pod stays; the kubelet or the runtime usually starts the container again.",
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    # The pod is still there: label it, isolate it.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    destroys=True,
    # The container killed is the one of the alert: one started anew has another id, or other processes.
    idempotent=True,
    node_rights=("CAP_KILL", "CAP_SYS_PTRACE"),
    example="""\
- action: Kill the container
  actionner: container:kill
- rule: A binary that was not part of the image was executed
  match:
    rules: [Drop and execute new binary in container]
  actions:
    - action: Kill the container
""",
)


@dataclass(slots=True)
class HeldContainer:
    """A container under way to its end, and its init, held. `close` it."""

    container: ContainerFacts
    init: HeldProcess | None

    def close(self) -> None:
        """Let go of the init. Idempotent."""
        if self.init is not None:
            self.init.close()


def begin_whole(ctx: ActContext, container: ContainerFacts) -> Outcome | Begun:
    """Kill a whole container: refused, skipped, failed, or begun (`verify_whole` goes on)."""
    if not container.members:
        return Outcome(Verdict.SKIPPED, "no process is left in the container")
    held = HeldContainer(container, None)
    try:
        held.init = hold_init(ctx, container)
        reason = ctx.protects(held.init.facts) if held.init is not None else ""
        if reason:
            held.close()
            return Outcome(Verdict.REFUSED, f"the container's init: {reason}")
        ctx.host.kill_container(container)
        if held.init is not None:
            held.init.signal(signal.SIGKILL)
    except TargetGone as error:
        held.close()
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetRefused as error:
        held.close()
        return Outcome(Verdict.REFUSED, error.reason)
    except ActFailed as error:
        held.close()
        return Outcome(Verdict.FAILED, error.reason)
    details: dict[str, Any] = {"container_id": container.container_id, "count": len(container.members)}
    return Begun((held,), details)


async def verify_whole(host: NodeHost, begun: Begun) -> Outcome:
    """Wait until the container is empty and its init (its pid namespace) is gone."""
    held: HeldContainer = begun.held[0]
    again = 0
    while True:
        with trio.move_on_after(AGAIN_SECONDS * 2**again) as scope:
            await host.wait_container_empty(held.container)
        if not scope.cancelled_caught:
            break
        again += 1
        try:
            host.kill_container(held.container)
        except TargetGone:
            break
    if held.init is not None:
        await held.init.wait_exited()
    held.close()
    return Outcome(Verdict.DONE, details=begun.details | ({"killed_again": again} if again else {}))


def overdue_whole(host: NodeHost, begun: Begun) -> Outcome:
    """What to say when the deadline passed first: who is left. It is watched on, so nothing is closed."""
    held: HeldContainer = begun.held[0]
    left = host.container_members(held.container)
    init = f", its init in state {held.init.state()}" if held.init is not None else ""
    return Outcome(Verdict.FAILED, f"killed, yet not empty: {len(left)} left{init}", begun.details)


def begin(ctx: ActContext) -> Outcome | Begun:
    """Kill the container that is held in the context."""
    if ctx.container is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    return begin_whole(ctx, ctx.container)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """As `verify_whole`."""
    return await verify_whole(ctx.host, begun)


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """As `overdue_whole`."""
    return overdue_whole(ctx.host, begun)


ACTION = Action(spec=SPEC, begin=begin, verify=verify, overdue=overdue)
