"""container:limit: less CPU, fewer processes, less memory and slower disks for a container, until its time is over.

It clamps what the container may use instead of stopping it: a miner that may use a tenth of a core harms nobody, and
runs on to be looked at. A limit that is tighter already stays as it is. Old values come back with the undo; one that
somebody changed meanwhile (the kubelet, systemd) is left to him, and said.

Files: cgroup-v2.rst (`cpu.max`, `pids.max`, `memory.high`, `io.max`), sched-bwc.rst, cgroup-v1/pids.rst and
cgroup-v1/blkio-controller.rst of the kernel. Memory has no limit in v1 that only slows: it would be killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from stoop import values
from stoop.actions.container.init import protected_init
from stoop.actions.container.limit_values import Change, Limits, is_tighter, now_of, parse_cores, wanted
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
from stoop.units import parse_size

MEMORY_NEEDS_V2 = (
    "memory can be limited by cgroup v2 only (memory.high): under v1's limit it would be killed; leave memory out"
)


class LimitParameters(Parameters, frozen=True):
    """What a rule may say about it. At least one limit must be given."""

    cpu: Annotated[
        str, Meta(description="CPU for all its processes together: cores, such as `0.1`, `100m`, `10%`.")
    ] = ""
    pids: Annotated[int, Meta(description="Processes and threads; those that are there stay, new ones fail.")] = 0
    memory: Annotated[
        str,
        Meta(description="Above it the container is slowed down and its memory taken back: `64MiB`. cgroup v2 only."),
    ] = ""
    io: Annotated[str, Meta(description="Bytes a second, reading and writing each, on every disk: `1MiB`.")] = ""
    ttl: Ttl = DEFAULT_TTL


def check(params: LimitParameters) -> Iterator[ParameterFault]:
    """Each must be an amount, and one must be there."""
    yield from check_ttl(params.ttl)
    if params.pids < 0:
        yield from values.number("pids", params.pids, 1)
    for name, text, parse in (
        ("cpu", params.cpu, parse_cores),
        ("memory", params.memory, parse_size),
        ("io", params.io, parse_size),
    ):
        try:
            if text and not parse(text):
                yield ParameterFault(
                    "param-value", name, f"{name}: {text!r} is nothing at all: leave it out for no limit"
                )
        except ValueError as error:
            yield ParameterFault("param-value", name, f"{name}: {error}")
    if not (params.cpu or params.pids or params.memory or params.io):
        yield ParameterFault("param-required", "cpu", "nothing is limited: give at least one of cpu, pids, memory, io")


SPEC = ActionSpec(
    name="container:limit",
    description="Lowers what the container may use, by its cgroup: CPU, number of processes, memory (cgroup v2), disk "
    "bandwidth. Limits that are tighter already stay. After `ttl` the old values come back; what the kubelet or "
    "systemd set meanwhile is left to them.",
    parameters=LimitParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    reversible=True,
    idempotent=True,
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"),
    example="""\
- action: Clamp the container
  actionner: container:limit
  parameters:
    cpu: 10%
    pids: 64
    ttl: 2h
- rule: A miner was started
  match:
    rules: [Detect outbound connections to common miner pool ports]
  actions:
    - action: Clamp the container
""",
)


class _Found(NamedTuple):
    changes: list[Change]
    kept: list[str]  # files that are tighter already


def plan(ctx: ActContext) -> Outcome | Reversal:
    """Read the values of now; what is tighter already is left out."""
    container = ctx.container
    if container is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    if not container.members:
        return Outcome(Verdict.SKIPPED, "no process is left in the container")
    v2 = ctx.host.has_control(container, "", "cpu.max")
    if ctx.params.memory and not v2:
        return Outcome(Verdict.REFUSED, MEMORY_NEEDS_V2)
    found = _look(ctx.host, container, ctx.params, v2)
    if not found.changes:
        return Outcome(Verdict.SKIPPED, f"it is limited more already: {', '.join(found.kept)}")
    state = {
        "container_id": container.container_id,
        "changes": [msgspec.structs.asdict(change) for change in found.changes],
        "tighter": found.kept,
    }
    key = "limits " + " ".join(sorted({change.file for change in found.changes}))
    return Reversal(key, ttl_ns(ctx.params.ttl), state, "old limits again")


def _look(host: NodeHost, container: ContainerFacts, params: LimitParameters, v2: bool) -> _Found:
    limits = Limits(
        parse_cores(params.cpu) if params.cpu else 0,
        params.pids,
        parse_size(params.memory) if params.memory else 0,
        parse_size(params.io) if params.io else 0,
    )
    found = _Found([], [])
    for change in wanted(limits, v2=v2, devices=host.block_devices() if params.io else ()):
        now = now_of(change, host.read_control(container, change.controller, change.file))
        if is_tighter(change, now):
            found.kept.append(f"{change.file} {change.line(now)}")
        else:
            found.changes.append(msgspec.structs.replace(change, old=now))
    return found


def begin(ctx: ActContext) -> Outcome | Begun:
    """Write each; some 10 µs a file."""
    container, reversal = ctx.container, ctx.reversal
    if container is None or reversal is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    reason = protected_init(ctx, container)
    if reason:
        return Outcome(Verdict.REFUSED, reason)
    changes = _changes(reversal.state)
    for change in changes:
        ctx.host.write_control(container, change.controller, change.file, change.line(change.new))
    told = {f"{change.file} {change.device}".strip(): [change.old, change.new] for change in changes}
    return Begun(details={"container_id": container.container_id, "limits": told, "tighter": reversal.state["tighter"]})


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Read them again."""
    assert ctx.container is not None
    assert ctx.reversal is not None
    other = _differing(ctx.host, ctx.container, _changes(ctx.reversal.state))
    if other:
        return Outcome(Verdict.FAILED, f"written, but it reads otherwise: {'; '.join(other)}", begun.details)
    return Outcome(Verdict.DONE, details=begun.details)


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """Reading some control files does not take that long."""
    return Outcome(Verdict.FAILED, "written, but it could not be read again in time", begun.details)


async def undo(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """The old values again, where ours still are."""
    container = host.find_container(state["container_id"])
    given_back, left = [], []
    for change in _changes(state):
        now = now_of(change, host.read_control(container, change.controller, change.file))
        if now != change.new:
            left.append(f"{change.file} is {change.line(now)}")
        else:
            host.write_control(container, change.controller, change.file, change.line(change.old))
            given_back.append(f"{change.file} {change.line(change.old)}")
    theirs = f"; changed by somebody else and left: {', '.join(left)}" if left else ""
    if given_back:
        return Outcome(Verdict.DONE, ", ".join(given_back) + theirs)
    return Outcome(Verdict.SKIPPED, theirs.removeprefix("; "))


async def drift(host: NodeHost, state: dict[str, Any]) -> str:
    """Whether the kubelet, systemd or a person set other limits."""
    return "; ".join(_differing(host, host.find_container(state["container_id"]), _changes(state)))


def _differing(host: NodeHost, container: ContainerFacts, changes: list[Change]) -> list[str]:
    found = []
    for change in changes:
        now = now_of(change, host.read_control(container, change.controller, change.file))
        if now != change.new:
            found.append(f"{change.file} is {change.line(now)}, not {change.line(change.new)}")
    return found


def _changes(state: dict[str, Any]) -> list[Change]:
    return msgspec.convert(state["changes"], list[Change])


ACTION = Action(spec=SPEC, begin=begin, verify=verify, overdue=overdue, plan=plan, undo=undo, drift=drift)
