"""process:kill: send a signal to the process that an alert names, or to its tree, its exec session, its container.

It destroys: what the process held in memory is lost.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import trio
from msgspec import Meta

from stoop.actions.container.kill import HeldContainer, begin_whole, overdue_whole, verify_whole
from stoop.actions.process.group import Group, belongs_to_tree, descendants_of, frozen
from stoop.actions.process.sweep import SWEEP_SECONDS, Sweep
from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.node import ContainerFacts, HeldProcess, ProcessFacts
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
    Verdict,
)

SIGNAL_MAX = 64
"""The largest signal number (signal(7): SIGRTMAX)."""

FROZEN_SECONDS = 0.02
"""One that has not ended by then may be frozen; usually it ends within 1 ms."""

THAWED_SECONDS = 0.1
"""How long a container is thawed at most so that one in it can die; usually some ms."""

MAX_PIDS_TOLD = 64
"""Pids that a record names; the count tells of all."""

_ENDING = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# Signals that are sent to end a process, so the act is done when it has ended. For others (HUP: read your files anew,
# STOP, USR1) being delivered is all that can be asked.

_NAMES: dict[str, int] = {name.removeprefix("SIG"): known.value for name, known in signal.Signals.__members__.items()}

ORPHANS = "descendants whose parent had ended before the act can't be found (scope: container reaches them)"

Scopes = Literal["process", "tree", "session", "container"]


class KillParameters(Parameters, frozen=True):
    """Which signal, to whom."""

    signal: Annotated[
        str | int,
        Meta(description="A name with or without SIG (`KILL`, `SIGTERM`) or a number from 1 to 64."),
    ] = "KILL"
    scope: Annotated[
        Scopes,
        Meta(
            description="`process`: the one process, all its threads. `tree`: it and its descendants of that moment. "
            "`session`: the one exec (`kubectl exec`, `docker exec`) that it belongs to, never the container's own "
            "processes. `container`: every process of its container."
        ),
    ] = "process"


def signal_number(given: str | int) -> int | None:
    """The number of a signal by its name or number; None for what is none."""
    if isinstance(given, str):
        name = given.strip().upper().removeprefix("SIG")
        if not (name.isascii() and name.isdigit()):
            return _NAMES.get(name)
        given = int(name) if len(name) <= len(str(SIGNAL_MAX)) else 0
    return given if 1 <= given <= SIGNAL_MAX else None


def check(params: KillParameters) -> Iterator[ParameterFault]:
    """The signal must be one."""
    if signal_number(params.signal) is None:
        near = difflib.get_close_matches(str(params.signal).upper().removeprefix("SIG"), _NAMES, n=1)
        instead = f"did you mean {near[0]}?" if near else f"a name such as KILL or TERM, or a number to {SIGNAL_MAX}"
        yield ParameterFault("param-value", "signal", f"signal {params.signal!r} does not exist: {instead}")


SPEC = ActionSpec(
    name="process:kill",
    description="Sends a signal to the process that the alert names, through a pidfd, after proving that it is the one "
    "meant; or to its tree, its exec session, its container. Done when it is seen to have ended.",
    parameters=KillParameters,
    check=check,
    target=TargetKind.PROCESS,
    scope=Scope.NODE,
    reach=Reach.PROCESS,
    # The pod is still there: what else the rule says (label it, isolate it, gather evidence) still makes sense.
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid",),),
    destroys=True,
    # A process dies once: the second time it has exited already. Every other signal it may count.
    idempotent=True,
    idempotent_with=lambda params: signal_number(params.signal) == signal.SIGKILL,
    node_rights=("CAP_KILL", "CAP_SYS_PTRACE"),
    example="""\
- action: Kill the process
  actionner: process:kill
  parameters:
    signal: KILL
    scope: tree
- rule: A shell was started in a container
  match:
    rules: [Terminal shell in container]
    output_fields: ["k8s.ns.name!=kube-system"]
  actions:
    - action: Kill the process
