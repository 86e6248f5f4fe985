"""What a person asks of the running agent, over the control socket: the answer to each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from agent.condition import status
from stoop.control import EVERY_RULE, Active, AnyRequest, Arm, ControlError, Extend, Reload, SetMode, Status, Undo
from stoop.holds import shown

if TYPE_CHECKING:
    from agent.reflex import Reflex

SYNC_SECONDS = 2.0
"""How long a person waits for the disk before his answer: some ms as a rule, below the 5 s that the command waits."""


class Asked:
    """Answers for one reflex."""

    def __init__(self, reflex: Reflex) -> None:
        self._reflex = reflex

    async def answer(self, request: AnyRequest) -> Any:
        """The result of a request on the control socket. Raises UserError."""
        if isinstance(request, Status):
            return status(self._reflex)
        if isinstance(request, SetMode):
            result = self._set_mode(request)
            return result | {"synced": result["kept"] and await self._synced()}
        if isinstance(request, Arm):
            result = self._arm(request.rule)
            await self._synced()
            return result
        if isinstance(request, Reload):
            self._reflex.reload()
            return {"asked": True}
        if isinstance(request, Active):
            return shown(self._reflex.holdings.table, self._reflex.clocks.mono_ns(), self._reflex.giveback.troubles())
        if isinstance(request, Undo):
            return await self._reflex.giveback.undo(request.name)
        if isinstance(request, Extend):
            held = self._reflex.giveback.extend(request.name, int(request.for_s * 1e9))
            return shown(held, self._reflex.clocks.mono_ns(), self._reflex.giveback.troubles())
        raise ControlError("that can't be asked here")

    async def _synced(self) -> bool:
        """What was switched holds already; wait until it outlives a power cut too, but not for ever."""
        why = f"the disk did not take it within {SYNC_SECONDS:g} s"
        with trio.move_on_after(SYNC_SECONDS):
            why = await trio.to_thread.run_sync(self._reflex.switches.sync, abandon_on_cancel=True)
        if why:
            self._reflex.warn("a switch may not outlive a power cut", error=why)
        return not why

    def _set_mode(self, request: SetMode) -> dict[str, Any]:
        was = self._reflex.mode()
        until_ns = self._reflex.clocks.now_ns() + int(request.for_s * 1e9) if request.for_s is not None else 0
        kept = self._reflex.switches.switch(request.mode, until_ns)
        self._reflex.memory.forget_targets()  # what was only watched until now is no repeat
        self._reflex.say("warning", "the mode was switched", was=str(was), now=str(request.mode), for_s=request.for_s)
        return {"was": str(was), "mode": str(request.mode), "until_ns": until_ns, "kept": kept}

    def _arm(self, rule: str) -> dict[str, Any]:
        limits = self._reflex.keeps.limits
        rules = list(limits.disarmed) if rule == EVERY_RULE else [rule]
        armed = [name for name in rules if limits.arm(name)]
        if not armed and rule != EVERY_RULE:
            raise ControlError(f"rule {rule!r} is not disarmed", hint="`stoop status` lists those that are")
        self._reflex.memory.forget_targets()  # what it would have done meanwhile is no repeat
        for name in armed:
            self._reflex.switches.arm(name)
            self._reflex.say("warning", "a rule was armed again", rule=name)
        return {"armed": armed}
