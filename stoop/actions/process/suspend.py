"""process:suspend: stop a process, or it and its descendants (SIGSTOP), until its time is over.

A weaker hold than `container:freeze`: any process of the same user can send SIGCONT and undo it, which is noticed and
said. It is for processes that are in no container, or where the rest of the container must run on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import trio
from msgspec import Meta

from stoop.actions.holding import DEFAULT_TTL, Ttl, check_ttl, ttl_ns
from stoop.actions.process.group import MAX_GROUP, Group, belongs_to_tree, descendants_of
from stoop.errors import TargetError
from stoop.node import HeldProcess, NodeHost
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

STOPPED = frozenset("Tt")
"""States of a stopped process (proc(5))."""

SHORTEST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.1
"""Pauses between looks whether all stand still; each is twice the one before."""

MAX_TOLD = 64
"""Pids that a record names; the count tells of all."""


class SuspendParameters(Parameters, frozen=True):
    """What a rule may say about it."""

    scope: Annotated[
        Literal["process", "tree"],
        Meta(description="`process`: the one process, all its threads. `tree`: it and its descendants of that moment."),
    ] = "process"
    ttl: Ttl = DEFAULT_TTL


def check(params: SuspendParameters) -> Iterator[ParameterFault]:
    """The time must be one."""
    yield from check_ttl(params.ttl)


SPEC = ActionSpec(
    name="process:suspend",
    description="Stops the process that the alert names (SIGSTOP, through a pidfd), or it and its descendants; after "
    "`ttl` they go on. Any process of the same user can continue them, which is noticed within some 15 s and said: in "
    "a container, `container:freeze` holds better.",
    parameters=SuspendParameters,
    check=check,
    target=TargetKind.PROCESS,
    scope=Scope.NODE,
    reach=Reach.PROCESS,
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid",),),
    reversible=True,
    idempotent=True,
    node_rights=("CAP_KILL", "CAP_SYS_PTRACE"),
    example="""\
- action: Stop the process
  actionner: process:suspend
  parameters:
    scope: tree
    ttl: 15m
- rule: A reverse shell was started
  match:
    rules: [Redirect STDOUT/STDIN to Network Connection in Container]
  actions:
    - action: Stop the process
""",
)


def plan(ctx: ActContext) -> Outcome | Reversal:
    """Who it is. The pids of a tree are added as they are found."""
    if ctx.process is None:
        return Outcome(Verdict.REFUSED, "no process is held")
    if ctx.process.has_exited():
        return Outcome(Verdict.SKIPPED, "already exited")
    facts = ctx.process.facts
    state = {"scope": ctx.params.scope, "processes": [], "root": [facts.pid, facts.birth]}
    return Reversal(f"stopped {ctx.params.scope}", ttl_ns(ctx.params.ttl), state, "continued")


def begin(ctx: ActContext) -> Outcome | Begun:
    """Stop it, or all of its tree, until two looks agree."""
    process = ctx.process
    if process is None or ctx.keep is None:
        return Outcome(Verdict.REFUSED, "no process is held")
    if process.state() in STOPPED:
        return Outcome(Verdict.SKIPPED, "it is stopped already")
    if ctx.params.scope == "process":
        ctx.keep({"processes": [[process.facts.pid, process.facts.birth]]})
        if not process.signal(signal.SIGSTOP):
            return Outcome(Verdict.SKIPPED, "already exited")
        return Begun(details={"scope": "process", "count": 1})
    return _tree(ctx, process, ctx.keep)


def _tree(ctx: ActContext, process: HeldProcess, keep: Callable[[dict[str, Any]], None]) -> Outcome | Begun:
    group = Group(ctx, process, belongs_to_tree, resumes=True)
    kept = False
    try:
        group.gather(lambda found: descendants_of(ctx.host, found), "")
        keep({"processes": [[held.facts.pid, held.facts.birth] for held in group.stopped]})
        kept = True
    finally:
        if not kept:
            group.resume()
            group.close()
    details: dict[str, Any] = {"scope": "tree", "count": len(group.stopped)}
    details["pids"] = sorted(held.facts.pid for held in group.stopped)[:MAX_TOLD]
    if group.spared:
        details["spared"] = [{"pid": pid, "reason": why} for pid, why in group.spared.items()][:MAX_TOLD]
    if group.full:
        details["incomplete"] = f"more than {MAX_GROUP} processes: only so many were stopped (use container:freeze)"
    elif not group.settled:
        details["unsettled"] = "not all stood still in time: one that was just being started may run"
    return Begun(group.extra, details)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Return once each stands still, or has ended."""
    assert ctx.process is not None
    watched = (ctx.process, *begun.held)
    pause_s = SHORTEST_PAUSE_S
    while any(held.state() not in STOPPED | {"X", "Z"} for held in watched):
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    for held in begun.held:
        held.close()
    incomplete = begun.details.get("incomplete", "")
    return Outcome(Verdict.FAILED if incomplete else Verdict.DONE, incomplete, begun.details)


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first: who does not stand still, in which state (proc(5))."""
    assert ctx.process is not None
    states = [(held.facts.pid, held.state()) for held in (ctx.process, *begun.held)]
    moving = ", ".join(f"pid {pid} state {state}" for pid, state in states if state not in STOPPED)
    return Outcome(Verdict.FAILED, f"signalled, not all stand still: {moving}", begun.details)


async def undo(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """Continue those that were stopped here and still are."""
    continued = left = 0
    for held in _still_there(host, state):
        try:
            if held.state() in STOPPED:
                continued += held.signal(signal.SIGCONT)
            else:
                left += 1
        finally:
            held.close()
    if continued:
        return Outcome(Verdict.DONE, f"{continued} continued", {"count": continued})
    return Outcome(Verdict.SKIPPED, "somebody else continued it before" if left else "already exited")


async def drift(host: NodeHost, state: dict[str, Any]) -> str:
    """Whether somebody continued one of them."""
    running = []
    there = 0
    for held in _still_there(host, state):
        there += 1
        if held.state() not in STOPPED:
            running.append(str(held.facts.pid))
        held.close()
    if running:
        return f"somebody continued pid {', '.join(running[:MAX_TOLD])} (SIGCONT): it runs"
    return "" if there else "all of it has exited"


def _still_there(host: NodeHost, state: dict[str, Any]) -> Iterator[HeldProcess]:
    """Those of the processes that still are who they were, held; the caller closes each."""
    for pid, birth in state["processes"] or _from_root(host, *state["root"]):
        try:
            held = host.hold(pid)
        except TargetError:
            continue
        if held.facts.birth == birth:
            yield held
        else:
            held.close()


def _from_root(host: NodeHost, root: int, birth: int) -> list[tuple[int, int]]:
    """The agent was killed while it gathered a tree: whoever is in it now, those that stood before included."""
    found = []
    for pid in (root, *host.descendants(root)):
        try:
            held = host.hold(pid)
        except TargetError:
            continue
        held.close()
        if pid == root and held.facts.birth != birth:
            return []
        found.append((pid, held.facts.birth))
    return found


ACTION = Action(spec=SPEC, begin=begin, verify=verify, overdue=overdue, plan=plan, undo=undo, drift=drift)
