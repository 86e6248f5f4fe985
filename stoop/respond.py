"""One alert → its runs: matched, resolved, guarded, acted on, verified, recorded. The only place with instrumentation.

    accept ─ match ─▶ Backlog ─▶ drain ─▶ Run: judge ─ begin ─▶ (lane) verify ─ finish ─▶ next action …

Everything up to `begin` is synchronous and happens in the task that read the alert. Only what has to be awaited (an
exit seen on a pidfd) goes to a lane's task. Each act ends as exactly one `Record`; a second one (`amends`) follows when
an act that was given up turns out to have worked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from stoop.alert import Alert
from stoop.amending import Amending
from stoop.backlog import INLINE_RUNS, TURN_RUNS, Backlog
from stoop.engine import act_id, run_id, should_continue
from stoop.evidence_first import Preserved
from stoop.lanes import Lanes
from stoop.parts import Parts
from stoop.rules import RuleSet
from stoop.runs import NOT_YET, Batch, Doing, Evidence, Matched, Ready, Run, When, match, settled
from stoop.spec import (
    Begun,
    Outcome,
    Verdict,
)
from stoop.subject import Seen, Subject

LIVE_INTAKES = frozenset({"unix", "http"})
"""Ways in by which Falco's alerts come at once: how late they come tells of its clock."""

STOPPED = "the agent stopped before its turn came"


