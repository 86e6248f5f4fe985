"""A tree that is too large for one step: gathered to its end while nothing of it runs, then killed, in small portions.

`Group` gathers the first some hundred at once, for most trees have fewer. What is larger, or forks faster than that, is
gone through here without holding up other acts, and stays frozen (in a container) or stopped (elsewhere) meanwhile. A
process that stands still can't fork, so its children, listed once after that, are all of them: each is looked at once,
and whatever bounds the tree (pids.max, RLIMIT_NPROC, memory) bounds the work. Nobody is killed before all are held, for
an orphan can't be told from another process.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable

import trio

from stoop.actions.process.group import Group
from stoop.errors import ActFailed, TargetError
from stoop.node import ContainerFacts, NodeHost

MAX_TREE = 30_000
"""Processes of one tree that are ended at most, each a descriptor and some 2 KiB meanwhile; nearly all pids that a node
has by default (kernel.pid_max 32,768)."""

SWEEP_SECONDS = 30.0
"""What such an act gets: some 0.15 ms a process on a quiet machine, and a multiple amid a storm of forks."""

PORTION = 4
"""Processes looked at before others get their turn: some 0.6 ms."""

STILL_SECONDS = 2.0
"""How long to wait until a frozen container stands still as a whole: thousands of processes take more than the moment
that a freeze waits itself. What hangs in the kernel does not fork there, and is frozen when it comes out."""

STUCK_NS = 500_000_000
"""How long to wait for those that were stopped when none of them comes to a stand: each must run once more for that,
beside all others that are runnable."""

PAUSE_S = 0.001


class Sweep:
    """A tree on its way to its end. It owns the group and its stillness: `close` it.

    Closed before its end it kills whom it holds, for they were to be killed and are stopped, and lets the rest run on.
    `container`: that which stands still as a whole, if any. `go_on`: has it run again; twice is harmless.
    """

    def __init__(
        self, host: NodeHost, group: Group, container: ContainerFacts | None, go_on: Callable[[], None]
    ) -> None:
        self._host = host
        self._container = container
        self._go_on = go_on
        self._is_sent = False
        self._looked = 0
        self.group = group
        self.count = 0
        group.most = min(MAX_TREE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    async def run(self) -> None:
        """Gather and kill; `group.members` are those whose end is to be seen. Raises ActFailed when it can't signal."""
        try:
            await self._come_to_a_stand()
            await self._gather()
            self._send()
        except ActFailed:
            self.close()
            raise

    def alive(self) -> int:
        """How many of those that were found live."""
        return sum(not held.has_exited() for held in self.group.members.values())

    def close(self) -> None:
        """Let go of it. Idempotent."""
        try:
            self._send()
        except ActFailed:
            pass  # said already, or its record says that it was not done
        finally:
            self.group.close()

    async def _come_to_a_stand(self) -> None:
        if self._container is None:
            return
        with trio.move_on_after(STILL_SECONDS):
            while not self._host.is_frozen(self._container):  # noqa: ASYNC110 - the kernel tells nobody of it on v1
                await trio.sleep(PAUSE_S)

    async def _gather(self) -> None:
        """Every process below the root. All are stopped first, and listed once more when they have come to a stand."""
        group, host = self.group, self._host
        fresh = list(group.members)
        last = time.monotonic_ns()
        while fresh and not group.full:
            again, count = [], len(group.members)
            for pid in fresh:
                moves = group.moves(pid)  # before its children are listed
                for child in host.children(pid):
                    if group.admit(child):
                        again.append(child)
                        await self._take_turns()
                if moves:
                    again.append(pid)
                await self._take_turns()
            now = time.monotonic_ns()
            if len(again) < len(fresh) or len(group.members) > count:
                last = now
            elif now - last > STUCK_NS:
                return  # it hangs in the kernel, with the stop waiting for it: taken as it is
            else:
                await trio.sleep(PAUSE_S)
            fresh = again
        group.settled = not fresh

    async def _take_turns(self) -> None:
        self._looked += 1
        if self._looked % PORTION == 0:
            await trio.lowlevel.checkpoint()

    def _send(self) -> None:
        """SIGKILL to all that are held, then what stands still goes on: v1's freezer holds signals back till then."""
        if self._is_sent:
            return
        self._is_sent = True
        try:
            self.count = self.group.send(signal.SIGKILL)
        finally:
            self._thaw()

    def _thaw(self) -> None:
        self.group.resume()
        try:
            self._go_on()
        except (TargetError, ActFailed):
            return  # it has gone with the last of them
