"""Which exec a container's process belongs to, told by parents, sessions and pid namespaces. Pure.

`kubectl exec` and `docker exec` put a new process into a container from outside: the *entry*. Its parent is outside
the container, and outside its pid namespace. The container's init came the same way, and is none.

When a parent ends, its children get a new one (`prctl(PR_SET_CHILD_SUBREAPER)`, kernel: find_new_reaper): the init of
their own pid namespace, whatever they descend from. The session (`setsid(2)`) stays: a process can leave its session
but never join another, so an orphan with the entry's session descends from it, and not from the init.

Where a container has the node's pid namespace (hostPID), orphans go to the runtime's shim, which is the parent of
entries too. They can't be told apart there, and that is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stoop.errors import TargetRefused

_REAPERS = ("containerd-shim", "conmon", "docker-containe", "dockerd", "systemd", "init", "tini", "catatonit")
"""Names, or beginnings of them, of what takes orphans on a node. Names of processes of the node, in no container."""

_DEPTH = 10_000
"""Parents followed at most: more than a pid namespace usually has processes, and an end if the table has a ring."""


class Member(NamedTuple):
    """A process as a container's table has it. `ns_pids` as in ProcessFacts."""

    pid: int
    ppid: int
    sid: int
    start_ticks: int
    ns_pids: tuple[int, ...]
    comm: str


def init_of(members: Mapping[int, Member]) -> int:
    """The process that a container began with: pid 1 of its outermost pid namespace, else the oldest. 0: empty."""
    if not members:
        return 0
    depth = min(len(member.ns_pids) for member in members.values())
    outermost = [member for member in members.values() if len(member.ns_pids) == depth]
    first = min(outermost, key=lambda member: (member.ns_pids[-1] != 1, member.start_ticks, member.pid))
    return first.pid


def entry_of(pid: int, members: Mapping[int, Member], outside: Mapping[int, Member]) -> tuple[int, tuple[int, ...]]:
    """The exec entry that a member belongs to, and all that belong to it, the entry first.

    `outside`: the parents of members that are not members themselves. Raises TargetRefused with the reason.
    """
    if pid not in members:
        raise TargetRefused(f"pid {pid} is not in the container any more")
    sorter = _Sorter(members, outside)
    entry = sorter.entry(pid)
    belonging = [other for other in members if other != entry and sorter.belongs(other, entry)]
    return entry, (entry, *sorted(belonging, key=lambda other: (members[other].start_ticks, other)))


class _Sorter:
    def __init__(self, members: Mapping[int, Member], outside: Mapping[int, Member]) -> None:
        self._members = members
        self._outside = outside
        self._init = init_of(members)
        self._entries = {pid for pid in members if pid != self._init and self._came_from_outside(pid)}

    def belongs(self, pid: int, entry: int) -> bool:
        """Whether this member belongs to this entry; False where it can't be told."""
        try:
            return self.entry(pid) == entry
        except TargetRefused:
            return False

    def entry(self, pid: int) -> int:
        """The entry of one member. Raises TargetRefused."""
        chain = self._chain(pid)
        top = chain[-1]
        if top in self._entries:
            return top
        if top != self._init and self._reaped_on_the_node(top):
            raise TargetRefused(
                "its container shares the node's pid namespace: an exec can't be told from an orphan (try scope: tree)"
            )
        found = {entry for entry in self._entries if self._left_behind(chain, self._members[entry].sid)}
        if len(found) == 1:
            return found.pop()
        if found:
            raise TargetRefused("it is an orphan of a session that several execs of the container share")
        if pid == self._init:
            raise TargetRefused("it is the container's init, not part of an exec (use scope: container)")
        raise TargetRefused(
            "it belongs to the container's own processes, or to an exec that has ended: it is below no exec that lives"
        )

    def _chain(self, pid: int) -> list[int]:
        """From a member up to what has no parent among the members; an entry and the init end it too."""
        chain = [pid]
        for _ in range(_DEPTH):
            last = chain[-1]
            parent = self._members[last].ppid
            if last in self._entries or last == self._init or parent not in self._members:
                break
            chain.append(parent)
        return chain

    def _left_behind(self, chain: list[int], sid: int) -> bool:
        """Whether someone on the way up is in this session. 0: its leader is in another pid namespace, no evidence."""
        if not sid or sid == self._members[self._init].sid:
            return False
        return any(self._members[pid].sid == sid for pid in chain if pid != self._init)

    def _came_from_outside(self, pid: int) -> bool:
        member = self._members[pid]
        if member.ppid in self._members:
            return False
        parent = self._outside.get(member.ppid)
        if parent is None:
            return False
        if len(parent.ns_pids) < len(member.ns_pids):
            return True
        # The parent is in the same pid namespace: an orphan's new parent, or (hostPID) perhaps a true one.
        return parent.ns_pids[-1] != 1 and not _is_reaper(parent)

    def _reaped_on_the_node(self, pid: int) -> bool:
        parent = self._outside.get(self._members[pid].ppid)
        return parent is not None and len(parent.ns_pids) == 1 and _is_reaper(parent)


def _is_reaper(process: Member) -> bool:
    return process.ns_pids[-1] == 1 or process.comm.startswith(_REAPERS)
