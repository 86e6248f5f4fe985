"""The holds of this agent: in memory for deciding, on disk before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.holds import MAX_HOLDS, Hold, Table, lasts_longer, until
from stoop.rules.model import RuleForm
from stoop.runs import Clocks, Ready, Run
from stoop.spec import (
    Outcome,
    Reversal,
    Verdict,
)

NOT_KEPT = "a hold is in memory only: it would not be given back after a restart"


GIVEN_BACK = "it was given back while it was being taken"


class Say(Protocol):
    """A log line: a constant message and keys. Never waits and never raises."""

    def __call__(self, level: str, event: str, **fields: Any) -> None: ...


class Files(Protocol):
    """Where holds are kept (`hold_files`)."""

    def load(self) -> tuple[list[Hold], list[str]]: ...

    def keep(self, hold: Hold, *, synced: bool) -> str: ...

    def remove(self, act: str) -> str: ...


class NoFiles:
    """Nothing is kept: for a rehearsal and a replay, which take nothing."""

    def load(self) -> tuple[list[Hold], list[str]]:
        """Nothing."""
        return [], []

    def keep(self, hold: Hold, *, synced: bool) -> str:
        """In memory is enough."""
        return ""

    def remove(self, act: str) -> str:
        """It is not there."""
        return ""


class Holdings:
    """Table and files in step. `changed` is called when there is something new to wait for."""

    def __init__(self, files: Files, clocks: Clocks, boot_id: str, say: Say) -> None:
        self.table = Table()
        self.boot_id = boot_id
        self.changed: Callable[[], None] = lambda: None
        self.evidence_first: Callable[[RuleForm], bool] = lambda form: False
        self.undo_now: Callable[[Hold, str], None] = lambda hold, why: None
        self._files = files
        self._clocks = clocks
        self._say = say

    def load(self) -> list[Hold]:
        """What an earlier life holds; those that an earlier start of the machine held are returned, not kept."""
        holds, troubles = self._files.load()
        for trouble in troubles:
            self._say("error", "a hold can't be read", trouble=trouble)
        earlier = [hold for hold in holds if hold.boot_id != self.boot_id]
        for hold in holds:
            if hold.boot_id == self.boot_id:
                self.table.put(hold)
        return earlier

    def adopt(self, hold: Hold) -> None:
        """One of an earlier start of the machine that is still held: its time is counted by the clock of day."""
        left_ns = max(1, hold.until_ns - self._clocks.now_ns()) if hold.until_ns else 0
        self.renew(msgspec.structs.replace(hold, boot_id=self.boot_id), left_ns)

    # ------------------------------------------------------------ taking

    def take(self, run: Run, ready: Ready, act: str) -> Ready | Outcome:
        """Before an act that can be undone: what that needs is read and kept. What can't be kept at all is refused."""
        plan = ready.action.plan
        assert plan is not None
        try:
            planned = plan(msgspec.structs.replace(ready.context, act=act))
        except TargetGone as error:
            return Outcome(Verdict.SKIPPED, error.reason)
        except TargetError as error:
            return Outcome(Verdict.REFUSED, error.reason)
        except ActFailed as error:
            return Outcome(Verdict.FAILED, error.reason)
        if isinstance(planned, Outcome):
            return planned
        held = self.table.of(ready.action.spec.name, ready.target, planned.key)
        if held is None and len(self.table) >= MAX_HOLDS:
            return Outcome(Verdict.REFUSED, f"{MAX_HOLDS} things are held already (`stoop active`)")
        hold = self._again(held, planned) if held is not None else self._new(run, ready, act, planned)
        trouble = self._put(hold) if hold is not held else ""
        if trouble and ready.action.spec.outlives_boot:
            self.table.remove(hold.act)
            return Outcome(Verdict.FAILED, f"what would undo it can't be written down first: {trouble}")
        if not hold.until_ns:
            self._say("warning", "held without an end", act=hold.act, action=hold.action, hint="`stoop undo` ends it")
        reversal = msgspec.structs.replace(planned, state=hold.state)
        context = msgspec.structs.replace(
            ready.context,
            act=act,
            reversal=reversal,
            keep=partial(self._add, hold.act),
            keep_synced=partial(self.keep_synced, hold.act),
        )
        return Ready(ready.action, context, ready.target, hold.act)

    def ended(self, ready: Ready, act: str, outcome: Outcome) -> Outcome:
        """What became of the act that was taken for: nothing done, nothing held; half done, given back at once."""
        hold = self.table.get(ready.hold)
        if hold is None:
            return outcome
        if hold.act != act:
            details = {"held_by": hold.act, "until_ns": hold.until_ns}
            return msgspec.structs.replace(outcome, details=outcome.details | details)
        if outcome.verdict is Verdict.FAILED:
            self.undo_now(hold, "the act failed")
        elif outcome.verdict is not Verdict.DONE:
            self.drop(hold)
        return outcome

    def _new(self, run: Run, ready: Ready, act: str, planned: Reversal) -> Hold:
        now_ns, mono_ns = self._clocks.now_ns(), self._clocks.mono_ns()
        spec = ready.action.spec
        hold = Hold(
            act=act,
            run=run.id,
            alert=run.matched.alert_id,
            rule=run.rule.form.rule,
            action=run.step.action,
            actionner=spec.name,
            target=ready.target,
            key=planned.key,
            boot_id=self.boot_id,
            made_ns=now_ns,
            made_mono_ns=mono_ns,
            until_ns=0,
            until_mono_ns=0,
            state=planned.state,
            then=planned.then,
            shown=run.subject.describe(),
            evidence_first=self.evidence_first(run.rule.form),
        )
        return until(hold, planned.ttl_ns, now_ns, mono_ns)

    def _again(self, held: Hold, planned: Reversal) -> Hold:
        mono_ns = self._clocks.mono_ns()
        longer = lasts_longer(held, planned.ttl_ns, mono_ns)
        return until(held, planned.ttl_ns, self._clocks.now_ns(), mono_ns) if longer else held

    def _add(self, act: str, state: dict[str, Any]) -> None:
        hold = self.table.get(act)
        if hold is not None:
            self._put(msgspec.structs.replace(hold, state=hold.state | state))

    async def keep_synced(self, act: str, state: dict[str, Any]) -> str:
        """Add to a hold's state, on the disk itself; "" or why nothing may be changed now. The sync is a thread's: no
        other act waits for the disk meanwhile."""
        hold = self.table.get(act)
        if hold is not None:
            self.table.put(msgspec.structs.replace(hold, state=hold.state | state))
        while (hold := self.table.get(act)) is not None:
            trouble = await trio.to_thread.run_sync(partial(self._files.keep, hold, synced=True))
            if trouble:
                return f"what would undo it can't be written down first: {trouble}"
            if self.table.get(act) is hold:
                return ""
        self._files.remove(act)  # the thread may have written it after it was removed
        return GIVEN_BACK

    # ------------------------------------------------------------ what becomes of a hold

    def renew(self, hold: Hold, ttl_ns: int) -> Hold:
        """Let it last so long from now; 0 for ever."""
        hold = until(hold, ttl_ns, self._clocks.now_ns(), self._clocks.mono_ns())
        self._put(hold)
        return hold

    def told(self, hold: Hold) -> None:
        """That it ends soon was said."""
        self._put(msgspec.structs.replace(hold, told=True))

    def drop(self, hold: Hold) -> None:
        """Nothing is held by it any more."""
        self.table.remove(hold.act)
        trouble = self._files.remove(hold.act)
        if trouble:
            self._say("warning", "a hold that is over stays on disk", act=hold.act, trouble=trouble)

    def _put(self, hold: Hold) -> str:
        trouble = self._files.keep(hold, synced=False)
        if trouble:
            self._say("error", NOT_KEPT, act=hold.act, trouble=trouble)
        self.table.put(hold)
        self.changed()
        return trouble