""",
)


# ---------------------------------------------------------------- begin


def begin(ctx: ActContext) -> Outcome | Begun:
    """Send the signal. Synchronous: about 10 µs for one process, some 100 µs for each more of a tree or session."""
    process, params = ctx.process, ctx.params
    signo = signal_number(params.signal)
    if process is None or signo is None:
        return Outcome(Verdict.REFUSED, "no process is held" if process is None else f"no signal {params.signal!r}")
    try:
        if params.scope == "process":
            return _one(process, signo)
        if params.scope == "container":
            return _container(ctx, process, signo)
        return _several(ctx, process, signo)
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    except ActFailed as error:
        return Outcome(Verdict.FAILED, error.reason)


def _one(process: HeldProcess, signo: int) -> Outcome | Begun:
    if not process.signal(signo):
        return Outcome(Verdict.SKIPPED, "already exited")
    details = {"signal": _name(signo), "scope": "process", "count": 1}
    return Begun(details=details) if signo in _ENDING else _delivered(details)


def _container(ctx: ActContext, process: HeldProcess, signo: int) -> Outcome | Begun:
    container = _find(ctx, process.facts)
    if container is None:
        return Outcome(Verdict.REFUSED, "it is in no container")
    reason = ctx.protects_container(container)
    if reason:
        return Outcome(Verdict.REFUSED, reason)
    if signo != signal.SIGKILL:
        return _gathered(ctx, process, signo, container)
    begun = begin_whole(ctx, container)
    if isinstance(begun, Outcome):
        return begun
    return Begun(begun.held, {"signal": "KILL", "scope": "container"} | begun.details)


def _several(ctx: ActContext, process: HeldProcess, signo: int) -> Outcome | Begun:
    if process.has_exited():
        return Outcome(Verdict.SKIPPED, "already exited")
    if ctx.params.scope == "session":
        ctx.host.session_entry(process.facts)  # refuses before anything is stopped
    try:
        container = _find(ctx, process.facts)
    except TargetError:
        container = None  # each process is stopped by itself then
    return _gathered(ctx, process, signo, container)


def _gathered(ctx: ActContext, process: HeldProcess, signo: int, container: ContainerFacts | None) -> Outcome | Begun:
    """Gather them, signal each, and keep hold of those whose end is to be seen."""
    belongs = belongs_to_tree if ctx.params.scope == "tree" else _is_in_container
    group = Group(ctx, process, belongs, resumes=signo != signal.SIGKILL)
    begun: Begun | None = None
    count = 0
    try:
        with ExitStack() as stillness:
            still = stillness.enter_context(frozen(ctx.host, container))
            try:
                group.gather(_scan(ctx, container), container.container_id if still and container else "")
                if (group.full or group.late) and signo == signal.SIGKILL and ctx.params.scope == "tree":
                    sweep = Sweep(ctx.host, group, container if still else None, stillness.pop_all().close)
                    begun = Begun((sweep,), acted=False, deadline_s=SWEEP_SECONDS)
                    return begun
                count = group.send(signo)
            finally:
                if begun is None and not (count and signo == signal.SIGSTOP):
                    group.resume()
        details = _details(ctx.params.scope, signo, group, count)
        if signo not in _ENDING:
            return _delivered(details)
        begun = Begun(group.extra, details)
        return begun
    finally:
        if begun is None:
            group.close()


def _scan(ctx: ActContext, container: ContainerFacts | None) -> Callable[[Group], Sequence[int]]:
    """How to find the processes of a scope. Called again and again."""
    host = ctx.host
    if ctx.params.scope == "session":
        return lambda group: host.session_entry(group.root.facts)[1]
    if container is not None and ctx.params.scope == "container":
        return lambda group: host.container_members(container)
    return lambda group: descendants_of(host, group)


def _is_in_container(facts: ProcessFacts, group: Group) -> bool:
    return facts.container_id == group.root.facts.container_id


def _find(ctx: ActContext, facts: ProcessFacts) -> ContainerFacts | None:
    return ctx.host.find_container(facts.container_id) if facts.container_id else None


def _details(scope: str, signo: int, group: Group, count: int) -> dict[str, Any]:
    told: dict[str, Any] = {"signal": _name(signo), "scope": scope, "count": count}
    told["pids"] = sorted(group.members)[:MAX_PIDS_TOLD]
    if group.spared:
        told["spared"] = [{"pid": pid, "reason": why} for pid, why in group.spared.items()][:MAX_PIDS_TOLD]
    if group.lost:
        told["lost"] = len(group.lost)
    if scope == "tree":
        told["note"] = ORPHANS
    if group.full:
        told["incomplete"] = f"more than {group.most} processes: only so many got the signal (use scope: container)"
    elif not group.settled:
        told["unsettled"] = "not all stood still in time: one that was just being started may have been missed"
    return told


def _delivered(details: dict[str, Any]) -> Outcome:
    if "incomplete" in details:
        return Outcome(Verdict.FAILED, details["incomplete"], details)
    return Outcome(Verdict.DONE, "delivered", details)


def _name(signo: int) -> str:
    known = signo in _NAMES.values()
    return signal.Signals(signo).name.removeprefix("SIG") if known else str(signo)


# ---------------------------------------------------------------- verify


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Wait until each has ended. When it is cancelled it closes nothing: it may be called again."""
    if _is_whole(begun):
        return await verify_whole(ctx.host, begun)
    watched, details, sweep = _watched(ctx, begun), begun.details, _sweep(begun)
    if sweep is not None:
        await sweep.run()
        watched = tuple(sweep.group.members.values())
        details = _details("tree", signal.SIGKILL, sweep.group, sweep.count)
    for held in watched:
        with trio.move_on_after(FROZEN_SECONDS):
            await held.wait_exited()
        if not held.has_exited():
            await _let_die(ctx, held)
    for held in begun.held:
        held.close()
    incomplete = details.get("incomplete", "")
    return Outcome(Verdict.FAILED if incomplete else Verdict.DONE, incomplete, details)


