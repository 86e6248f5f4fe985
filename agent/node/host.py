"""The NodeHost of Linux: processes by pidfd and /proc, containers by their cgroups."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections import OrderedDict

import msgspec
import trio

from agent.node.cgroup import Cgroups, own_paths
from agent.node.container_id import container_of
from agent.node.held import LinuxHeld, pidfd_ready
from agent.node.procfs import (
    PF_KTHREAD,
    TICK_NS,
    Procfs,
    Stat,
    file_identity,
    namespace_inode,
    parse_cgroups,
    parse_stat,
    parse_status,
    read_at,
    realtime_minus_boottime_ns,
    text,
)
from agent.node.session import Member, entry_of, init_of
from agent.node.taskstats import Taskstats
from stoop.errors import TargetError, TargetGone, TargetRefused
from stoop.spec import ContainerFacts, HeldProcess, ProcessFacts

PID_MAX = 4_194_304
"""The largest pid of a 64-bit machine (PID_MAX_LIMIT of the kernel)."""

MAX_DESCENDANTS = 4096
"""Descendants listed at most."""

MAX_MEMBERS = 4096
"""Members of a container whose parents and sessions are read at most: some 20 µs each."""

SEEN_CONTAINERS = 256
"""Containers of processes held lately, kept to spare a search of the whole hierarchy; some 300 bytes each."""

KILL_ROUNDS = 8
"""Freeze, signal, thaw so often at most: a second round is needed only when a freeze did not complete in time."""

EMPTY_PAUSE_S = (0.000_2, 0.1)
"""First and longest pause between looks whether a cgroup is empty; each is half as long again as the one before."""

_CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
_GONE = "it has exited already"


class LinuxHost:
    """What an act may ask of the node. `close` it: it keeps a netlink socket."""

    def __init__(self, proc: str = "/proc", cgroup_root: str = "/sys/fs/cgroup") -> None:
        self._procfs = Procfs(proc)
        self._cgroups = Cgroups(cgroup_root)
        self._taskstats = Taskstats()
        self._depth = len(self._procfs.status(os.getpid()).ns_pids)
        self._seen: OrderedDict[str, dict[str, str]] = OrderedDict()

    @property
    def boot_id(self) -> str:
        """Of the running kernel: what stored identities carry."""
        return self._procfs.boot_id

    def close(self) -> None:
        """Close the netlink socket. Idempotent."""
        self._taskstats.close()

    # ------------------------------------------------------------ processes

    def hold(self, pid: int) -> LinuxHeld:
        """Open a pidfd, then read the facts once, then look that the process is still there. The caller closes it.

        Raises TargetGone (no such process, or a zombie) and TargetRefused (not a process, or its facts can't be read).
        """
        if not 1 < pid <= PID_MAX:
            raise TargetRefused(f"pid {pid} is no target: only numbers from 2 to {PID_MAX} are")
        fd = self._open_pidfd(pid)
        try:
            facts = self._facts(pid)
            if pidfd_ready(fd):
                raise TargetGone(_GONE)
        except (FileNotFoundError, ProcessLookupError):
            os.close(fd)
            raise TargetGone(_GONE) from None
        except OSError as error:
            os.close(fd)
            raise TargetRefused(f"pid {pid} can't be read: {error.strerror}{_hint(error)}") from error
        except TargetError:
            os.close(fd)
            raise
        if facts.container_id:
            self._remember(facts)
        return LinuxHeld(fd, facts, self._procfs)

    def _open_pidfd(self, pid: int) -> int:
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            raise TargetGone("no process has that pid any more") from None
        except OSError as error:
            # The kernel takes first threads only (EINVAL; ENOENT since 6.9).
            if error.errno in (errno.EINVAL, errno.ENOENT):
                raise TargetRefused(f"{pid} is the number of a thread, not of a process") from error
            raise TargetRefused(f"pid {pid} can't be held: {error.strerror}{_hint(error)}") from error

    def _facts(self, pid: int) -> ProcessFacts:
        directory = self._procfs.open(pid)
        try:
            stat = parse_stat(read_at(directory, "stat"))
            # Where the other facts are read: a first thread that has ended has none of them.
            at, state = ("", stat.state) if not stat.ended else self._live_thread(pid, stat)
            status = parse_status(read_at(directory, "status"))
            cgroups = parse_cgroups(read_at(directory, at + "cgroup"))
            container_id, pod_uid = container_of(cgroups)
            exe, exe_file = _executable(directory, at)
            ticks_ns = stat.start_ticks * TICK_NS
            return ProcessFacts(
                pid=pid,
                start_ticks=stat.start_ticks,
                start_ns=ticks_ns + realtime_minus_boottime_ns(),
                start_slack_ns=TICK_NS,
                boot_id=self._procfs.boot_id,
                ppid=stat.ppid,
                pgid=stat.pgid,
                sid=stat.sid,
                state=state,
                comm=stat.comm,
                exe=exe,
                exe_dev=exe_file[0],
                exe_ino=exe_file[1],
                uid=status.uid,
                ns_pids=status.ns_pids,
                threads=stat.threads,
                kernel_thread=bool(stat.flags & PF_KTHREAD),
                mnt_ns=namespace_inode(directory, at + "ns/mnt"),
                pid_ns=namespace_inode(directory, at + "ns/pid"),
                cgroups=cgroups,
                container_id=container_id,
                pod_uid=pod_uid,
            )
        finally:
            os.close(directory)

    def _live_thread(self, pid: int, leader: Stat) -> tuple[str, str]:
        """(path of a living thread below the process's directory, its state). Raises TargetGone for a true zombie."""
        found = self._procfs.live_thread(pid) if leader.threads > 1 else None
        if found is None:
            raise TargetGone(_GONE)
        return f"task/{found[0]}/", found[1].state

    def precise_start(self, facts: ProcessFacts) -> ProcessFacts:
        """The same facts with the start in µs, where taskstats tells and agrees with the tick; else unchanged.

        The kernel counts the age without the time that the machine was suspended: then the two do not agree.
        """
        found = self._taskstats.start(facts.pid)
        if found is None:
            return facts
        start_ns, slack_ns = found
        # Against the tick as of now: CLOCK_REALTIME may have been set since the facts were read.
        tick_ns = facts.start_ticks * TICK_NS + realtime_minus_boottime_ns()
        if start_ns + slack_ns < tick_ns or start_ns > tick_ns + TICK_NS:
            return facts
        return msgspec.structs.replace(facts, start_ns=start_ns, start_slack_ns=slack_ns)

    def descendants(self, pid: int) -> tuple[int, ...]:
        """Every living descendant of now, parents before children, at most MAX_DESCENDANTS."""
        return self._procfs.descendants(pid, MAX_DESCENDANTS)

    def session_entry(self, facts: ProcessFacts) -> tuple[int, tuple[int, ...]]:
        """The exec entry that a container's process belongs to, and all its members, the entry first.

        Raises TargetRefused when it is in no container or belongs to the container's own processes.
        """
        if not facts.container_id:
            raise TargetRefused("it is in no container, so it belongs to no exec")
        members = self._table(self._members(*self._locate(facts.container_id)[:2]))
        parents = {member.ppid for member in members.values()}
        return entry_of(facts.pid, members, self._table(parents - members.keys()))

    def _table(self, pids: set[int]) -> dict[int, Member]:
        found = {}
        for pid in sorted(pids)[:MAX_MEMBERS]:
            try:
                stat, status = self._procfs.stat(pid), self._procfs.status(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[pid] = Member(pid, stat.ppid, stat.sid, stat.start_ticks, status.ns_pids, stat.comm)
        return found

    # ------------------------------------------------------------ containers

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container whose id begins with this (12 to 64 hexadecimal digits).

        That of a process held lately is known; any other is searched for in the whole hierarchy.
        Raises TargetGone (none), TargetRefused (not an id, or two directories).
        """
        if not _CONTAINER_ID.fullmatch(container_id):
            raise TargetRefused(f"{container_id!r} is not a container's id of 12 to 64 hexadecimal digits")
        v2, freezer, full_id, pod_uid = self._locate(container_id)
        members = self._members(v2, freezer)
        return ContainerFacts(
            container_id=full_id,
            pod_uid=pod_uid,
            boot_id=self._procfs.boot_id,
            cgroup_v2=v2,
            cgroup_freezer=freezer,
            init_pid=self._init(members),
            members=tuple(sorted(members)),
        )

    def _remember(self, facts: ProcessFacts) -> None:
        paths = own_paths(facts.cgroups)
        known = self._seen.get(facts.container_id, paths)
        # Two processes that put the container in two places: the search shall tell.
        self._seen[facts.container_id] = paths | {"pod": facts.pod_uid} if _agree(known, paths) else {}
        self._seen.move_to_end(facts.container_id)
        if len(self._seen) > SEEN_CONTAINERS:
            self._seen.popitem(last=False)

    def _locate(self, container_id: str) -> tuple[str, str, str, str]:
        """(v2 directory, freezer directory, full id, pod uid)."""
        known = [full for full in self._seen if full.startswith(container_id)]
        if len(known) == 1:
            paths = self._seen[known[0]]
            v2, freezer = self._cgroups.directories(paths)
            if v2 or freezer:
                return v2, freezer, known[0], paths["pod"]
        found = [place for place in self._cgroups.find(container_id) if place]
        if not found:
            raise TargetGone(f"no cgroup is container {container_id[:12]}")
        if len({place.container_id for place in found}) > 1:
            raise TargetRefused(f"two containers have an id that begins with {container_id}")
        mount = self._cgroups.v2
        v2 = next((place.directory for place in found if mount and place.directory.startswith(f"{mount}/")), "")
        freezer = next((place.directory for place in found if place.directory != v2), "")
        return v2, freezer, found[0].container_id, found[0].pod_uid

    def _members(self, v2: str, freezer: str) -> set[int]:
        return {pid for directory in (v2, freezer) if directory for pid in self._cgroups.members(directory)}

    def _init(self, members: set[int]) -> int:
        for pid in sorted(members):
            try:
                ns_pids = self._procfs.status(pid).ns_pids
            except (FileNotFoundError, ProcessLookupError):
                continue
            # One level below ours and the first there. The usual case, and it spares reading all the others.
            if ns_pids[-1] == 1 and len(ns_pids) == self._depth + 1:
                return pid
        return init_of(self._table(members))

    def container_members(self, container: ContainerFacts) -> tuple[int, ...]:
        """Pids in the container's cgroups and below, read now."""
        return tuple(sorted(self._members(container.cgroup_v2, container.cgroup_freezer)))

    def freeze(self, container: ContainerFacts, frozen: bool) -> bool:
        """Freeze or thaw; True when this changed it: False without a freezer, and when it was so already.

        Raises TargetRefused for the agent's own cgroup (we would stop ourselves), ActFailed when it can't be written.
        """
        if frozen:
            self._refuse_own(container)
        if container.cgroup_v2 and not self._cgroups.is_empty(container.cgroup_v2):
            return self._cgroups.freeze_v2(container.cgroup_v2, frozen)
        if container.cgroup_freezer:
            return self._cgroups.freeze_v1(container.cgroup_freezer, frozen)
        return False

    def kill_container(self, container: ContainerFacts) -> None:
        """SIGKILL to all of the container: by `cgroup.kill` where there is one, what is left by freezing and pidfds.

        Raises TargetGone (no cgroup any more), TargetRefused (the agent's own cgroup or above it), ActFailed.
        """
        self._refuse_own(container)
        v2, freezer = container.cgroup_v2, container.cgroup_freezer
        killed: set[int] = set()
        if v2:
            members = self._members(v2, "")
            if self._cgroups.kill(v2):
                killed = members
            else:
                self._sweep(container, members, v2=True)
        if freezer:
            self._sweep(container, killed, v2=False)
        elif not v2:
            raise TargetGone("it has no cgroup")

    def _sweep(self, container: ContainerFacts, killed: set[int], *, v2: bool) -> None:
        """Freeze, signal each, thaw, until nobody is left who was not signalled.

        The thaw comes always: a v1-frozen process takes SIGKILL only after it, whoever froze it.
        """
        directory = container.cgroup_v2 if v2 else container.cgroup_freezer
        switch = self._cgroups.freeze_v2 if v2 else self._cgroups.freeze_v1
        done = set() if v2 else set(killed)
        try:
            for _ in range(KILL_ROUNDS):
                if not self._members(directory, "") - done:
                    return
                switch(directory, True)
                # Listed anew: nobody can fork now.
                left = self._members(directory, "") - done
                for pid in left:
                    self._kill_member(pid, container)
                done |= left
                switch(directory, False)
        finally:
            switch(directory, False)

    def _kill_member(self, pid: int, container: ContainerFacts) -> None:
        try:
            fd = self._open_pidfd(pid)
        except TargetError:
            return  # gone since it was listed
        try:
            # The number may have come to mean another since it was listed.
            if own_paths(self._procfs.cgroups(pid)).keys() and _is_in(self._procfs.cgroups(pid), container):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        finally:
            os.close(fd)
