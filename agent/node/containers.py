"""Containers as their cgroups show them: which directories, who is in them, freeze, kill, wait until they are empty."""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import trio

from agent.node.cgroup import FREEZER, V2, Cgroups, own_paths
from agent.node.container_id import locate
from agent.node.container_index import ContainerIndex
from agent.node.held import open_pidfd
from agent.node.procfs import Procfs
from agent.node.session import Member, init_of
from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.node import ContainerFacts, ProcessFacts

MAX_MEMBERS = 4096
"""Members of a container whose parents and sessions are read at most: some 20 µs each."""

SEEN_CONTAINERS = 256
"""Containers of processes held lately, kept to spare a search of the whole hierarchy; some 300 bytes each."""

KILL_ROUNDS = 8
"""Freeze, signal, thaw so often at most: a second round is needed only when a freeze did not complete in time."""

SHORTEST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.1
"""Pauses between looks whether a cgroup is empty; each is half as long again as the one before. epoll counts in ms."""


_Switch = Callable[[str, bool], bool]


class _Seen(NamedTuple):
    """Where a process that was held has its container. No paths: two processes said different things."""

    paths: dict[str, str]
    pod_uid: str


class _Place(NamedTuple):
    container_id: str
    pod_uid: str
    v2: str
    freezer: str


