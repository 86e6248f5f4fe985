"""The network hands from the moment they are wanted: who comes before they have started waits for them.

They are two processes and a trial of each, some tenths of a second. The agent is ready before that, and what an earlier
life held may be due by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from agent.node.network import Network, open_network
from stoop.actions.network.acting import NOT_HERE
from stoop.errors import ActFailed, TargetRefused
from stoop.network import Applied, Counters, UndoReport
from stoop.node import HeldProcess

START_SECONDS = 8.0
"""How long an act or an undo waits for the hands: some 0.5 s usually, and below the 10 s that an undo may take."""

STOPPING = "the agent is stopping"


class NetworkSoon:
    """The NetworkHands of the node, started by `serve`."""

    def __init__(self) -> None:
        self._network: Network | None = None
        self._settled = trio.Event()
        self.unavailable = ""
        """Why nothing of this can be done on this node, "" when it can and while that is not known yet."""

    async def serve(self, reference_pid: int, tell: Callable[[str], None]) -> None:
        """Start the hands and keep them until cancelled. `tell` gets the reason where nothing can be done.

        `reference_pid`: whose network namespace is the node's own.
        """
        try:
            async with open_network(reference_pid) as network:
                self._network = network
                self._settle(network.unavailable, tell)
                await trio.sleep_forever()
        except TargetRefused as error:
            self._settle(error.reason, tell)
        finally:
            if self._network is not None:
                self._network, self.unavailable = None, STOPPING

    def _settle(self, reason: str, tell: Callable[[str], None]) -> None:
        self.unavailable = reason
        self._settled.set()
        if reason:
            tell(reason)

    async def _started(self) -> Network:
        """Raises ActFailed where there are none, and when they do not start in time."""
        with trio.move_on_after(START_SECONDS):
            await self._settled.wait()
            if self._network is None or self.unavailable:
                raise ActFailed(NOT_HERE.format(self.unavailable))
            return self._network
        raise ActFailed(NOT_HERE.format(f"its helpers did not start within {START_SECONDS:g} s"))

    async def cut(self, held: HeldProcess, act: str, policy: Any, keep: Callable[[dict[str, Any]], None]) -> Applied:
        """As `Network.cut`."""
        return await (await self._started()).cut(held, act, policy, keep)

    async def counters(self, state: dict[str, Any]) -> Counters:
        """As `Network.counters`."""
        return await (await self._started()).counters(state)

    async def undo(self, state: dict[str, Any]) -> UndoReport:
        """As `Network.undo`. Raises ActFailed where there are no hands."""
        return await (await self._started()).undo(state)
