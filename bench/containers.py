"""From the alert written to a container dead (of 1 and of 50 processes) or frozen, beside the harness's own write."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.agent import alert_line, running
from bench.kills import IDLE_SECONDS, ROUNDS
from bench.table import Row, ms, percentile
from bench.victims import EXIT_SECONDS, Victim, idle

GOAL_SECONDS = 0.6e-3

SETTLED_SECONDS = 0.03
"""A container lives for so long before something happens to it: the agent has learned of it by then (where it is, and
whose pod's)."""

PER_ROUND = {1: 200, 50: 20}
"""Samples a round, by the number of processes: fifty take a tenth of a second to be started."""

_RULE = """
- rule: Answer
  match: {{rules: [Terminal shell in container]}}
  actions: [{{action: Do it, actionner: "{actionner}"}}]
"""

_numbers = itertools.count()


def v2_mount() -> Path | None:
    """Where cgroup v2 is mounted, alone or beside v1."""
    root = Path("/sys/fs/cgroup")
    return next((path for path in (root, root / "unified") if (path / "cgroup.controllers").exists()), None)


CLONE_NEWPID = 0x20000000
"""unshare(2), setns(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def new_pid_namespace() -> Iterator[None]:
    """Children that are started inside are in a pid namespace of their own; the first is its init."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        if _libc.unshare(CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "unshare")
        yield
    finally:
        if _libc.setns(own, CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(own)


class Container:
    """A v2 cgroup named as the kubelet names them, with victims in a pid namespace of theirs. `end` removes it."""

    def __init__(self, mount: Path, size: int) -> None:
        self.id = uuid.uuid4().hex * 2
        self._top = mount / f"stoop-bench-{os.getpid()}-{next(_numbers)}"
        self.directory = self._top / "kubepods" / f"pod{uuid.uuid4()}" / self.id
        self.directory.mkdir(parents=True)
        with new_pid_namespace():
            self.victims = [Victim() for _ in range(size)]
        for victim in self.victims:
            (self.directory / "cgroup.procs").write_text(str(victim.pid))
        self._kill = os.open(self.directory / "cgroup.kill", os.O_WRONLY)
        self._freeze = os.open(self.directory / "cgroup.freeze", os.O_WRONLY)
        self._events = os.open(self.directory / "cgroup.events", os.O_RDONLY)

    def kill(self) -> None:
        """The floor: the harness writes it itself."""
        os.write(self._kill, b"1")

    def freeze(self) -> None:
        """The floor: the harness writes it itself."""
        os.write(self._freeze, b"1")

    def dead_after(self, act: Callable[[], object]) -> float:
        """Seconds from before `act` until the last process was seen to have exited."""
        begun = time.perf_counter()
        act()
        init, *others = self.victims
        for victim in others:
            victim.exited_after(lambda: None)
            victim.end()  # an init ends only when all of its namespace have been reaped (pid_namespaces(7))
        init.exited_after(lambda: None)
        return time.perf_counter() - begun

    def frozen_after(self, act: Callable[[], object]) -> float:
        """Seconds from before `act` until the kernel said that all stand still.

        Read again and again: its notifications come 10 ms apart at least.
        """
        begun = time.perf_counter()
        act()
        while b"frozen 1" not in os.pread(self._events, 100, 0):
            if time.perf_counter() - begun > EXIT_SECONDS:
                raise RuntimeError(f"{self.directory} is not frozen")
        taken = time.perf_counter() - begun
        idle(IDLE_SECONDS)  # the agent looks too, and is not to find it thawed
        return taken

    def end(self) -> None:
        """Thaw, kill, remove."""
        os.write(self._freeze, b"0")
        for victim in reversed(self.victims):
            victim.end()
        for fd in (self._kill, self._freeze, self._events):
            os.close(fd)
        for path in (self.directory, self.directory.parent, self.directory.parent.parent, self._top):
            path.rmdir()


Timed = Callable[[Container, Callable[[], object]], float]


def _sender(sock: socket.socket, container: Container) -> Callable[[], object]:
    pid = container.victims[0].pid
    return partial(sock.sendall, alert_line(pid, os.getpid(), {"container.id": container.id[:12]}))


def _measure(sock: socket.socket, size: int, timed: Timed, floor: Callable[[Container], None]) -> list[list[float]]:
    """[the agent, the harness], in turn."""
    mount = v2_mount()
    assert mount is not None
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS * PER_ROUND[size]):
        for found, agent in zip(times, (True, False), strict=True):
            container = Container(mount, size)
            try:
                act = _sender(sock, container) if agent else partial(floor, container)
                idle(SETTLED_SECONDS)
                found.append(timed(container, act))
            finally:
                container.end()
    return times


def _row(what: str, times: list[list[float]]) -> Row:
    agent, floor = times
    over = percentile(agent, 0.5) - percentile(floor, 0.5)
    return Row(
        what,
        f"{ms(percentile(floor, 0.5))} p50, {ms(percentile(floor, 0.99))} p99",
        f"{ms(percentile(agent, 0.5))} p50, {ms(percentile(agent, 0.99))} p99; over it {ms(over)}",
        f"over it ≤ {ms(GOAL_SECONDS)} p50",
        over <= GOAL_SECONDS,
        len(agent),
    )


@contextlib.contextmanager
def _agent(actionner: str) -> Iterator[socket.socket]:
    with running(_RULE.format(actionner=actionner)) as agent, agent.connect() as sock:
        yield sock


def contained() -> Iterator[Row]:
    """Containers killed and frozen. Needs root and cgroup v2."""
    if os.geteuid() or v2_mount() is None:
        yield Row("containers", "-", "needs root and cgroup v2: not measured", "-", None)
        return
    with _agent("container:kill") as sock:
        for size in PER_ROUND:
            times = _measure(sock, size, Container.dead_after, Container.kill)
            yield _row(f"container of {size} dead, agent idle", times)
    with _agent("container:freeze") as sock:
        yield _row("container frozen, agent idle", _measure(sock, 1, Container.frozen_after, Container.freeze))
