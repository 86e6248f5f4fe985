"""What `network:isolate` and `network:block` share: on whom, the act in its lane, the undo, who changed it since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stoop.actions.holding import ttl_ns
from stoop.actions.named import named
from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.network import Applied, UndoReport
from stoop.node import NetworkHands, NodeHost
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Reversal,
    Verdict,
)

NOT_HERE = "the network of pods can't be acted on here: {}"

MAX_TOLD = 8
"""Lines of what is weaker than meant, or was changed, that a reason holds; the record's details have all."""


def plan_of(ctx: ActContext, key: str) -> Outcome | Reversal:
    """Whose network it is. The host's own is refused, and one that other pods share."""
    if ctx.container is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    facts = ctx.host.namespaces_of(ctx.container)
    if facts.on_host_network:
        return Outcome(Verdict.REFUSED, "it is on the node's own network (hostNetwork): that is never cut off")
    if facts.shared_with:
        others = ", ".join(container[:12] for container in facts.shared_with[:MAX_TOLD])
        return Outcome(Verdict.REFUSED, f"other pods share its network namespace: {others}")
    state = {"act": ctx.act, "netns": facts.pod_net, "pid": facts.holder_pid}
    return Reversal(key, ttl_ns(ctx.params.ttl), state, "connected again")


def begin(ctx: ActContext) -> Outcome | Begun:
    """Nothing yet: nftables may be held up in the target's namespace."""
    return Begun(acted=False)


async def cut(ctx: ActContext, policy: Callable[[ActContext], Any]) -> Outcome:
    """Carry it out at both ends of the pod's link and see that it stands. The pod's sandbox is held meanwhile."""
    reversal, keep = ctx.reversal, ctx.keep
    if ctx.container is None or reversal is None or keep is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    try:
        hands = _hands(ctx.host)
        facts = ctx.host.namespaces_of(ctx.container, named(ctx, ctx.container))
        held = ctx.host.hold(facts.holder_pid)
        try:
            applied = await hands.cut(held, reversal.state["act"], policy(ctx), keep)
        finally:
            held.close()
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    details = _details(applied) | ({"process_elsewhere": list(facts.elsewhere)} if facts.elsewhere else {})
    weaker = f"weaker than meant: {'; '.join(applied.weaker[:MAX_TOLD])}" if applied.weaker else ""
    return Outcome(Verdict.DONE, weaker, details)


def _details(applied: Applied) -> dict[str, Any]:
    told: dict[str, Any] = {"places": list(applied.places), "ended_connections": applied.ended, "ms": applied.ms}
    if applied.weaker:
        told["weaker"] = list(applied.weaker)
    if applied.again:
        told["again"] = True
    return told


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first. What may stand is taken away again."""
    return Outcome(Verdict.FAILED, "nftables did not answer in time: it is held up in the pod's network namespace")


async def undo(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """Take away what the act put up, and nothing else."""
    report = await _hands(host).undo(state)
    if report.failed:
        return Outcome(Verdict.FAILED, "; ".join(report.failed[:MAX_TOLD]))
    details: dict[str, Any] = {"counters": report.counters} if report.counters else {}
    said = _said(report)
    if report.removed:
        return Outcome(Verdict.DONE, said, details)
    return Outcome(Verdict.SKIPPED, said or "nothing of it stands", details)


def _said(report: UndoReport) -> str:
    parts = [f"taken away: {', '.join(report.removed)}"] if report.removed else []
    parts += [f"changed by somebody else before: {', '.join(report.changed)}"] if report.changed else []
    parts += [f"taken away by somebody else before: {', '.join(report.missing)}"] if report.missing else []
    parts += [f"gone: {', '.join(report.gone)}"] if report.gone else []
    return "; ".join(parts)


async def drift(host: NodeHost, state: dict[str, Any]) -> str:
    """Whether somebody took away what was put up (`nft flush ruleset` in the pod)."""
    standing = await _hands(host).counters(state)
    missing = sorted(set(state.get("fingerprints", {})) - set(standing))
    return f"somebody took it away at the {' and the '.join(missing)}" if missing else ""


def _hands(host: NodeHost) -> NetworkHands:
    hands = host.network
    if hands is None:
        raise TargetRefused(NOT_HERE.format("its helpers are not started yet"))
    if hands.unavailable:
        raise ActFailed(NOT_HERE.format(hands.unavailable))
    return hands
