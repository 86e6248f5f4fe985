"""The NodeHost of Linux: processes by pidfd and /proc, containers by their cgroups."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

import trio

from agent.node.bundles import Bundles
from agent.node.cgroup import Cgroups, Found
from agent.node.container_index import Heard
from agent.node.containers import Containers
from agent.node.disks import block_devices
from agent.node.facts import EXITED, Facts
from agent.node.held import LinuxHeld, hint, open_pidfd, pidfd_ready
from agent.node.kubelet import KubeletLogs
from agent.node.namespaces import Namespaces
from agent.node.pauses import Pauses
from agent.node.pods import Pods
from agent.node.procfs import Procfs
from agent.node.session import entry_of
from agent.node.taskstats import Taskstats
from agent.node.uppers import Uppers
from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.node import CaptureHands, ContainerFacts, NetworkHands, ProcessFacts
from stoop.pods import NamespaceFacts, PodFacts, Upper

PID_MAX = 4_194_304
"""The largest pid of a 64-bit machine (PID_MAX_LIMIT of the kernel)."""

MAX_DESCENDANTS = 4096
"""Descendants listed at most: some 10 µs each."""

MAX_NEW = 512
"""Containers that came (at the start: all) whose pods are looked up before anybody asks, 0.2 ms each."""

_CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")


class LinuxHost:
    """What an act may ask of the node. `close` it: it keeps a netlink socket and watches the cgroups.

    `root`: where the node's file system is seen ("" for `/`). `reference_pid`: whose namespaces stand for the host's.
    """

    def __init__(
        self, proc: str = "/proc", cgroup_root: str = "/sys/fs/cgroup", root: str = "", reference_pid: int = 1
    ) -> None:
        self._procfs = Procfs(proc)
        self._cgroups = Cgroups(cgroup_root)
        self._containers = Containers(self._procfs, self._cgroups)
        self._pauses = Pauses(self._containers)
        self._taskstats = Taskstats()
        self._facts = Facts(self._procfs, self._taskstats)
        bundles = Bundles(self._procfs, root)
        self._pods = Pods(bundles, KubeletLogs(root), time.monotonic_ns)
        self._uppers = Uppers(bundles, self._procfs, reference_pid, root)
        self._new: list[Found] = []
        self._heard: Heard | None = None
        self._containers.index.heard = self._hear
        self.network: NetworkHands | None = None
        self.capture: CaptureHands | None = None
        self.join_pod: Callable[[PodFacts], PodFacts] | None = None  # adds what is known of it beyond the node
        self._namespaces = Namespaces(self._procfs, self._containers.index, reference_pid)

    @property
    def boot_id(self) -> str:
        """Of the running kernel: what stored identities carry."""
        return self._procfs.boot_id

    def close(self) -> None:
        """Close the netlink socket and the watches. Idempotent."""
        self._taskstats.close()
        self._containers.index.close()

    def unavailable(self) -> dict[str, str]:
        """Why something can't be done on this node, by actionner or category (`network:`). What was not tried yet
        (the networks, before a rule needs them) is not told."""
        why = self._cgroups.unfit()
        found = dict.fromkeys(("container:freeze", "container:limit"), why) if why else {}
        if self.network is not None and self.network.unavailable:
            found["network:"] = self.network.unavailable
        return found

    async def follow(self) -> None:
        """Keep the index of containers up to date as they come and go, until cancelled. Without it, each question
        about a container reads first what has happened since the last one. What names a new one's pod is read then, so
        that its first alert finds it read."""
        await self._containers.index.follow(self._expect)

    # ------------------------------------------------------------ processes

    def hold(self, pid: int) -> LinuxHeld:
        """Open a pidfd, then read the facts once, then look that the process is still there. The caller closes it.

        Raises TargetGone (no such process, or a zombie) and TargetRefused (not a process, or its facts can't be read).
        """
        if not 1 < pid <= PID_MAX:
            raise TargetRefused(f"pid {pid} is no target: only numbers from 2 to {PID_MAX} are")
        fd = open_pidfd(pid)
        try:
            facts = self._facts.read(pid, fd)
            if pidfd_ready(fd):
                raise TargetGone(EXITED)
        except TargetError:
            os.close(fd)
            raise
        except (FileNotFoundError, ProcessLookupError):
            os.close(fd)
            raise TargetGone(EXITED) from None
        except OSError as error:
            os.close(fd)
            raise TargetRefused(f"pid {pid} can't be read: {error.strerror}{hint(error)}") from error
        if facts.container_id:
            self._containers.remember(facts)
        return LinuxHeld(fd, facts, self._procfs)

    def precise_start(self, facts: ProcessFacts) -> tuple[int, int]:
        """(start, slack) in ns: in µs where taskstats tells and agrees with the tick; else as the facts have it.

        They do not agree on a machine that was suspended since: the kernel counts the age without that time.
        """
        born = self._taskstats.born(facts.pid, tight=True)
        latest = facts.start_ns + facts.start_slack_ns
        if born is None or born.start_ns + born.slack_ns < facts.start_ns or born.start_ns > latest:
            return facts.start_ns, facts.start_slack_ns
        return born.start_ns, born.slack_ns

    def more_facts(self, facts: ProcessFacts) -> ProcessFacts:
        """The same facts with `ns_pids`, `exe_dev`, `exe_ino` and `pid_ns`; unchanged when it has exited meanwhile."""
        try:
            return self._facts.more(facts)
        except (OSError, TargetGone):
            return facts

    def descendants(self, pid: int) -> tuple[int, ...]:
        """Every living descendant of now, parents before children, at most MAX_DESCENDANTS."""
        return self._procfs.descendants(pid, MAX_DESCENDANTS)

    def children(self, pid: int) -> tuple[int, ...]:
        """Its living children of now; () when it has gone."""
        try:
            return tuple(self._procfs.children(pid))
        except (FileNotFoundError, ProcessLookupError):
            return ()

    def session_entry(self, facts: ProcessFacts) -> tuple[int, tuple[int, ...]]:
        """The exec entry that a container's process belongs to, and all its members, the entry first.

        Raises TargetRefused when it is in no container or belongs to the container's own processes.
        """
        if not facts.container_id:
            raise TargetRefused("it is in no container, so it belongs to no exec")
        members = self._containers.table(self._containers.members(self.find_container(facts.container_id)))
        parents = {member.ppid for member in members.values()}
        return entry_of(facts.pid, members, self._containers.table(parents - members.keys()))

    # ------------------------------------------------------------ containers

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container whose id begins with this (12 to 64 hexadecimal digits).

        That of a process held lately is known; any other is searched for in the whole hierarchy.
        Raises TargetGone (none), TargetRefused (not an id, or two directories).
        """
        if not _CONTAINER_ID.fullmatch(container_id):
            raise TargetRefused(f"{container_id!r} is not a container's id of 12 to 64 hexadecimal digits")
        return self._containers.find(container_id)

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        """Whose container it is: `container_id` in full, `pod_uid` as its cgroup says.

        Files are read at the first question about a container (`Pods`); where the runtime's are not seen, every 10 s.
        """
        facts = self._pods.of(container_id, pod_uid)
        return facts if self.join_pod is None else self.join_pod(facts)

    def upper_of(self, container: ContainerFacts) -> Upper:
        """As `Uppers.of`."""
        return self._uppers.of(container.container_id)

    def pod_by_runtime(self, container_id: str, pod_uid: str) -> PodFacts:
        """As `pod_of`, by the runtime's own word alone, looked at anew until it is there."""
        return self._pods.by_runtime(container_id, pod_uid)

    def containers(self) -> Iterator[Found]:
        """Each container's cgroup of now. Raises TargetRefused where there are too many to look through."""
        return self._containers.index.every()

    def hear_of_containers(self, heard: Heard | None) -> None:
        """Be told of each new container's cgroup, as `ContainerIndex.heard`; None to be told no more."""
        self._heard = heard

    def _hear(self, found: Found) -> None:
        if len(self._new) < MAX_NEW:
            self._new.append(found)
        if self._heard is not None:
            self._heard(found)

    async def _expect(self) -> None:
        """Read what names the pods of those that came, while nobody waits for it."""
        new, self._new = self._new, []
        for found in new:
            self._pods.expect(found.container_id, found.pod_uid)
            await trio.lowlevel.checkpoint()

    def namespaces_of(self, container: ContainerFacts, process: ProcessFacts | None = None) -> NamespaceFacts:
        """Of a container and its pod's sandbox; where this process sits elsewhere. Raises TargetGone, TargetRefused."""
        sandbox_id = self.pod_of(container.container_id, container.pod_uid).sandbox_id
        sandbox = None
        if sandbox_id == container.container_id:
            sandbox = container
        elif sandbox_id:
            try:
                sandbox = self.find_container(sandbox_id)
            except TargetGone:
                sandbox = None
        if sandbox is not None and sandbox.pod_uid != container.pod_uid:
            raise TargetRefused(f"sandbox {sandbox_id[:12]} is of pod {sandbox.pod_uid}, not of {container.pod_uid}")
        return self._namespaces.of(container, sandbox, process)

    def pod_containers(self, container: ContainerFacts) -> tuple[str, ...]:
        """Ids of the containers of the same pod that are there now, its own first; its own alone in no pod."""
        others = [
            found.container_id
            for found in self._containers.index.every()
            if container.pod_uid and found.pod_uid == container.pod_uid
        ]
        return tuple(dict.fromkeys((container.container_id, *others)))

    def container_members(self, container: ContainerFacts) -> tuple[int, ...]:
        """Pids in the container's cgroups and below, read now."""
        return tuple(sorted(self._containers.members(container)))

    def kill_container(self, container: ContainerFacts) -> None:
        """As `Containers.kill`. Raises TargetGone, TargetRefused, ActFailed."""
        self._containers.kill(container)

    def freeze(self, container: ContainerFacts, frozen: bool) -> bool:
        """As `Containers.freeze`: whether this changed it. What stands for a moment only is taken over, or goes on.

        Raises TargetRefused, ActFailed.
        """
        if self._pauses.over(container) and frozen:
            return True
        return self._containers.freeze(container, frozen)

    def pause(self, container: ContainerFacts) -> bool:
        """As `Pauses.begin`. Raises TargetRefused, ActFailed."""
        return self._pauses.begin(container)

    def go_on(self, container: ContainerFacts) -> None:
        """As `Pauses.end`. Raises TargetRefused, ActFailed."""
        self._pauses.end(container)

    def is_paused(self, container: ContainerFacts) -> bool:
        """As `Pauses.has`."""
        return self._pauses.has(container)

    def is_frozen(self, container: ContainerFacts) -> bool:
        """As `Containers.is_frozen`. Raises ActFailed."""
        return self._containers.is_frozen(container)

    def holds_signals(self, container: ContainerFacts) -> bool:
        """As `Containers.holds_signals`."""
        return self._containers.holds_signals(container)

    def has_control(self, container: ContainerFacts, controller: str, file: str) -> bool:
        """Whether the container's cgroup has such a control file."""
        try:
            return os.path.exists(self._containers.control_path(container, controller, file))
        except ActFailed:
            return False

    def block_devices(self) -> tuple[str, ...]:
        """The node's disks (`/sys/block`), as `MAJ:MIN`, without those that are memory or a file."""
        return block_devices()

    def read_control(self, container: ContainerFacts, controller: str, file: str) -> str:
        """A control file of the container's cgroup. Raises ActFailed."""
        return self._cgroups.read_control(self._containers.control_path(container, controller, file))

    def write_control(self, container: ContainerFacts, controller: str, file: str, value: str) -> None:
        """Write it. Raises ActFailed."""
        self._cgroups.write_control(self._containers.control_path(container, controller, file), value)

    async def wait_container_empty(self, container: ContainerFacts) -> None:
        """As `Containers.wait_empty`."""
        await self._containers.wait_empty(container)