class Containers:
    """The containers of this node. It remembers where those of processes held lately are."""

    def __init__(self, procfs: Procfs, cgroups: Cgroups) -> None:
        self._procfs = procfs
        self._cgroups = cgroups
        self._depth = len(procfs.status(os.getpid()).ns_pids)
        self.index = ContainerIndex(cgroups)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._frozen: dict[str, tuple[str, _Switch]] = {}  # by container id, for as long as it is frozen

    # ------------------------------------------------------------ finding

    def remember(self, facts: ProcessFacts) -> None:
        """A process of a container was held: its own cgroups prove better than any search where the container is."""
        paths = own_paths(facts.cgroups)
        known = self._seen.get(facts.container_id)
        if known is not None and known.paths != paths:
            paths = {}
        self._seen[facts.container_id] = _Seen(paths, facts.pod_uid)
        self._seen.move_to_end(facts.container_id)
        if len(self._seen) > SEEN_CONTAINERS:
            self._seen.popitem(last=False)

    def find(self, container_id: str) -> ContainerFacts:
        """The container whose id begins so. Raises TargetGone (none), TargetRefused (two)."""
        place = self._known(container_id) or self._search(container_id)
        members = self._members(place.v2, place.freezer)
        return ContainerFacts(
            container_id=place.container_id,
            pod_uid=place.pod_uid,
            boot_id=self._procfs.boot_id,
            cgroup_v2=place.v2,
            cgroup_freezer=place.freezer,
            init_pid=self._init(members),
            members=tuple(sorted(members)),
        )

    def _known(self, container_id: str) -> _Place | None:
        full = [container_id]  # as a process that is held tells it
        if container_id not in self._seen:
            full = [known for known in self._seen if known.startswith(container_id)]
        if len(full) != 1:
            return None
        seen = self._seen[full[0]]
        v2, freezer = self._cgroups.directories(seen.paths)
        return _Place(full[0], seen.pod_uid, v2, freezer) if v2 or freezer else None

    def _search(self, container_id: str) -> _Place:
        by_hierarchy = self.index.find(container_id)
        found = [place for place in by_hierarchy if place]
        if not found:
            raise TargetGone(f"no cgroup is container {container_id[:12]}")
        if len({place.container_id for place in found}) > 1:
            raise TargetRefused(f"two containers have an id that begins with {container_id}")
        v2, freezer = (place.directory if place else "" for place in by_hierarchy)
        return _Place(found[0].container_id, found[0].pod_uid, v2, freezer)

    # ------------------------------------------------------------ members

    def members(self, container: ContainerFacts) -> set[int]:
        """Pids in its cgroups and below, read now."""
        return self._members(container.cgroup_v2, container.cgroup_freezer)

    def _members(self, *directories: str) -> set[int]:
        return {pid for directory in directories if directory for pid in self._cgroups.members(directory)}

    def _init(self, members: set[int]) -> int:
        if self._is_first_inside(min(members, default=0)):
            return min(members)
        known = {}
        for member in self._read(members):
            # One level below ours and the first there. The usual case, and it spares reading all the others.
            if member.ns_pids[-1] == 1 and len(member.ns_pids) == self._depth + 1:
                return member.pid
            known[member.pid] = member
        return init_of(known)

    def _is_first_inside(self, pid: int) -> bool:
        """Whether it is the first of a pid namespace below ours: of the lowest number that is nearly always so."""
        try:
            ns_pids = self._procfs.status(pid).ns_pids if pid else ()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return len(ns_pids) == self._depth + 1 and ns_pids[-1] == 1

    def table(self, pids: Iterable[int]) -> dict[int, Member]:
        """Parents, sessions and starts of these processes; those that have gone are left out."""
        return {member.pid: member for member in self._read(pids)}

    def _read(self, pids: Iterable[int]) -> Iterator[Member]:
        for pid in sorted(pids)[:MAX_MEMBERS]:
            try:
                stat, status = self._procfs.stat(pid), self._procfs.status(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield Member(pid, stat.ppid, stat.sid, stat.start_ticks, status.ns_pids, stat.comm)

    # ------------------------------------------------------------ acting

    def freeze(self, container: ContainerFacts, frozen: bool) -> bool:
        """Freeze or thaw; True when this changed it: False without a freezer, and when it was so already.

        Raises TargetRefused for the agent's own cgroup (it would stop itself), ActFailed when it can't be written.
        """
        if frozen:
            return self._freeze(container)
        # What was frozen here, also when nobody lives in it any more. After a restart of the agent: whatever is frozen.
        ours = self._frozen.pop(container.container_id, None)
        switches = [ours] if ours is not None else self._switches(container)
        return True in [switch(directory, False) for directory, switch in switches]

    def _freeze(self, container: ContainerFacts) -> bool:
        members = {directory: self._members(directory) for directory, _ in self._switches(container)}
        self._refuse_own(container, {pid for pids in members.values() for pid in pids})
        for directory, switch in self._switches(container):
            # A threaded cgroup lists nobody, and need not be empty.
            if not members[directory] and self._cgroups.is_empty(directory):
                continue
            changed = switch(directory, True)
            if changed:  # else it was frozen by somebody else, or can't be
                self._frozen[container.container_id] = (directory, switch)
            return changed
        return False

    def is_frozen(self, container: ContainerFacts) -> bool:
        """Whether all of it stands still: in each hierarchy in which anybody is. Raises ActFailed without a freezer."""
        directories = [directory for directory, _ in self._switches(container)]
        if not directories:
            raise ActFailed("its cgroup has no freezer (cgroup v2 since Linux 5.2, or v1's freezer hierarchy)")
        return any(self._cgroups.is_frozen(directory) for directory in directories)

    def holds_signals(self, container: ContainerFacts) -> bool:
        """Whether v1's freezer is on: SIGKILL waits for the thaw then. In a frozen v2 cgroup it does not."""
        return bool(container.cgroup_freezer) and self._cgroups.is_frozen(container.cgroup_freezer)

    def control_path(self, container: ContainerFacts, controller: str, file: str) -> str:
        """Where a control file of the container is. `controller`: of v1, "" for v2. Raises ActFailed without one."""
        directory = container.cgroup_v2
        if controller:
            directory = self._cgroups.beside(container.cgroup_freezer, controller)
        if not directory:
            raise ActFailed(f"it has no cgroup of {f'the {controller} controller' if controller else 'v2'}")
        return f"{directory}/{file}"

    def _switches(self, container: ContainerFacts) -> Iterator[tuple[str, _Switch]]:
        if container.cgroup_v2:
            yield container.cgroup_v2, self._cgroups.freeze_v2
        if container.cgroup_freezer:
            yield container.cgroup_freezer, self._cgroups.freeze_v1

    def kill(self, container: ContainerFacts) -> None:
        """SIGKILL to all of it: by `cgroup.kill` where there is one, what that does not reach by freezing and pidfds.

        Raises TargetGone (no cgroup any more), TargetRefused (the agent's own cgroup or one above it), ActFailed.
        """
        v2, freezer = container.cgroup_v2, container.cgroup_freezer
        if not (v2 or freezer):
            raise TargetGone("it has no cgroup any more")
        killed = self._members(v2)
        self._refuse_own(container, killed | self._members(freezer))
        if v2 and not self._cgroups.kill(v2):
            self._sweep(container, v2, self._cgroups.freeze_v2, set())
        if freezer:
            self._sweep(container, freezer, self._cgroups.freeze_v1, killed)

    def _sweep(self, container: ContainerFacts, directory: str, switch: _Switch, killed: set[int]) -> None:
        """Freeze, signal each, thaw, until nobody is left who was not signalled.

        The thaw comes always: a v1-frozen process takes SIGKILL only after it, whoever froze it.
        """
        try:
            for _ in range(KILL_ROUNDS):
                if self._members(directory) <= killed:
                    break
                switch(directory, True)
                left = self._members(directory) - killed  # listed anew: nobody can fork now
                for pid in left:
                    self._kill_member(pid, container.container_id)
                killed = killed | left
                switch(directory, False)
        finally:
            switch(directory, False)

    def _kill_member(self, pid: int, container_id: str) -> None:
        try:
            fd = open_pidfd(pid)
        except TargetError:
            return  # gone since it was listed
        try:
            # The number may have come to mean another process since it was listed.
            if any(locate(path).container_id == container_id for _, path in self._procfs.cgroups(pid)):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return
        except PermissionError as error:
            raise ActFailed(f"SIGKILL to pid {pid}: {error.strerror} (CAP_KILL is needed)") from error
        finally:
            os.close(fd)

    def _refuse_own(self, container: ContainerFacts, members: set[int]) -> None:
        """Never the agent's own cgroup or one above it: by its path, and by who is in it now (a cgroup namespace hides
        the true path)."""
        if os.getpid() in members or self._is_above_us(container):
            raise TargetRefused("the agent itself is in that cgroup")

    def _is_above_us(self, container: ContainerFacts) -> bool:
        paths = {names or V2: path for names, path in self._procfs.cgroups(os.getpid())}
        freezer = next((path for names, path in paths.items() if FREEZER in names.split(",")), "")
        own = (self._cgroups.v2 + paths.get(V2, ""), self._cgroups.freezer + freezer)
        named = (container.cgroup_v2, container.cgroup_freezer)
        return any(
            ours == theirs or ours.startswith(f"{theirs}/") for ours, theirs in zip(own, named, strict=True) if theirs
        )

    async def wait_empty(self, container: ContainerFacts) -> None:
        """Return once nobody is left in its cgroups.

        Waits for the init's exit, after which the kernel has ended its whole pid namespace, then looks again and again:
        the notifications of `cgroup.events` come at most every 10 ms, and v1 has none. A directory made anew under the
        same name (a runtime that restarts the container) is another one: told by its inode.
        """
        places = {path: inode for path in (container.cgroup_v2, container.cgroup_freezer) if (inode := _inode(path))}
        await self._wait_init(container)
        pause = SHORTEST_PAUSE_S
        while any(_inode(path) == inode and not self._cgroups.is_empty(path) for path, inode in places.items()):
            await trio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    async def _wait_init(self, container: ContainerFacts) -> None:
        await trio.lowlevel.checkpoint()
        if container.init_pid not in self.members(container):
            return
        try:
            fd = open_pidfd(container.init_pid)
        except TargetError:
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino if path else 0
    except FileNotFoundError:
        return 0
