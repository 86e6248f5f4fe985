"""What `respond` works on: a matched alert, one run (alert × rule) on its way, the act that is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from stoop.alert import Alert, alert_id
from stoop.captures import About
from stoop.engine import act_id
from stoop.errors import ActFailed
from stoop.rules import Hit, Rule
from stoop.rules.model import ActionForm
from stoop.spec import (
    ActContext,
    Action,
    Begun,
    Outcome,
    Verdict,
)
from stoop.subject import Subject


class Clocks(Protocol):
    """The two clocks, as a seam: nanoseconds of CLOCK_REALTIME and CLOCK_MONOTONIC."""

    def now_ns(self) -> int: ...

    def mono_ns(self) -> int: ...


class Batch:
    """Alerts that came together; tells once when everything that came of them is recorded."""

    __slots__ = ("_open", "_settled")

    def __init__(self, settled: Callable[[], None]) -> None:
        self._settled = settled
        self._open = 1

    def enter(self) -> None:
        """One more thing is under way."""
        self._open += 1

    def leave(self) -> None:
        """One thing less; after the last one the batch is settled."""
        self._open -= 1
        if not self._open:
            self._settled()


@dataclass(eq=False, slots=True)
class Matched:
    """An alert that some rules match, waiting for its turn. `open` counts its runs, and itself until they are begun."""

    alert: Alert
    alert_id: str
    hits: list[tuple[Rule, Hit]]
    received_ns: int
    batch: Batch | None
    open: int = 1

    @property
    def asked(self) -> frozenset[str]:
        """The fields that the alert lacks and its rules ask for."""
        return frozenset().union(*(hit.needs for _, hit in self.hits))


def match(alert: Alert, rules: Sequence[Rule], node: str, received_ns: int, batch: Batch | None) -> Matched | None:
    """The alert with those of these rules that match it, or may once more is known of it; None without any."""
    hits: list[tuple[Rule, Hit]] = []
    for rule in rules:
        hit = rule.test(alert, None)
        if hit.possible:
            hits.append((rule, hit))
            if hit.certain and not rule.form.continue_:
                break
    if not hits:
        return None
    if batch is not None:
        batch.enter()
    return Matched(alert, alert_id(alert, node), hits, received_ns, batch)


def settled(
    matched: Matched, subject: Subject, undecided: Callable[[str, frozenset[str]], None]
) -> Iterator[tuple[Rule, Hit]]:
    """The rules that match once the node was asked, which happens at the first that needs it.

    `undecided(rule, fields)` hears of one that does not match because nothing is known of these fields.
    """
    resolved: dict[str, str | None] | None = None
    for rule, hit in matched.hits:
        if not hit.certain:
            resolved = subject.resolve(matched.asked) if resolved is None else resolved
            hit = rule.test(matched.alert, resolved)
            if hit.undecided:
                undecided(rule.form.rule, hit.undecided)
            if not hit.possible:
                continue
        yield rule, hit


@dataclass(eq=False, slots=True)
class Run:
    """One alert × one rule on its way through the rule's actions."""

    matched: Matched
    rule: Rule
    unproven: frozenset[str]
    subject: Subject
    id: str
    index: int = 0
    doing: Doing | None = None

    @property
    def step(self) -> ActionForm:
        """The action whose turn it is."""
        return self.rule.form.actions[self.index]

    def about(self) -> About:
        """By whose word the action is done whose turn it is."""
        step, act = self.step, act_id(self.id, self.index)
        return About(self.matched.alert_id, self.id, act, self.rule.form.rule, step.action, step.actionner)


@dataclass(frozen=True, slots=True)
class Ready:
    """An act that nothing speaks against, up to the lane being free.

    `target`: the identity of what it acts on. `hold`: of a reversible act, the act by which it is held.
    """

    action: Action
    context: ActContext
    target: str
    hold: str = ""

    @property
    def lane(self) -> str:
        """What it waits for: the target, or the captures of one kind of it."""
        return f"{self.target} {self.action.lane}" if self.action.lane else self.target

    def begin(self) -> Begun | Outcome:
        """Begin it. Raises nothing that an act may raise."""
        assert self.action.begin is not None
        try:
            return self.action.begin(self.context)
        except ActFailed as error:
            return Outcome(Verdict.FAILED, error.reason)


@dataclass(frozen=True, slots=True)
class When:
    """Of one act: when it was decided, begun and verified (CLOCK_REALTIME, ns); 0 where it did not come to that."""

    decided_ns: int = 0
    acted_ns: int = 0
    verified_ns: int = 0


NOT_YET = Begun(acted=False)
"""Of an act that waits for evidence of its target."""


class Evidence(Protocol):
    """Evidence before an act that destroys (`stoop.evidence_first`)."""

    async def take(self, ctx: ActContext, deadline_s: float) -> None: ...

    def close(self) -> None: ...

    async def settle(self) -> None: ...

    def told(self, outcome: Outcome) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Doing:
    """An act that has begun and is to be verified. `key`: what `engine.Memory` remembers it by.

    `first`: the evidence that was taken before it. With `begun` NOT_YET that is still to come, and the act after it.
    """

    ready: Ready
    begun: Begun
    index: int
    slot: int
    key: tuple[str, str, int]
    when: When
    first: Evidence | None = None

    def deadline_s(self, usual_s: float) -> float:
        """How long it may take to be seen to have worked."""
        if self.begun.deadline_s:
            return self.begun.deadline_s
        longer = self.ready.action.deadline_s
        return usual_s if longer is None else longer(self.ready.context.params)

    async def outcome(self) -> Outcome:
        """How it ended, whenever that is seen."""
        assert self.ready.action.verify is not None
        try:
            return await self.ready.action.verify(self.ready.context, self.begun)
        except ActFailed as error:
            return Outcome(Verdict.FAILED, error.reason)

    def let_go(self) -> None:
        """Nobody watches any more what it holds beside its target. `verify` closes that only when it ends by itself."""
        for held in self.begun.held:
            held.close()
