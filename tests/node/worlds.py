"""A node of values and this machine, as the tests that both must pass see them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Protocol

from agent.node.host import LinuxHost
from stoop.node import NodeHost
from stoop.testing_node import NOW_NS, FakeHost
from tests.real.conftest import Box, Process, await_that, comm

PATIENCE_S = 10.0
CONTAINER_ID = "c0ffee" * 10 + "1234"

MakeBox = Callable[..., Box]


class World(Protocol):
    """A node and what happens on it."""

    @property
    def host(self) -> NodeHost: ...

    @property
    def now_ns(self) -> int:
        """CLOCK_REALTIME."""
        ...

    def process(self) -> int:
        """A process of the node that has just begun."""
        ...

    def tree(self) -> tuple[int, int, int]:
        """A process, its child and that one's child."""
        ...

    def contained(self) -> tuple[str, int]:
        """A container's id and its only process."""
        ...

    def end(self, pid: int) -> None:
        """That process ends, and nothing is left of it."""
        ...


class FakeWorld:
    """Values."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.now_ns = NOW_NS
        self._next = 100

    def process(self) -> int:
        return self._add()

    def tree(self) -> tuple[int, int, int]:
        top = self._add()
        middle = self._add(top)
        return top, middle, self._add(middle)

    def contained(self) -> tuple[str, int]:
        self._next += 1
        self.host.add_in_container(self._next, CONTAINER_ID)
        return CONTAINER_ID, self._next

    def end(self, pid: int) -> None:
        self.host.processes[pid].exit()

    def _add(self, parent: int = 1) -> int:
        self._next += 1
        self.host.add(self._next, ppid=parent)
        return self._next


class LinuxWorld:
    """This machine."""

    def __init__(self, host: LinuxHost, start: Callable[..., Process], make_box: MakeBox) -> None:
        self.host = host
        self._start = start
        self._make_box = make_box
        self._started: dict[int, Process] = {}
        self._orphans: list[int] = []

    @property
    def now_ns(self) -> int:
        return time.time_ns()

    def process(self) -> int:
        return self._begin("sleep", "1000")

    def tree(self) -> tuple[int, int, int]:
        top = self._begin("sh", "-c", "sh -c 'sleep 1000; :' & wait")
        await_that(lambda: len(self.host.descendants(top)) == 2, "two descendants")
        middle, last = self.host.descendants(top)
        self._orphans += [middle, last]
        return top, middle, last

    def contained(self) -> tuple[str, int]:
        box = self._make_box()
        return box.container_id, self._begin("sleep", "1000", preexec_fn=box.enter)

    def close(self) -> None:
        """End what nobody else ends. Their parents live still, so the numbers are theirs."""
        for pid in self._orphans:
            os.kill(pid, signal.SIGKILL)
        self.host.close()

    def end(self, pid: int) -> None:
        self._started[pid].kill()
        self._started[pid].wait(PATIENCE_S)

    def _begin(self, *argv: str, **options: object) -> int:
        process = self._start(*argv, **options)
        self._started[process.pid] = process
        await_that(lambda: comm(process.pid) == argv[0], "it has its name")
        return process.pid