class Responder:
    """Takes alerts, answers each match with acts, emits one Record an act."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rules = RuleSet.empty()
        self._backlog = Backlog()
        self._lanes: Lanes[Run] = Lanes()
        self._amending = Amending(self._done)
        self._more = trio.Event()
        self._rest: trio.Event | None = None
        self._nursery: trio.Nursery | None = None

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the lanes, and what could not be dealt with inline. Ends by cancellation; every act is recorded then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._more.wait()
                    self._more = trio.Event()
                    while self._drain(TURN_RUNS):
                        await trio.lowlevel.checkpoint()
            finally:
                self._abandon()

    async def idle(self) -> None:
        """Return once nothing waits and nothing is under way (for an orderly stop)."""
        while len(self._backlog) or len(self._lanes):
            self._rest = trio.Event()
            await self._rest.wait()

    def use(self, rules: RuleSet) -> RuleSet:
        """Swap the rules, and give back the old ones: what is under way keeps the rules it began with."""
        self._parts.judge.forget_rules()
        old, self._rules = self._rules, rules
        return old

    def load(self) -> dict[str, int]:
        """How much waits and is under way."""
        return {"queued": len(self._backlog), "lanes": len(self._lanes), "waiting": self._lanes.waiting()}

    def taken(self, count: int, received_ns: int) -> None:
        """So many alerts are answered now, and come by `accept` then (of LIVE_INTAKES only)."""
        self._parts.recorder.ledger.accepted(count, received_ns)

    def accept(self, alerts: list[Alert], received_ns: int, kind: str, settled: Callable[[], None] | None) -> None:
        """Match these alerts and act on them. `settled` is called once all that came of them is recorded."""
        parts = self._parts
        skew, route = parts.judge.skew, self._rules.route
        live = kind in LIVE_INTAKES
        batch = Batch(settled) if settled is not None else None
        if not live:
            parts.recorder.ledger.accepted(len(alerts), received_ns)
        delays = []
        found: list[Matched] = []
        for alert in alerts:
            event_ns = alert.time_ns
            if event_ns:
                delays.append(received_ns - event_ns)
                if live and alert.source == "syscall":
                    skew.sample(received_ns - event_ns, received_ns)
            rules = route(alert)
            if rules:
                matched = match(alert, rules, parts.node, received_ns, batch)
                if matched is not None:
                    found.append(matched)
        parts.recorder.ledger.settled(len(alerts) - len(found), received_ns)
        if len(found) == 1 and not len(self._backlog):
            self._respond(found[0])  # nothing to be fair to
            self._look_idle()
        elif found:
            self._take_turns(found)
        parts.recorder.took(kind, len(alerts), delays)
        if batch is not None:
            batch.leave()

    def _take_turns(self, found: list[Matched]) -> None:
        """Several came together: each waits its turn, which may be now."""
        backlog, clocks = self._backlog, self._parts.clocks
        begun_ns = clocks.mono_ns()
        reader_acts = backlog.reader_acts(begun_ns)
        for matched in found:
            dropped = backlog.put(matched)
            if dropped is not None:
                self._expire(dropped)
        if reader_acts:
            self._drain(INLINE_RUNS)
            backlog.reader_acted(begun_ns, clocks.mono_ns())
        else:
            self._more.set()

    def _drain(self, most: int) -> bool:
        """Deal with some of what waits; whether anything is left (the task of `serve` goes on with it then)."""
        for _ in range(most):
            matched = self._backlog.take()
            if matched is None:
                self._look_idle()
                return False
            self._respond(matched)
        if left := bool(len(self._backlog)):
            self._more.set()
        return left

    def _subject(self, matched: Matched) -> Subject:
        judge = self._parts.judge
        seen = Seen(judge.host_facts(), judge.skew, matched.received_ns)
        return Subject(matched.alert, self._parts.host, seen)

    def _respond(self, matched: Matched) -> None:
        parts = self._parts
        subject = self._subject(matched)
        for rule, hit in settled(matched, subject, parts.recorder.undecided):
            run = Run(matched, rule, hit.unproven, subject.retain(), run_id(matched.alert_id, rule.form.rule))
            matched.open += 1
            self._start(run)
            parts.recorder.metrics.inc("alerts_matched_total", (rule.form.rule,))
            if not rule.form.continue_:
                break
        subject.release()
        self._close(matched)

    def _start(self, run: Run) -> None:
        """Run it as far as it goes without waiting; the rest is its lane's."""
        if self._advance(run, in_lane=False) is not None:
            self._open_lane(run)

    def _open_lane(self, run: Run) -> None:
        assert run.doing is not None
        target = run.doing.ready.lane
        self._lanes.open(target)
        assert self._nursery is not None, "the responder takes alerts only while it is served"
        self._nursery.start_soon(self._serve_lane, target, run)

    async def _serve_lane(self, target: str, first: Run) -> None:
        run: Run | None = first
        try:
            while run is not None:
                doing = run.doing if run.doing is not None else self._advance(run, in_lane=True)
                while doing is not None:
                    if doing.begun is NOT_YET and doing.first is not None:
                        doing = await self._preserve(run, doing, doing.first)
                    if doing is not None:
                        await self._verify(run, doing)
                    doing = self._advance(run, in_lane=True)
                run = self._lanes.next(target)
        except trio.Cancelled:
            while (waiting := self._lanes.next(target)) is not None:
                self._unstarted(waiting, Outcome(Verdict.EXPIRED, STOPPED))
                self._end(waiting)
            raise
        self._look_idle()

    def _advance(self, run: Run, *, in_lane: bool) -> Doing | None:
        """Take steps until one has to be awaited (it is returned) or the run ends (None; it is closed then)."""
        while run.index < len(run.rule.form.actions):
            parts = self._parts
            ready = parts.judge.prepare(run, parts.clocks.now_ns(), parts.mode())
            if isinstance(ready, Outcome):
                if not self._unstarted(run, ready):
                    break
                continue
            if not in_lane and self._lanes.busy(ready.lane):
                if self._lanes.wait(ready.lane, run):
                    return None
                parts.recorder.metrics.inc("queue_dropped_total")
                self._unstarted(run, Outcome(Verdict.EXPIRED, "queue full: too much waits for this target"))
                break
            started = self._begin(run, ready)
            if isinstance(started, Doing):
                run.doing = started
                return started
            if not started:
                break
        self._end(run)
        return None

    def _unstarted(self, run: Run, outcome: Outcome) -> bool:
        """An act that ends before its target was held. Whether the run goes on."""
        act = act_id(run.id, run.index)
        mono_ns = self._parts.clocks.mono_ns()
        if self._repeated(run, act, None, mono_ns):
            return False
        self._parts.memory.remember(act, None, mono_ns)
        self._parts.recorder.emit(run, run.index, outcome)
        return self._next(run, outcome)

    def _begin(self, run: Run, ready: Ready) -> Doing | bool:
        """Judge and begin one act: it is under way, or it ended and the bool tells whether the run goes on."""
        parts = self._parts
        act = act_id(run.id, run.index)
        key = (run.rule.form.rule, ready.target, run.index)
        mono_ns = parts.clocks.mono_ns()
        if self._repeated(run, act, key, mono_ns):
            return False
        judged: Ready | Outcome = parts.judge.allow(run, ready, mono_ns, parts.mode()) or ready
        if isinstance(judged, Outcome) and judged.verdict is Verdict.REFUSED:
            # The next alert may prove what this one could not: only the same refusal again is a repeat.
            key = (run.rule.form.rule, f"{ready.target} {judged.reason}", run.index)
            if self._repeated(run, act, key, mono_ns):
                return False
        parts.memory.remember(act, key, mono_ns)
        if isinstance(judged, Ready) and ready.action.plan is not None:
            judged = parts.holdings.take(run, ready, act)
        decided_ns = parts.clocks.now_ns()
        if isinstance(judged, Outcome):
            if judged.verdict is Verdict.FAILED:
                parts.memory.forget(key)
            parts.recorder.emit(run, run.index, judged, when=When(decided_ns))
            return self._next(run, judged)
        slot = parts.recorder.intend(run, judged, decided_ns)
        if parts.first.precedes(run.rule.form, judged):
            return Doing(judged, NOT_YET, run.index, slot, key, When(decided_ns), Preserved())
        return self._act(run, judged, slot, key, decided_ns)

    def _act(
        self,
        run: Run,
        ready: Ready,
        slot: int,
        key: tuple[str, str, int],
        decided_ns: int,
        first: Evidence | None = None,
    ) -> Doing | bool:
        """Begin what was decided and intended; as `_begin`."""
        parts = self._parts
        begun = ready.begin()
        if ready.hold and isinstance(begun, Outcome):
            begun = parts.holdings.ended(ready, act_id(run.id, run.index), begun)
        when = When(decided_ns, parts.clocks.now_ns())
        if isinstance(begun, Begun):
            if begun.acted:
                parts.recorder.ledger.acted(slot)
            return Doing(ready, begun, run.index, slot, key, when, first)
        if begun.verdict is Verdict.FAILED:
            parts.memory.forget(key)
        begun = first.told(begun) if first is not None else begun
        parts.recorder.emit(run, run.index, begun, slot=slot, when=when)
        return self._next(run, begun)

    async def _preserve(self, run: Run, doing: Doing, first: Evidence) -> Doing | None:
        """Evidence of the target, then the act, while it still stands. None when it has ended with that."""
        run.doing = None
        try:
            await first.take(doing.ready.context, self._parts.first.deadline_s)
            acted = self._act(run, doing.ready, doing.slot, doing.key, doing.when.decided_ns, first)
        except trio.Cancelled:
            self._done(
                run, doing, Outcome(Verdict.FAILED, "the agent stopped while it took evidence: nothing was done")
            )
            self._end(run)
            raise
        finally:
            first.close()
        if isinstance(acted, Doing):
            return acted
        if not acted:
            run.index = len(run.rule.form.actions)  # `_advance` ends it
        return None

    async def _verify(self, run: Run, doing: Doing) -> None:
        """Wait until the act is seen to have worked, at most until its deadline; then record it."""
        action, context = doing.ready.action, doing.ready.context
        assert action.overdue is not None
        run.doing = None
        try:
            with trio.move_on_after(doing.deadline_s(self._parts.act_deadline_s)) as scope:
                outcome = await doing.outcome()
        except trio.Cancelled:
            self._done(run, doing, Outcome(Verdict.FAILED, "begun, but the agent stopped before it was verified"))
            doing.let_go()
            self._end(run)
            raise
        if scope.cancelled_caught:
            outcome = action.overdue(context, doing.begun)
            if not (doing.begun.acted and self._amending.later(self._nursery, run, doing)):
                doing.let_go()
        at_ns = 0
        if doing.first is not None:
            at_ns = self._parts.clocks.now_ns()
            await doing.first.settle()
        self._done(run, doing, outcome, at_ns=at_ns)
        if not self._next(run, outcome):
            run.index = len(run.rule.form.actions)  # `_advance` ends it

    def _done(self, run: Run, doing: Doing, outcome: Outcome, *, amends: bool = False, at_ns: int = 0) -> None:
        """An act that was begun ended so, at `at_ns` or now."""
        now_ns, ready = at_ns or self._parts.clocks.now_ns(), doing.ready
        outcome = doing.first.told(outcome) if doing.first is not None else outcome
        if ready.hold and (not doing.begun.acted or outcome.verdict is Verdict.SKIPPED):
            outcome = self._parts.holdings.ended(ready, act_id(run.id, doing.index), outcome)
        if outcome.verdict is Verdict.FAILED:
            self._parts.memory.forget(doing.key)
        acted_ns = doing.when.acted_ns if doing.begun.acted else now_ns
        when = replace(doing.when, acted_ns=acted_ns, verified_ns=now_ns if outcome.verdict is Verdict.DONE else 0)
        slot = -1 if amends else doing.slot  # it was given back with the first record
        self._parts.recorder.emit(run, doing.index, outcome, slot=slot, when=when, amends=amends)

    def _next(self, run: Run, outcome: Outcome) -> bool:
        """Whether the run goes on, and to which action."""
        go_on = should_continue(run.step, outcome.is_error)
        run.index += 1
        return go_on

    def _end(self, run: Run) -> None:
        """Nothing more comes of this run."""
        run.subject.release()
        self._close(run.matched)

    def _close(self, matched: Matched) -> None:
        matched.open -= 1
        if matched.open:
            return
        self._parts.recorder.ledger.settled(1, self._parts.clocks.now_ns())
        if matched.batch is not None:
            matched.batch.leave()

    def _repeated(self, run: Run, act: str, key: tuple[str, str, int] | None, mono_ns: int) -> bool:
        """Whether this was done lately. The first repeat is recorded, further ones are a count told once a second."""
        repeat = self._parts.memory.repeat(act, key, mono_ns)
        if repeat is None:
            return False
        self._parts.recorder.repeated(run, repeat)
        return True

    def tell_repeats(self) -> None:
        """Counts of repeats that nobody asked for since: called about once a second while there are any."""
        for act, count in self._parts.memory.pending_counts(self._parts.clocks.mono_ns()):
            self._parts.recorder.ledger.repeats(act, count)

    def _expire(self, matched: Matched, reason: str = "queue full") -> None:
        """A matched alert that will not be dealt with: recorded for each rule, counted."""
        parts = self._parts
        subject = self._subject(matched)
        if reason != STOPPED:
            parts.recorder.metrics.inc("queue_dropped_total")
        for rule, hit in matched.hits:
            run = Run(matched, rule, hit.unproven, subject, run_id(matched.alert_id, rule.form.rule))
            act, mono_ns = act_id(run.id, 0), parts.clocks.mono_ns()
            if not self._repeated(run, act, None, mono_ns):
                parts.memory.remember(act, None, mono_ns)
                parts.recorder.emit(run, 0, Outcome(Verdict.EXPIRED, reason))
        self._close(matched)

    def _abandon(self) -> None:
        """The agent stops: what still waits is recorded as expired."""
        while (matched := self._backlog.take()) is not None:
            self._expire(matched, STOPPED)

    def _look_idle(self) -> None:
        if self._rest is not None and not len(self._backlog) and not len(self._lanes):
            self._rest.set()