async def _let_die(ctx: ActContext, held: HeldProcess) -> None:
    """Wait until it has ended. In a container that v1's freezer holds, it is thawed for that, and frozen again."""
    container = _find(ctx, held.facts)
    moment = container is not None and ctx.host.is_paused(container)  # whoever looks at it can do without
    thawed = container is not None and ctx.host.holds_signals(container) and ctx.host.freeze(container, False)
    if not thawed:
        await held.wait_exited()
        return
    assert container is not None
    try:
        with trio.move_on_after(THAWED_SECONDS):
            await held.wait_exited()
    finally:
        if not moment:
            ctx.host.freeze(container, True)
    await held.wait_exited()


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first: who lives on, in which state (proc(5))."""
    if _is_whole(begun):
        return overdue_whole(ctx.host, begun)
    if sweep := _sweep(begun):
        details = _details("tree", signal.SIGKILL, sweep.group, sweep.count)
        reason = f"a tree of {len(sweep.group.members)} and more: {sweep.alive()} of these were not dead in time"
        return Outcome(Verdict.FAILED, f"{reason}; those that are held are killed now", details)
    watched = _watched(ctx, begun)
    alive = [(held.facts.pid, held.state()) for held in watched if not held.has_exited()]
    states = ", ".join(f"pid {pid} state {state}" for pid, state in alive[:MAX_PIDS_TOLD])
    if len(watched) == 1:
        return Outcome(Verdict.FAILED, f"signalled, state {alive[0][1] if alive else 'X'}", begun.details)
    return Outcome(Verdict.FAILED, f"signalled, {len(alive)} of {len(watched)} live on: {states}", begun.details)


def _is_whole(begun: Begun) -> bool:
    return bool(begun.held) and isinstance(begun.held[0], HeldContainer)


def _sweep(begun: Begun) -> Sweep | None:
    return begun.held[0] if begun.held and isinstance(begun.held[0], Sweep) else None


def _watched(ctx: ActContext, begun: Begun) -> tuple[HeldProcess, ...]:
    return (ctx.process, *begun.held) if ctx.process is not None else begun.held


ACTION = Action(spec=SPEC, begin=begin, verify=verify, overdue=overdue)
