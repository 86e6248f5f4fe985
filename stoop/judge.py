"""Whether an act may begin: everything between a match and `begin`, in the order in which it must be asked.

    off · too old · declared only · hold the target, prove it · (lane) · seen before · guard · limits · dry run, observe

Each answer that is not "go" is an Outcome with a reason. Synchronous; the only I/O is what `Subject` reads of the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stoop import guard
from stoop.errors import TargetError, TargetGone
from stoop.node import ContainerFacts, HostFacts, NodeHost, ProcessFacts
from stoop.rules import typed_parameters
from stoop.rules.model import ActionForm
from stoop.runs import Ready, Run
from stoop.spec import (
    ActContext,
    Action,
    Catalogue,
    Mode,
    Outcome,
    Parameters,
    TargetKind,
    Verdict,
)


def refused(reason: str) -> Outcome:
    """The guard says no, or it can't be proven."""
    return Outcome(Verdict.REFUSED, reason)


class Judge:
    """Judges one step of a run. A rule that disarms itself is told to `disarmed(rule, reason)`."""

    def __init__(
        self,
        *,
        host: NodeHost,
        host_facts: Callable[[], HostFacts],
        catalogue: Catalogue,
        keeps: guard.Guard,
        disarmed: Callable[[str, str], None],
    ) -> None:
        self._host = host
        self._host_facts = host_facts
        self._catalogue = catalogue
        self.policy = keeps.policy
        self.limits = keeps.limits
        self.skew = keeps.skew
        self._disarmed = disarmed
        self._typed: dict[int, tuple[ActionForm, Parameters]] = {}

    def host_facts(self) -> HostFacts:
        """What the guard must know of the node, as of now."""
        return self._host_facts()

    def prepare(self, run: Run, now_ns: int, mode: Mode) -> Ready | Outcome:
        """Everything up to the lane: nothing is remembered or counted yet, so it may be asked again."""
        if mode is Mode.OFF:
            return Outcome(Verdict.SKIPPED, "the agent is off (`stoop mode`)")
        event_ns = run.matched.alert.time_ns
        late = guard.too_old(self.skew.ours(event_ns) if event_ns else 0, now_ns, self.policy)
        if late:
            return Outcome(Verdict.EXPIRED, late)
        step = run.step
        action = self._catalogue.actions[step.actionner]
        if action.begin is None:
            return refused(f"{step.actionner} is not in this version")
        kind = action.spec.target
        foreign = guard.other_pids(self._host_facts(), self.policy) if kind is TargetKind.PROCESS else ""
        if foreign:
            return refused(foreign)
        try:
            target = run.subject.identity(kind)
            process = run.subject.process() if kind is TargetKind.PROCESS else None
            container = run.subject.container() if kind is TargetKind.CONTAINER else None
        except TargetGone as error:
            return Outcome(Verdict.SKIPPED, error.reason)
        except TargetError as error:
            return refused(error.reason)
        context = ActContext(
            host=self._host,
            params=self._parameters(step, action),
            process=process,
            container=container,
            protects=self._protects,
            protects_container=self._protects_container,
            about=run.about,
            seen=run.subject.held if container is not None else None,
            fields=run.matched.alert.fields,
            alert=run.matched.alert,
            has_output=step.output is not None,
        )
        return Ready(action, context, target)

    def allow(self, run: Run, ready: Ready, mono_ns: int, mode: Mode) -> Outcome | None:
        """The guard, then the limits; None means go. Counts the target against the limits."""
        reason = guard.unproven_fields(run.unproven) or self._guard(run, ready)
        if reason:
            return refused(reason)
        form = run.rule.form
        why = self.limits.is_disarmed(form.rule)
        if why:
            return Outcome(Verdict.WOULD, f"the rule is disarmed: {why} (`stoop arm`)")
        enforcing = mode is Mode.ENFORCE and not form.dry_run
        tripped = self.limits.admit(form.rule, self._limit_key(run, ready), mono_ns, disarm=enforcing)
        if tripped and enforcing:
            for scope in (form.rule, guard.ALL_RULES):
                if scope in self.limits.disarmed:
                    self._disarmed(scope, self.limits.disarmed[scope])
            return Outcome(Verdict.WOULD, f"the rule is disarmed now: {tripped} (`stoop arm`)")
        if form.dry_run:
            return Outcome(Verdict.WOULD, "dry run of the rule", {"limit": tripped} if tripped else {})
        if mode is not Mode.ENFORCE:
            return Outcome(Verdict.WOULD, "observe mode", {"limit": tripped} if tripped else {})
        return None

    def forget_rules(self) -> None:
        """The rules were swapped: parameters are typed anew."""
        self._typed.clear()

    def _guard(self, run: Run, ready: Ready) -> str:
        subject = run.subject
        facts = subject.facts
        host = self._host_facts()
        allow_host = run.rule.form.allow_host
        container = ready.context.container
        if facts is None and container is None:
            return "nothing is known of the target"
        reason = guard.judge_container(subject.said, container, host, self.policy) if container is not None else ""
        if not reason and facts is not None:
            reason = guard.judge(subject.said, facts, host, self.policy, allow_host=allow_host)
        return reason or subject.refusal(self.policy.protected_namespaces)

    def _limit_key(self, run: Run, ready: Ready) -> str:
        if ready.context.container is not None:
            return ready.context.container.container_id
        facts = run.subject.facts
        return guard.target_key(facts) if facts is not None else ready.target

    def _protects(self, facts: ProcessFacts) -> str:
        return guard.protects(facts, self._host_facts(), self.policy)

    def _protects_container(self, container: ContainerFacts) -> str:
        return guard.protects_container(container, self._host_facts())

    def _parameters(self, step: ActionForm, action: Action) -> Any:
        known = self._typed.get(id(step))
        if known is None or known[0] is not step:
            known = (step, typed_parameters(action.spec, step.parameters))
            self._typed[id(step)] = known
        return known[1]
