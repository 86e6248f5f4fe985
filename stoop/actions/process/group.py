"""Several processes that are to get one signal: found, held and kept from forking until two looks agree.

A process that is listed is not yet one that may be signalled: between the list and the pidfd its number can come to
mean another. So each is held, its facts are read, and it must show that it belongs.

While they are gathered nobody may fork. In a container its cgroup is frozen for that time (some ms, bystanders in it
too); elsewhere each process is stopped (SIGSTOP) as it is found, which a fork under way still outruns: hence the
second look. What was frozen or stopped here is thawed or continued here, whatever happens.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.node import ContainerFacts, HeldProcess, NodeHost, ProcessFacts
from stoop.spec import (
    ActContext,
)

MAX_GROUP = 512
"""Processes gathered in one step. Each costs some 100 µs and a file descriptor. A kill of a tree with more goes on in
portions (`sweep`); for what else is asked of so many there is `scope: container`."""

SETTLE_NS = 10_000_000
"""How long to wait, after the last one was found, until all stand still: what is stopped usually stands within 0.1 ms,
what hangs in the kernel never does."""

GATHER_NS = 100_000_000
"""How long to gather at most. MAX_GROUP of them take some 60 ms; only what forks all the while comes near it."""

_STILL = frozenset("TtX")


@contextmanager
def frozen(host: NodeHost, container: ContainerFacts | None) -> Iterator[bool]:
    """The container stands still inside; False where that could not be had (no container, no freezer).

    It goes on at the end, if it was frozen here and nobody wants it to stand longer.
    """
    done = still = False
    try:
        if container is not None:
            try:
                done = host.pause(container)
                still = done or host.is_frozen(container)
            except (TargetError, ActFailed):
                still = done  # each is stopped by itself then
        yield still
    finally:
        if done and container is not None:
            host.go_on(container)


class Group:
    """The processes of one act. It owns what it holds, the root excepted: `close` it, or hand on `extra`."""

    def __init__(
        self, ctx: ActContext, root: HeldProcess, belongs: Callable[[ProcessFacts, Group], bool], *, resumes: bool
    ) -> None:
        self._host = ctx.host
        self._protects = ctx.protects
        self._belongs = belongs
        self._resumes = resumes  # they live on: what was stopped before must be known
        self.root = root
        self.members: dict[int, HeldProcess] = {root.facts.pid: root}
        self.spared: dict[int, str] = {}
        self.lost: set[int] = set()  # seen, and gone or not shown to belong when it was held
        self.most = MAX_GROUP
        self.settled = self.late = False
        self._stopped: dict[int, HeldProcess] = {}
        self._moving: dict[int, HeldProcess] = {}  # stopped, and not yet seen to stand still
        self._frozen_container = ""

    @property
    def extra(self) -> tuple[HeldProcess, ...]:
        """What is held beside the root."""
        return tuple(held for held in self.members.values() if held is not self.root)

    @property
    def stopped(self) -> tuple[HeldProcess, ...]:
        """Those that were stopped here: they ran before."""
        return tuple(self._stopped.values())

    @property
    def full(self) -> bool:
        """Whether there were more than `most`."""
        return len(self.members) >= self.most

    def gather(self, scan: Callable[[Group], Iterable[int]], frozen_container: str) -> None:
        """Take in what `scan` finds until a look finds nothing new and all stand still, or until time is up.

        `frozen_container`: the id of the container that stands still, "" for none. Raises ActFailed, TargetRefused.
        """
        self._frozen_container = frozen_container
        begun = last = time.monotonic_ns()
        self._stop(self.root)
        while not self.full:
            # In this order: a fork that was under way has put its child in place when its parent stands still.
            still = self._stand_still()
            new = self._admit(scan(self))
            now = time.monotonic_ns()
            last = now if new else last
            self.settled = still and not new
            self.late = not self.settled and now - begun > GATHER_NS
            if self.settled or self.late or now - last > SETTLE_NS:
                return

    def moves(self, pid: int) -> bool:
        """Whether this member, which was stopped, has not come to a stand yet."""
        held = self._moving.get(pid)
        if held is None:
            return False
        if held.state() in _STILL:
            del self._moving[pid]
            return False
        return True

    def _stand_still(self) -> bool:
        self._moving = {pid: held for pid, held in self._moving.items() if held.state() not in _STILL}
        return not self._moving

    def _admit(self, pids: Iterable[int]) -> int:
        return sum(self.admit(pid) for pid in pids)

    def admit(self, pid: int) -> bool:
        """Take one in, held and kept from running, if it is new, belongs here and may be acted on."""
        if pid in self.members or pid in self.spared or pid in self.lost or self.full:
            return False
        try:
            held = self._host.hold(pid)
        except TargetGone:
            self.lost.add(pid)
            return False
        except TargetError as error:
            self.spared[pid] = error.reason
            return False
        if self._keep(held):
            return True
        held.close()
        return False

    def _keep(self, held: HeldProcess) -> bool:
        facts = held.facts
        reason = self._protects(facts) or ("below one that is spared" if facts.ppid in self.spared else "")
        if reason:
            self.spared[facts.pid] = reason
        elif not self._belongs(facts, self):
            self.lost.add(facts.pid)
        else:
            self.members[facts.pid] = held
            self._stop(held)
            return True
        return False

    def _stop(self, held: HeldProcess) -> None:
        facts = held.facts
        stands = self._frozen_container and facts.container_id == self._frozen_container
        # One that was stopped before stays stopped afterwards: it is not ours to continue.
        before = self._resumes and held.state() in _STILL
        if not stands and not before and held.signal(signal.SIGSTOP):
            self._stopped[facts.pid] = self._moving[facts.pid] = held

    def send(self, signo: int) -> int:
        """The signal to each; how many got it. Raises ActFailed when the first can't be signalled at all."""
        return sum(held.signal(signo) for held in self.members.values())

    def resume(self) -> None:
        """Continue what was stopped here."""
        for held in self._stopped.values():
            held.signal(signal.SIGCONT)
        self._stopped.clear()

    def close(self) -> None:
        """Let go of all but the root."""
        for held in self.extra:
            held.close()


def descendants_of(host: NodeHost, group: Group) -> list[int]:
    """Descendants of the root, and of those that lost their parent while we looked."""
    found: dict[int, None] = {}
    for pid in group.members:
        if pid not in found:
            found |= dict.fromkeys(host.descendants(pid))
    return list(found)


def belongs_to_tree(facts: ProcessFacts, group: Group) -> bool:
    """Whether its parent is one of the group."""
    return facts.ppid in group.members
