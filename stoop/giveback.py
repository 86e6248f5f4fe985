"""Giving back what was taken: when its time is over, when a person asks, when the act failed half-way.

One task waits for the next thing to do. Each undo runs by itself, under a deadline; one that fails is tried again, ever
less often, and the hold stays. An undo is recorded once, and once more (`amends`) when it works after it had failed.
`stoop mode off` does not stop it: giving back is no new act. Where a hold ends by destroying (`then: kill` of a freeze)
and its rule wants evidence first, that is taken before, of what stands still already, and under the same deadline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import trio

from stoop.captures import About
from stoop.engine import undo_id
from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.evidence_first import NEVER, First, Preserved
from stoop.holdings import Holdings, Say
from stoop.holds import Hold
from stoop.node import ContainerFacts, NodeHost
from stoop.recorder import Recorder
from stoop.runs import Clocks
from stoop.spec import (
    ActContext,
    Action,
    Catalogue,
    NoParameters,
    Outcome,
    Undo,
    Verdict,
)

UNDO_SECONDS = 10.0
"""What one undo gets: a control file takes µs, a transaction of nftables some ms."""

AT_ONCE = 16
"""Undos at the same time: each may have a thread."""

RETRY_SECONDS = (2.0, 10.0, 60.0, 600.0)
"""Pauses after an undo that failed; the last one stays."""

LOOK_SECONDS = 15.0
"""How often it is looked whether what is held still is; a tenth more or less, so that nodes are not in step."""

LONGEST_WAIT_S = 3600.0
"""trio.sleep takes any number; waking once an hour costs nothing and forgives a clock that was suspended."""

TIME_OVER = "its time is over"
ASKED = "`stoop undo`"
STOPPING = "the agent stops (`on_stop: undo`)"
RESTARTED = "the machine was restarted, which ended it"


class _Trouble:
    __slots__ = ("next_mono_ns", "reason", "tries")

    def __init__(self) -> None:
        self.reason = ""
        self.tries = 0
        self.next_mono_ns = 0


class GiveBack:
    """Undoes what `holdings` hold. `serve` it."""

    def __init__(  # noqa: PLR0913 - what it stands on, handed to it once
        self,
        holdings: Holdings,
        catalogue: Catalogue,
        host: NodeHost,
        recorder: Recorder,
        clocks: Clocks,
        say: Say,
        first: First = NEVER,
    ) -> None:
        self._holdings = holdings
        self._catalogue = catalogue
        self._host = host
        self._recorder = recorder
        self._clocks = clocks
        self._say = say
        self._undoing: dict[str, trio.Event] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._drifts: dict[str, str] = {}
        self._looking = False
        self._changed = trio.Event()
        self._soon: list[tuple[Hold, str]] = []
        self._limit: trio.CapacityLimiter | None = None
        self._first = first
        holdings.evidence_first = first.applies
        holdings.changed = self._wake
        holdings.undo_now = self._undo_soon

    def recover(self) -> None:
        """At a start: what an earlier life holds is held on; what died with the machine is recorded as ended."""
        for hold in self._holdings.load():
            action = self._catalogue.actions.get(hold.actionner)
            if action is not None and action.spec.outlives_boot:
                self._holdings.adopt(hold)
                continue
            self._recorder.undone(hold, Outcome(Verdict.SKIPPED, RESTARTED), RESTARTED, self._clocks.now_ns())
            self._holdings.drop(hold)
        count = len(self._holdings.table)
        if count:
            self._say("warning", "what the last agent held is still held", count=count, hint="`stoop active`")

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give back on time, until cancelled."""
        self._limit = trio.CapacityLimiter(AT_ONCE)
        look = trio.current_time() + LOOK_SECONDS
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._changed = trio.Event()
                for hold, why in self._what_is_due():
                    self._undoing[hold.act] = trio.Event()  # at once: the next look may come before its task
                    nursery.start_soon(self._undo_claimed, hold, why)
                for hold in self._holdings.table.expiring(self._clocks.mono_ns()):
                    self._tell_expiring(hold)
                if trio.current_time() >= look:
                    nursery.start_soon(self._look)
                    look = trio.current_time() + LOOK_SECONDS * random.uniform(0.9, 1.1)
                with trio.move_on_after(self._pause_s(look - trio.current_time())):
                    await self._changed.wait()

    # ------------------------------------------------------------ what a person asks

    async def undo(self, name: str) -> list[dict[str, Any]]:
        """Give back what this run or act holds, or all (EVERY_HOLD); how each ended. Raises UserError."""
        return await self._undo_all(self._holdings.table.named(name), ASKED)

    async def undo_all(self) -> None:
        """The agent stops, and is to leave nothing held."""
        await self._undo_all(list(self._holdings.table), STOPPING)

    def extend(self, name: str, ttl_ns: int) -> list[Hold]:
        """Let what this run or act holds last so long from now; 0 for ever. Raises UserError."""
        return [self._holdings.renew(hold, ttl_ns) for hold in self._holdings.table.named(name)]

    def troubles(self) -> dict[str, str]:
        """Of holds: why the undo failed, or what somebody else did to them."""
        return self._drifts | {act: trouble.reason for act, trouble in self._troubles.items()}

    async def _undo_all(self, holds: Sequence[Hold], why: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []

        async def one(hold: Hold) -> None:
            outcome = await self._undo(hold, why)
            told = {"act": hold.act, "run": hold.run, "action": hold.action, "target": hold.shown}
            results.append(told | {"outcome": str(outcome.verdict), "reason": outcome.reason})

        async with trio.open_nursery() as nursery:
            for hold in holds:
                nursery.start_soon(one, hold)
        return results

    # ------------------------------------------------------------ undoing

    def _wake(self) -> None:
        self._changed.set()

    def _undo_soon(self, hold: Hold, why: str) -> None:
        self._soon.append((hold, why))
        self._wake()

    def _what_is_due(self) -> list[tuple[Hold, str]]:
        mono_ns, table = self._clocks.mono_ns(), self._holdings.table
        due = {hold.act: hold for hold in table.due(mono_ns)}
        due |= {act: hold for act in self._troubles if (hold := table.get(act)) is not None}
        soon, self._soon = self._soon, []
        soon += [(hold, TIME_OVER) for act, hold in due.items() if self._next_try(act) <= mono_ns]
        return [(hold, why) for hold, why in soon if hold.act not in self._undoing]

    def _next_try(self, act: str) -> int:
        trouble = self._troubles.get(act)
        return trouble.next_mono_ns if trouble is not None else 0

    def _pause_s(self, look_s: float) -> float:
        table, mono_ns = self._holdings.table, self._clocks.mono_ns()
        if not len(table):
            return LONGEST_WAIT_S
        times = [table.next_mono_ns()] if table.next_mono_ns() > mono_ns else []
        times += [trouble.next_mono_ns for act, trouble in self._troubles.items() if act not in self._undoing]
        until_next = min((at - mono_ns for at in times), default=int(LONGEST_WAIT_S * 1e9)) / 1e9
        return max(0.0, min(until_next, look_s))

    async def _undo(self, hold: Hold, why: str) -> Outcome:
        """Once at a time for each hold: whoever comes second waits for the first, and looks again."""
        while hold.act in self._undoing:
            await self._undoing[hold.act].wait()
        self._undoing[hold.act] = trio.Event()
        return await self._undo_claimed(hold, why)

    async def _undo_claimed(self, hold: Hold, why: str) -> Outcome:
        try:
            assert self._limit is not None
            async with self._limit:
                current = self._holdings.table.get(hold.act)
                if current is None:
                    return Outcome(Verdict.SKIPPED, "it is given back already")
                outcome = await self._try(current, why)
                self._settle(current, outcome, why)
                return outcome
        finally:
            self._undoing.pop(hold.act).set()
            self._wake()

    async def _try(self, hold: Hold, why: str) -> Outcome:
        action = self._catalogue.actions.get(hold.actionner)
        undo = action.undo if action is not None else None
        if action is not None and why is TIME_OVER:
            undo = action.at_end or undo
        if undo is None:
            return Outcome(Verdict.FAILED, f"{hold.actionner} can't be undone by this version")
        container = self._destroyed(action, hold) if action is not None and why is TIME_OVER else None
        if container is None:
            return await self._carry_out(undo, hold)
        first = Preserved()
        try:
            await first.take(self._context(hold, container), self._first.deadline_s)
            outcome = await self._carry_out(undo, hold)
        finally:
            first.close()
        await first.settle()
        return first.told(outcome)

    def _destroyed(self, action: Action, hold: Hold) -> ContainerFacts | None:
        """Of what evidence is to be taken before this hold ends: once, and not at each try after a failure."""
        if action.at_end_destroys is None or not hold.evidence_first or hold.act in self._troubles:
            return None
        try:
            return action.at_end_destroys(self._host, hold.state)
        except TargetError:
            return None  # its end will say so

    def _context(self, hold: Hold, container: ContainerFacts) -> ActContext:
        """For the evidence alone: whom the act may be done to was judged when it was held."""
        about = About(hold.alert, hold.run, undo_id(hold.act), hold.rule, hold.action, hold.actionner)
        return ActContext(
            host=self._host,
            params=NoParameters(),
            process=None,
            container=container,
            protects=lambda facts: "",
            protects_container=lambda facts: "",
            about=lambda: about,
        )

    async def _carry_out(self, undo: Undo, hold: Hold) -> Outcome:
        seconds = self._catalogue.actions[hold.actionner].undo_s or UNDO_SECONDS
        try:
            with trio.fail_after(seconds):
                return await undo(self._host, hold.state)
        except trio.TooSlowError:
            return Outcome(Verdict.FAILED, f"not undone within {seconds:g} s")
        except TargetGone as error:
            return Outcome(Verdict.SKIPPED, error.reason)
        except (TargetError, ActFailed) as error:
            return Outcome(Verdict.FAILED, error.reason)

    def _settle(self, hold: Hold, outcome: Outcome, why: str) -> None:
        now_ns, failed_before = self._clocks.now_ns(), hold.act in self._troubles
        if outcome.verdict is Verdict.FAILED:
            self._postpone(hold, outcome.reason)
            if not failed_before:
                self._recorder.undone(hold, outcome, why, now_ns)
        else:
            self._troubles.pop(hold.act, None)
            self._drifts.pop(hold.act, None)
            self._recorder.undone(hold, outcome, why, now_ns, amends=failed_before)
            self._holdings.drop(hold)

    def _postpone(self, hold: Hold, reason: str) -> None:
        trouble = self._troubles.setdefault(hold.act, _Trouble())
        pause_s = RETRY_SECONDS[min(trouble.tries, len(RETRY_SECONDS) - 1)]
        trouble.reason, trouble.tries = reason, trouble.tries + 1
        trouble.next_mono_ns = self._clocks.mono_ns() + int(pause_s * 1e9)
        fields = {"act": hold.act, "action": hold.action, "target": hold.shown, "reason": reason, "again_s": pause_s}
        self._say("error", "what was taken can't be given back: it is tried again", **fields)

    # ------------------------------------------------------------ what is said

    def _tell_expiring(self, hold: Hold) -> None:
        self._holdings.told(hold)
        left_s = max(0, hold.until_mono_ns - self._clocks.mono_ns()) // 10**9
        fields: dict[str, Any] = {"run": hold.run, "action": hold.action, "target": hold.shown, "left_s": left_s}
        hint = f"`stoop extend {hold.run[:12]} --for 1h` keeps it"
        self._say("warning", "a hold is expiring", **fields, then=hold.then, hint=hint)

    async def _look(self) -> None:
        """Whether what is held still is, one after the other: there is no hurry. Each change is said once."""
        if self._looking:
            return
        self._looking = True
        try:
            for hold in self._holdings.table:
                drift = await self._drift_of(hold)
                if self._holdings.table.get(hold.act) is not None and hold.act not in self._undoing:
                    self._note_drift(hold, drift)
        finally:
            self._looking = False

    def _note_drift(self, hold: Hold, drift: str) -> None:
        if drift and drift != self._drifts.get(hold.act):
            fields = {"act": hold.act, "action": hold.action, "target": hold.shown, "what": drift}
            self._say("error", "somebody else changed what is held", **fields)
        if drift:
            self._drifts[hold.act] = drift
        else:
            self._drifts.pop(hold.act, None)

    async def _drift_of(self, hold: Hold) -> str:
        action = self._catalogue.actions.get(hold.actionner)
        if action is None or action.drift is None:
            return ""
        try:
            with trio.move_on_after(UNDO_SECONDS):
                return await action.drift(self._host, hold.state)
            return f"it could not be looked at within {UNDO_SECONDS:g} s"
        except TargetGone as error:
            return f"it is gone: {error.reason}"
        except (TargetError, ActFailed) as error:
            return error.reason
