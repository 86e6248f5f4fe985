"""The one place where an act becomes a record, metrics, and whatever the sinks make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from stoop.deliveries import Delivery
from stoop.engine import Repeat, act_id, delivery_id, undo_id
from stoop.holds import Hold
from stoop.metrics import Metrics
from stoop.record import Record, Timing
from stoop.ring import Intent
from stoop.rules.model import OutputForm
from stoop.runs import Ready, Run, When
from stoop.spec import (
    Mode,
    Outcome,
    Verdict,
)


class Ledger(Protocol):
    """Where it is written down what is about to be done, and how it ended. Never blocks and never raises."""

    def reserve(self, intent: Intent) -> int:
        """Before an act: a slot that survives SIGKILL of the agent; -1 when there is no room."""
        ...

    def acted(self, slot: int) -> None:
        """The act was begun: it can't be taken back any more."""
        ...

    def put(self, record: Record, slot: int) -> None:
        """How it ended; frees the slot once it is kept."""
        ...

    def repeats(self, act: str, count: int) -> None:
        """So many times was this act asked for again since."""
        ...

    def accepted(self, count: int, now_ns: int) -> None:
        """So many alerts were taken from their sender."""
        ...

    def settled(self, count: int, now_ns: int) -> None:
        """Nothing more will come of so many alerts."""
        ...


NEVER = When()

LAST_NS = 2**63 - 1
"""The last time that a frame, the ring and SQLite can hold (the year 2262). An alert may carry one of the year 9999."""


def _stored(at_ns: int) -> int:
    """A time as it can be kept."""
    return max(-LAST_NS, min(at_ns, LAST_NS))


