"""What the guard must know of this node and of the agent itself, and who it is that brings the alerts."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from stoop.errors import TargetError, TargetGone
from stoop.node import HostFacts, NodeHost, ProcessFacts

ROOT_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's first pid namespace, which Falco numbers (PROC_PID_INIT_INO, include/linux/proc_ns.h)."""

MAX_ANCESTORS = 32
"""Parents looked at above a process: a deeper chain is no service manager's."""

MAX_SENDERS = 64
"""Senders remembered for protection; the one that came first is forgotten first. One Falco a node needs one."""

RESERVED = 3
"""Descriptors kept back: to look at a process takes a pidfd and a file of /proc at a time, and one is for chance."""


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


class Reserve:
    """Descriptors kept back for what must be looked at when no other is left (EMFILE). Empty until `fill`."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._wanted = False

    def fill(self) -> None:
        """Keep as many as there are to be had, until `close`."""
        self._wanted = True
        with contextlib.suppress(OSError):
            while len(self._kept) < RESERVED:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        """Let go of them for good. Idempotent."""
        self._wanted = False
        while self._kept:
            os.close(self._kept.pop())

    @contextlib.contextmanager
    def spent(self) -> Iterator[None]:
        """Inside they are free for whoever needs them."""
        wanted = self._wanted
        self.close()
        try:
            yield
        finally:
            if wanted:
                self.fill()


class Own:
    """Knows which processes are the agent's and Falco's. `facts` is rebuilt only when one of them changes.

    `reference_pid`: whose mount namespace stands for the host's. Where it can't be read (a sandbox), the agent's own.
    """

    def __init__(self, host: NodeHost, boot_id: str, reference_pid: int = 1) -> None:
        self._host = host
        self._helper = 0
        self._pacemaker = 0
        self._courier = 0
        self._workers: frozenset[int] = frozenset()
        self._senders: OrderedDict[int, tuple[frozenset[int], frozenset[str]]] = OrderedDict()
        self._unseen: set[int] = set()  # senders of whom only the number is known
        self.reserve = Reserve()
        mine = self._look(os.getpid())
        self._ancestors = self._chain(mine)
        self._cgroups = frozenset(path for _, path in mine.cgroups) if mine is not None else frozenset()
        own_mnt = _inode("/proc/self/ns/mnt")
        host_mnt = _inode(f"/proc/{reference_pid}/ns/mnt") or own_mnt
        pid_ns = _inode("/proc/self/ns/pid")
        self._base = HostFacts(
            boot_id=boot_id,
            pid_ns=pid_ns,
            mnt_ns=host_mnt,
            pid_ns_is_root=pid_ns == ROOT_PID_NAMESPACE,
            own_pids=frozenset(),
            own_cgroups=self._cgroups - {"/"},
        )
        self.facts = self._base
        self._rebuild()

    def helper(self, pid: int) -> None:
        """The helper process of now; 0 while there is none."""
        self._helper = pid
        self._rebuild()

    def pacemaker(self, pid: int) -> None:
        """The pacemaker process of now; 0 while there is none."""
        self._pacemaker = pid
        self._rebuild()

    def courier(self, pid: int) -> None:
        """The courier process of now; 0 while there is none."""
        self._courier = pid
        self._rebuild()

    def workers(self, pids: frozenset[int]) -> None:
        """The nursery of workers and the workers of now; their children, who read, are ours by that."""
        self._workers = pids
        self._rebuild()

    def sender(self, pid: int) -> None:
        """Somebody who may send alerts has connected: he, his parents and his cgroup are Falco's, not to be touched.

        One who can't be looked at now is protected by his number, and looked at again by `look_again`.
        """
        if pid in self._senders or pid <= 1:
            return
        if self._learn(pid):
            self._rebuild()

    def sender_gone(self, pid: int) -> None:
        """He has disconnected: the number may come to mean another process."""
        self._unseen.discard(pid)
        if self._senders.pop(pid, None) is not None:
            self._rebuild()

    def look_again(self) -> None:
        """About once a second: whoever could not be looked at when he connected."""
        if not self._unseen:
            return
        for pid in tuple(self._unseen):
            if not self._learn(pid):
                self._senders.pop(pid)
        self._rebuild()

    def _learn(self, pid: int) -> bool:
        """Look who a sender is; False when he has ended already."""
        self._unseen.discard(pid)
        known = frozenset({pid}), frozenset[str]()
        try:
            facts = self._see(pid)
        except TargetGone:
            return False
        except TargetError:
            self._unseen.add(pid)
        else:
            known = self._chain(facts), self._cgroups_of(facts)
        while pid not in self._senders and len(self._senders) >= MAX_SENDERS:
            self._unseen.discard(self._senders.popitem(last=False)[0])
        self._senders[pid] = known
        return True

    def _cgroups_of(self, facts: ProcessFacts) -> frozenset[str]:
        """The cgroups that stand for Falco as a whole: of a container or a service, and not one that the agent shares.

        A login session's cgroup holds everything that a person started in it, so it says nothing.
        """
        found = (path for _, path in facts.cgroups if facts.container_id or path.endswith(".service"))
        return frozenset(found) - self._cgroups - {"/"}

    def _chain(self, facts: ProcessFacts | None) -> frozenset[int]:
        """A process and its parents, without init: that is protected by its number."""
        pids: set[int] = set()
        for _ in range(MAX_ANCESTORS):
            if facts is None or facts.pid <= 1:
                break
            pids.add(facts.pid)
            facts = self._look(facts.ppid) if facts.ppid > 1 else None
        return frozenset(pids)

    def _look(self, pid: int) -> ProcessFacts | None:
        try:
            return self._see(pid)
        except TargetError:
            return None

    def _see(self, pid: int) -> ProcessFacts:
        """Raises TargetError: he has ended, or can't be looked at with the reserve either."""
        try:
            return self._facts_of(pid)
        except TargetGone:
            raise
        except TargetError:
            with self.reserve.spent():
                return self._facts_of(pid)

    def _facts_of(self, pid: int) -> ProcessFacts:
        held = self._host.hold(pid)
        held.close()
        return held.facts

    def _rebuild(self) -> None:
        children = ({self._helper, self._pacemaker, self._courier} | self._workers) - {0}
        self.facts = msgspec.structs.replace(
            self._base,
            own_pids=self._ancestors | {os.getpid()} | children,
            own_parents=frozenset({os.getpid()}) | children,
            falco_pids=frozenset().union(*(pids for pids, _ in self._senders.values())),
            falco_cgroups=frozenset().union(*(cgroups for _, cgroups in self._senders.values())),
        )
