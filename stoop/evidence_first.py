"""Evidence before an act that destroys: the target stands still, a snapshot is read, and the act follows in any case.

The capture goes on by itself when the act can wait no longer; whatever came of it by then, the act's record says so.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from stoop.actions.evidence.snapshot import SnapshotParameters, wanted
from stoop.actions.evidence.standing import Standing, container_of, stand
from stoop.captures import Captured
from stoop.errors import ActFailed, TargetError
from stoop.node import Capture
from stoop.rules.model import RuleForm
from stoop.runs import Ready
from stoop.spec import (
    ActContext,
    Outcome,
    Scope,
)

PARAMETERS = SnapshotParameters()
"""As `evidence:snapshot` keeps without any: of the container, or of the tree where there is none."""

NO_HANDS = "none: its workers are not started yet"

LATE = "the act did not wait longer: the capture goes on, and may have a bundle yet"

NOT_WRITTEN = "all was read, and not yet written when this was recorded"

SETTLE_SECONDS = 0.25
"""How long a record waits, after its act, for the bundle to be on disk and have its name: usually some 10 ms."""


class First(msgspec.Struct, frozen=True):
    """The configuration's word. `always`: for rules that say nothing of it. `deadline_s`: how long an act waits."""

    always: bool = False
    deadline_s: float = 0.5

    def applies(self, form: RuleForm) -> bool:
        """Whether this rule's acts that destroy wait for evidence."""
        return self.always if form.evidence_first is None else form.evidence_first

    def precedes(self, form: RuleForm, ready: Ready) -> bool:
        """Whether this act does. On the way of every act, so in this order."""
        wanted = form.evidence_first
        if not (self.always if wanted is None else wanted):
            return False
        spec = ready.action.spec
        return spec.destroys and spec.scope is Scope.NODE


NEVER = First()
"""For whoever takes none."""


class Preserved:
    """Evidence of one act's target, and the target that still stands: `close` it once the act is begun."""

    def __init__(self) -> None:
        self._standing: Standing | None = None
        self._capture: Capture | None = None
        self._why = ""
        self._waited_s = 0.0
        self._is_late = False

    async def take(self, ctx: ActContext, deadline_s: float) -> None:
        """Return once all was read of the target, or at the deadline (seconds). `close` is due in any case."""
        begun = trio.current_time()
        self._begin(ctx)
        if self._capture is not None:
            with trio.move_on_after(deadline_s) as scope:
                await self._capture.read()
            self._is_late = scope.cancelled_caught
        self._waited_s = trio.current_time() - begun

    def _begin(self, ctx: ActContext) -> None:
        hands = ctx.host.capture
        if hands is None:
            self._why = NO_HANDS
            return
        try:
            scope = "container" if container_of(ctx) is not None else "tree"
            self._standing = standing = stand(ctx, scope, still=True)
        except (TargetError, ActFailed) as error:
            self._why = error.reason
            return
        self._capture = hands.begin(wanted(ctx, PARAMETERS), standing.processes, standing.container)

    def close(self) -> None:
        """What was made to stand still goes on, if it lives. Idempotent."""
        if self._standing is not None:
            self._standing.close()

    async def settle(self) -> None:
        """Wait a little for the bundle, so that the record can name it. The agent's stop does not cut it short."""
        if self._capture is not None:
            with trio.CancelScope(deadline=trio.current_time() + SETTLE_SECONDS, shield=True):
                await self._capture.ended()

    def told(self, outcome: Outcome) -> Outcome:
        """The same outcome; `details.evidence` says what became of the evidence, as of now."""
        captured = self._capture.captured if self._capture is not None else Captured(False, self._why)
        if captured is None:
            captured = Captured(False, LATE if self._is_late else NOT_WRITTEN)
        evidence: dict[str, Any] = {"taken": captured.ok} | captured.details
        evidence["waited_ms"] = round(self._waited_s * 1000, 1)
        if captured.reason:
            evidence["reason"] = captured.reason
        if self._is_late:
            evidence["late"] = True
        if self._standing is not None and self._standing.moves:
            evidence["not_frozen"] = self._standing.moves
        return msgspec.structs.replace(outcome, details=outcome.details | {"evidence": evidence})