class Recorder:
    """Emits one Record an act to the ledger, the metrics and the sinks."""

    def __init__(
        self, ledger: Ledger, metrics: Metrics, mode: Callable[[], Mode], sinks: Sequence[Callable[[Record], None]]
    ) -> None:
        self.ledger = ledger
        self.metrics = metrics
        self._mode = mode
        self._sinks = sinks
        self._again: dict[str, Record] = {}
        self.deliver: Callable[[Record, OutputForm], Record] | None = None
        """Keeps what an act's output is to get before its record is told, and says so in it."""
        self._undecided: dict[str, tuple[int, frozenset[str]]] = {}  # bounded by the rules there are

    def expect_again(self, records: Iterable[Record]) -> None:
        """These acts are recorded already, as failed: what comes of them now amends that."""
        self._again.update((record.act, record) for record in records)

    def undecided(self, rule: str, fields: frozenset[str]) -> None:
        """A rule does not match, for nothing is known of these fields. Told by `take_undecided`."""
        self.metrics.inc("alerts_undecided_total", (rule,))
        count, before = self._undecided.get(rule, (0, frozenset()))
        self._undecided[rule] = count + 1, before | fields

    def take_undecided(self) -> dict[str, tuple[int, frozenset[str]]]:
        """By rule, how many alerts were so since the last call, and for want of which fields."""
        taken, self._undecided = self._undecided, {}
        return taken

    def took(self, kind: str, count: int, delays_ns: Sequence[int]) -> None:
        """So many alerts came in this way, so long after their events."""
        metrics = self.metrics
        metrics.inc("alerts_received_total", (kind,), count)
        metrics.inc("alerts_decoded_total", (kind,), count)
        for delay_ns in delays_ns:
            metrics.observe("event_to_received_seconds", (), delay_ns / 1e9)

    def intend(self, run: Run, ready: Ready, decided_ns: int) -> int:
        """Write down that an act is about to begin; the slot it takes."""
        facts, container = run.subject.facts, ready.context.container
        container_id = container.container_id if container is not None else facts.container_id if facts else ""
        return self.ledger.reserve(
            Intent(
                act=act_id(run.id, run.index),
                run=run.id,
                alert=run.matched.alert_id,
                rule=run.rule.form.rule,
                action=run.step.action,
                actionner=run.step.actionner,
                target=ready.target,
                pid=facts.pid if facts is not None else 0,
                birth=facts.birth if facts is not None else 0,
                event_ns=_stored(run.matched.alert.time_ns),
                received_ns=run.matched.received_ns,
                decided_ns=decided_ns,
                container=container_id[:12],
            )
        )

    def emit(
        self, run: Run, index: int, outcome: Outcome, *, slot: int = -1, when: When = NEVER, amends: bool = False
    ) -> None:
        """One act of this run ended so."""
        record = self._record(run, index, act_id(run.id, index), outcome, when, amends)
        if self._again and (before := self._again.pop(record.act, None)) is not None:
            # Whom it was about is kept: one that has exited since can't be looked at any more.
            record = msgspec.structs.replace(record, amends=True, target={**before.target, **record.target})
        output = run.rule.form.actions[index].output
        if output is not None and self.deliver is not None:
            record = self.deliver(record, output)
        self._send(record, slot)

    def repeated(self, run: Run, repeat: Repeat) -> None:
        """An act was asked for again: the first time is recorded, later ones are a count."""
        self.metrics.inc("acts_repeated_total", (run.step.actionner,))
        if repeat.first:
            outcome = Outcome(Verdict.SKIPPED, f"duplicate of {repeat.original}")
            act = act_id(run.id, run.index, repeat=1)
            self._send(self._record(run, run.index, act, outcome, NEVER, False), -1)
        elif repeat.due:
            self.ledger.repeats(repeat.original, repeat.count)

    def followed(self, record: Record) -> None:
        """What followed an act that was recorded before: the same record, saying more (`amends`). Not counted anew."""
        self._keep(record, -1)

    def undone(self, hold: Hold, outcome: Outcome, why: str, at_ns: int, *, amends: bool = False) -> None:
        """What an act took was given back, or could not be."""
        self.metrics.inc("undos_total", (hold.actionner, str(outcome.verdict)))
        reason = f"{why}: {outcome.reason}" if outcome.reason else why
        record = Record(
            alert=hold.alert,
            run=hold.run,
            act=undo_id(hold.act),
            rule=hold.rule,
            action=f"undo: {hold.action}",
            actionner=hold.actionner,
            verdict=outcome.verdict,
            reason=reason,
            target=hold.shown,
            timing=Timing(0, 0, 0, 0, at_ns),
            details=outcome.details | {"undoes": hold.act, "held_s": (at_ns - hold.made_ns) / 1e9},
            mode=self._mode(),
            amends=amends,
        )
        self._keep(record, -1)

    def delivered(self, delivery: Delivery, outcome: Outcome, at_ns: int) -> None:
        """What an act left was sent to its output, or was given up."""
        self.metrics.inc("deliveries_total", (delivery.target, str(outcome.verdict)))
        record = Record(
            alert=delivery.alert,
            run=delivery.run,
            act=delivery_id(delivery.act),
            rule=delivery.rule,
            action=f"deliver: {delivery.action}",
            actionner=delivery.actionner,
            verdict=outcome.verdict,
            reason=outcome.reason,
            target=delivery.shown,
            timing=Timing(0, 0, 0, 0, at_ns),
            details=outcome.details
            | {
                "delivers": delivery.act,
                "bundle": delivery.bundle,
                "output": delivery.target,
                "object": delivery.place,
                "waited_s": (at_ns - delivery.made_ns) / 1e9,
            },
            mode=self._mode(),
        )
        self._keep(record, -1)

    def _send(self, record: Record, slot: int) -> None:
        metrics, timing = self.metrics, record.timing
        metrics.inc("acts_total", (record.actionner, str(record.verdict)))
        if timing.event_ns:
            for step, at_ns in (
                ("event_to_decided_seconds", timing.decided_ns),
                ("event_to_acted_seconds", timing.acted_ns),
                ("event_to_verified_seconds", timing.verified_ns),
            ):
                if at_ns:
                    metrics.observe(step, (), (at_ns - timing.event_ns) / 1e9)
        self._keep(record, slot)

    def _keep(self, record: Record, slot: int) -> None:
        self.ledger.put(record, slot)
        for sink in self._sinks:
            sink(record)

    def _record(self, run: Run, index: int, act: str, outcome: Outcome, when: When, amends: bool) -> Record:
        alert, step = run.matched.alert, run.rule.form.actions[index]
        event_ns = _stored(alert.time_ns)
        return Record(
            alert=run.matched.alert_id,
            run=run.id,
            act=act,
            rule=run.rule.form.rule,
            action=step.action,
            actionner=step.actionner,
            verdict=outcome.verdict,
            reason=outcome.reason,
            target=run.subject.describe(),
            timing=Timing(event_ns, run.matched.received_ns, when.decided_ns, when.acted_ns, when.verified_ns),
            details=outcome.details,
            falco_rule=alert.rule,
            priority=alert.priority_text,
            output=alert.output,
            mode=self._mode(),
            amends=amends,
        )
