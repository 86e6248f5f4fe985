"""Which acts of which rules are carried out: the real responder against a naive model of Talon's table."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stoop.rules import ActionForm, MatchForm, RuleForm
from stoop.spec import (
    Action,
    ActionSpec,
    Outcome,
    Reach,
    Scope,
    TargetKind,
    Verdict,
)
from stoop.testing import Workbench, alert_of

DONE, FAILED = "test:done", "test:failed"


def _action(name: str, verdict: Verdict) -> Action:
    spec = ActionSpec(
        name=name,
        description="",
        target=TargetKind.PROCESS,
        scope=Scope.NODE,
        reach=Reach.PROCESS,
        continue_default=True,
    )
    return Action(spec, begin=lambda ctx: Outcome(verdict))


ACTIONS = (_action(DONE, Verdict.DONE), _action(FAILED, Verdict.FAILED))

steps = st.lists(st.tuples(st.sampled_from((DONE, FAILED)), st.booleans(), st.booleans()), min_size=1, max_size=4)
# (actionner, continue, ignore_errors) each

rules = st.lists(st.tuples(steps, st.booleans(), st.booleans()), max_size=4)
# (steps, continue, dry_run) each

Steps = list[tuple[str, bool, bool]]


def naive(wanted: list[tuple[Steps, bool, bool]]) -> list[tuple[str, str, str]]:
    """(rule, action, verdict) in order, told as the table tells it."""
    found = []
    for number, (chain, goes_on, dry_run) in enumerate(wanted):
        for index, (actionner, continues, ignores) in enumerate(chain):
            failed = actionner == FAILED and not dry_run
            verdict = "would" if dry_run else "failed" if failed else "done"
            found.append((f"rule {number}", f"step {index}", verdict))
            if (failed and not ignores) or not continues:
                break
        if not goes_on:
            break
    return found


@settings(max_examples=200, deadline=None)
@given(rules)
def test_what_is_carried_out_is_what_the_table_says(wanted: list[tuple[Steps, bool, bool]]) -> None:
    forms = [
        RuleForm(
            rule=f"rule {number}",
            match=MatchForm(rules=("Shell",)),
            actions=tuple(
                ActionForm(f"step {index}", actionner, continue_=continues, ignore_errors=ignores)
                for index, (actionner, continues, ignores) in enumerate(chain)
            ),
            index=number,
            continue_=goes_on,
            dry_run=dry_run,
            allow_host=True,
        )
        for number, (chain, goes_on, dry_run) in enumerate(wanted)
    ]
    bench = Workbench(ACTIONS, forms)
    bench.host.add(40)
    bench.accept(alert_of(proc_pid=40))
    told = [(record.rule, record.action, str(record.verdict)) for record in bench.ledger.records]
    assert told == naive(wanted)
    assert bench.host.open_holds == 0
