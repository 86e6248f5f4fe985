"""container:freeze: every process of a container stands still, until its time is over or somebody gives it back.

Nothing is lost: memory, files and connections stay as they are, for whoever looks. It is held by the kernel's freezer
(cgroup v2 `cgroup.freeze`; v1 `freezer.state`), which no process inside can leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import trio
from msgspec import Meta

from stoop.actions.container.init import protected_init
from stoop.actions.holding import DEFAULT_TTL, Ttl, check_ttl, ttl_ns
from stoop.node import ContainerFacts, NodeHost
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    ParameterFault,
    Parameters,
    Reach,
    Reversal,
    Scope,
    TargetKind,
    Verdict,
)

SHORTEST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.1
"""Pauses between looks whether all stand still; each is twice the one before. Usually they do after 0.1 ms."""


class FreezeParameters(Parameters, frozen=True):
    """What a rule may say about it."""

    ttl: Ttl = DEFAULT_TTL
    then: Annotated[
        Literal["thaw", "kill"],
        Meta(description="What is done when `ttl` is over: `thaw`, it goes on; `kill`, it is ended."),
    ] = "thaw"


def check(params: FreezeParameters) -> Iterator[ParameterFault]:
    """The time must be one, and there must be an end for something to happen at it."""
    yield from check_ttl(params.ttl)
    if params.then == "kill" and params.ttl.strip() == "0":
        yield ParameterFault("param-value", "then", "then: kill needs a ttl: with `ttl: 0` it never comes")


SPEC = ActionSpec(
    name="container:freeze",
    description="Freezes every process of the container where it stands, by the kernel's freezer. Nothing is lost and "
    "nothing runs on; after `ttl` it goes on, or is killed (after a "
    "snapshot, with `evidence_first`). The kubelet sees its probes fail meanwhile and may restart "
    "it: a liveness probe ends a freeze, after `periodSeconds` × `failureThreshold`.",
    parameters=FreezeParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    # Frozen is when evidence is gathered, and what is to follow still can.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    reversible=True,
    idempotent=True,
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"),
    example="""\
- action: Freeze the container
  actionner: container:freeze
  parameters:
    ttl: 30m
    then: thaw
- rule: A miner was started
  match:
    rules: [Detect crypto miners using the Stratum protocol]
  actions:
    - action: Freeze the container
""",
)


def plan(ctx: ActContext) -> Outcome | Reversal:
    """What thawing will need. What somebody else froze is not ours to thaw, so it is left to him."""
    container = ctx.container
    if container is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    if not container.members:
        return Outcome(Verdict.SKIPPED, "no process is left in the container")
    was_frozen = ctx.host.is_frozen(container) and not ctx.host.is_paused(container)
    state = {"container_id": container.container_id, "was_frozen": was_frozen, "then": ctx.params.then}
    then = "thawed" if ctx.params.then == "thaw" else "killed"
    return Reversal("frozen", ttl_ns(ctx.params.ttl), state, then)


def begin(ctx: ActContext) -> Outcome | Begun:
    """Turn the switch: some 20 µs, and at most 5 ms where it takes effect slowly."""
    container, reversal = ctx.container, ctx.reversal
    if container is None or reversal is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    if reversal.state["was_frozen"]:
        return Outcome(Verdict.SKIPPED, "it was frozen already, and not by Stoop: left to whoever did it")
    reason = protected_init(ctx, container)
    if reason:
        return Outcome(Verdict.REFUSED, reason)
    if not ctx.host.freeze(container, True) and ctx.host.is_frozen(container):
        return Outcome(Verdict.SKIPPED, "it is frozen already")
    return Begun(details={"container_id": container.container_id, "count": len(container.members)})


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Return once all of it stands still."""
    assert ctx.container is not None
    pause_s = SHORTEST_PAUSE_S
    while not ctx.host.is_frozen(ctx.container):
        if not ctx.host.container_members(ctx.container):
            return Outcome(Verdict.SKIPPED, "no process is left in the container")
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return Outcome(Verdict.DONE, details=begun.details)


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first: something hangs in the kernel, the rest stands still."""
    reason = "the switch is turned, yet not all of it stands still: something waits in the kernel (state D)"
    return Outcome(Verdict.FAILED, reason, begun.details)


async def undo(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """Thaw it."""
    container = host.find_container(state["container_id"])
    if host.freeze(container, False):
        return Outcome(Verdict.DONE, "thawed", {"count": len(container.members)})
    if not container.members:
        return Outcome(Verdict.SKIPPED, "no process is left in the container")
    return Outcome(Verdict.SKIPPED, "somebody else thawed it before")


async def at_end(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """Kill it where the rule said so, else thaw it."""
    if state["then"] != "kill":
        return await undo(host, state)
    container = host.find_container(state["container_id"])
    host.kill_container(container)
    host.freeze(container, False)  # v1: SIGKILL takes effect only now
    await host.wait_container_empty(container)
    details = {"container_id": container.container_id, "count": len(container.members)}
    return Outcome(Verdict.DONE, "killed, as the rule says", details)


def at_end_destroys(host: NodeHost, state: dict[str, Any]) -> ContainerFacts | None:
    """The container, where the rule said so. Raises TargetGone, TargetRefused."""
    return host.find_container(state["container_id"]) if state["then"] == "kill" else None


async def drift(host: NodeHost, state: dict[str, Any]) -> str:
    """Whether somebody thawed it."""
    container = host.find_container(state["container_id"])
    if not container.members:
        return "no process is left in the container"
    return "" if host.is_frozen(container) else "somebody thawed it: it runs"


ACTION = Action(
    spec=SPEC,
    begin=begin,
    verify=verify,
    overdue=overdue,
    plan=plan,
    undo=undo,
    at_end=at_end,
    at_end_destroys=at_end_destroys,
    drift=drift,
)
