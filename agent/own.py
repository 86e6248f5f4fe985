"""What the guard must know of this node and of the agent itself, and who it is that brings the alerts."""

from __future__ import annotations

import os
from collections import OrderedDict

import msgspec

from stoop.errors import TargetError
from stoop.spec import HostFacts, NodeHost, ProcessFacts

ROOT_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's first pid namespace, which Falco numbers (PROC_PID_INIT_INO, include/linux/proc_ns.h)."""

MAX_ANCESTORS = 32
"""Parents looked at above a process: a deeper chain is no service manager's."""

MAX_SENDERS = 64
"""Senders remembered for protection; the one that came first is forgotten first. One Falco a node needs one."""

REFERENCE_PIDS = (1,)
"""Whose mount namespace stands for the host's. Where it can't be read (a sandbox), the agent's own does."""


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


class Own:
    """Knows which processes are the agent's and Falco's. `facts` is rebuilt only when one of them changes."""

    def __init__(self, host: NodeHost, boot_id: str) -> None:
        self._host = host
        self._helper = 0
        self._pacemaker = 0
        self._senders: OrderedDict[int, tuple[frozenset[int], frozenset[str]]] = OrderedDict()
        mine = self._look(os.getpid())
        self._ancestors = self._chain(mine)
        self._cgroups = frozenset(path for _, path in mine.cgroups) if mine is not None else frozenset()
        own_mnt = _inode("/proc/self/ns/mnt")
        host_mnt = next(filter(None, (_inode(f"/proc/{pid}/ns/mnt") for pid in REFERENCE_PIDS)), own_mnt)
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

    def sender(self, pid: int) -> None:
        """Somebody who may send alerts has connected: he, his parents and his cgroup are Falco's, not to be touched."""
        if pid in self._senders or pid <= 1:
            return
        facts = self._look(pid)
        if facts is None:
            return
        while len(self._senders) >= MAX_SENDERS:
            self._senders.popitem(last=False)
        self._senders[pid] = (self._chain(facts), self._cgroups_of(facts))
        self._rebuild()

    def sender_gone(self, pid: int) -> None:
        """He has disconnected: the number may come to mean another process."""
        if self._senders.pop(pid, None) is not None:
            self._rebuild()

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
            held = self._host.hold(pid)
        except TargetError:
            return None
        held.close()
        return held.facts

    def _rebuild(self) -> None:
        children = {self._helper, self._pacemaker} - {0}
        self.facts = msgspec.structs.replace(
            self._base,
            own_pids=self._ancestors | {os.getpid()} | children,
            falco_pids=frozenset().union(*(pids for pids, _ in self._senders.values())),
            falco_cgroups=frozenset().union(*(cgroups for _, cgroups in self._senders.values())),
        )
