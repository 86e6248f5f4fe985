"""Acts and rules for the tests of the responder, and the workbench that they run on."""

from __future__ import annotations

from typing import Any

import msgspec

from stoop.catalogue import CATALOGUE
from stoop.errors import ActFailed
from stoop.rules import ActionForm, MatchForm, RuleForm
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
from stoop.testing import Workbench

DEADLINE = 2.0
STUCK = (Verdict.FAILED, "still there")


def spec(name: str, target: TargetKind = TargetKind.PROCESS) -> ActionSpec:
    return ActionSpec(
        name=name,
        description="",
        target=target,
        scope=Scope.NODE,
        reach=Reach.PROCESS,
        continue_default=True,
    )


def raises(_: ActContext) -> Outcome:
    raise ActFailed("not permitted")


def signals(ctx: ActContext) -> Begun | Outcome:
    """Signal 15, which the fake process ignores as long as a test likes. One more hold is kept beside it."""
    assert ctx.process is not None
    if not ctx.process.signal(15):
        return Outcome(Verdict.SKIPPED, "already exited")
    return Begun((ctx.host.hold(ctx.process.facts.pid),))


async def until_exit(ctx: ActContext, begun: Begun) -> Outcome:
    assert ctx.process is not None
    await ctx.process.wait_exited()
    for held in begun.held:
        held.close()
    return Outcome(Verdict.DONE)


async def fails_at_exit(ctx: ActContext, begun: Begun) -> Outcome:
    await until_exit(ctx, begun)
    raise ActFailed("it ended otherwise")


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    return Outcome(*STUCK)


ACTIONS = (
    CATALOGUE.actions["process:kill"],
    Action(spec("done"), begin=lambda ctx: Outcome(Verdict.DONE, details={"how": "at once"})),
    Action(spec("fails"), begin=lambda ctx: Outcome(Verdict.FAILED, "no such thing")),
    Action(spec("raises"), begin=raises),
    Action(spec("wait"), begin=signals, verify=until_exit, overdue=overdue),
    Action(spec("wait and fail"), begin=signals, verify=fails_at_exit, overdue=overdue),
)


def step(actionner: str, *, goes_on: bool = True, ignore: bool = False) -> ActionForm:
    return ActionForm(f"do {actionner}", actionner, continue_=goes_on, ignore_errors=ignore)


def rule(*steps: ActionForm, name: str = "rule", **changes: Any) -> RuleForm:
    form = RuleForm(rule=name, match=MatchForm(rules=("Shell",)), actions=steps, allow_host=True)
    return msgspec.structs.replace(form, **changes)


def bench_of(*rules: RuleForm, window_s: float = 5.0) -> Workbench:
    return Workbench(ACTIONS, rules, window_s=window_s, deadline_s=DEADLINE)


def balanced(bench: Workbench) -> bool:
    """Every alert that was taken is settled, nothing is held, no slot is taken or was misused."""
    ledger = bench.ledger
    settled = ledger.accepted_alerts == ledger.settled_alerts
    return settled and not bench.host.open_holds and not ledger.open and not ledger.misused
