"""What the node says of processes and containers, and what it lets an act do to them.

Pure: values and protocols. Times are nanoseconds of CLOCK_REALTIME since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from stoop.captures import Captured, Still, Wanted
from stoop.network import Applied, Counters, UndoReport
from stoop.pods import NamespaceFacts, PodFacts, Upper


class ProcessFacts(msgspec.Struct, frozen=True):
    """What the node says of one process, read once while its pidfd was held (proc(5)).

    `hold` leaves out what is seldom needed (`NodeHost.more_facts` fills it in): `ns_pids`, `exe_dev`, `exe_ino`, and
    `pid_ns` where the mount namespace or the cgroup tells enough.

    `birth` tells it from every other process that had or will have its number in this boot: the inode of its pidfd
    (Linux 6.9), else its start in clock ticks.
    `start_ns`..`start_ns + start_slack_ns` is when it began (CLOCK_REALTIME as of now; /proc gives 10 ms ticks,
    taskstats µs).
    `ns_pids`: its pid in each nested pid namespace, ours first (`NSpid` of /proc/PID/status).
    `exe`: the executable's path as its own mount namespace names it; empty when it can't be read
    (kernel thread, zombie).
    """

    pid: int
    birth: int
    start_ns: int
    start_slack_ns: int
    boot_id: str
    ppid: int
    comm: str
    exe: str
    uid: int
    kernel_thread: bool
    mnt_ns: int
    cgroups: tuple[tuple[str, str], ...]  # (controllers, path): "" for v2, as in /proc/PID/cgroup
    container_id: str = ""  # 64 hex digits, or what the runtime calls it; "" when it is in no container
    pod_uid: str = ""
    pid_ns: int = 0
    ns_pids: tuple[int, ...] = ()
    exe_dev: int = 0
    exe_ino: int = 0

    @property
    def identity(self) -> str:
        """Stable name of this very process: survives neither its death nor a reboot."""
        return f"{self.boot_id[:8]}:{self.pid}:{self.birth}"


class ContainerFacts(msgspec.Struct, frozen=True):
    """What the node says of one container: its cgroup directories and the process it began with."""

    container_id: str
    pod_uid: str
    boot_id: str
    cgroup_v2: str  # absolute directory, "" where there is none
    cgroup_freezer: str  # v1 freezer directory, "" where there is none
    init_pid: int
    members: tuple[int, ...]

    @property
    def identity(self) -> str:
        """Stable name of this very container."""
        return f"{self.boot_id[:8]}:{self.container_id}"


class HostFacts(msgspec.Struct, frozen=True):
    """What the guard must know of the node and of the agent itself."""

    boot_id: str
    pid_ns: int  # inode of the agent's pid namespace
    mnt_ns: int  # inode of the host's mount namespace (of the reference pid)
    pid_ns_is_root: bool  # the agent sees pids as the kernel's first pid namespace numbers them
    own_pids: frozenset[int]  # the agent's processes and their parents
    own_cgroups: frozenset[str]  # the agent's own cgroups, never to be killed or frozen
    own_parents: frozenset[int] = frozenset()  # of the agent's processes: whose children are its own too
    falco_pids: frozenset[int] = frozenset()
    falco_cgroups: frozenset[str] = frozenset()


class HeldProcess(Protocol):
    """One process, held by a pidfd (pidfd_open(2)): the number can't come to mean another process while it is held."""

    @property
    def facts(self) -> ProcessFacts: ...

    def again(self) -> HeldProcess:
        """The same process with the same facts, held once more. Raises TargetRefused without a free descriptor."""
        ...

    def signal(self, signo: int) -> bool:
        """Send a signal through the pidfd; False when it is gone already. Raises ActFailed when not permitted."""
        ...

    def has_exited(self) -> bool:
        """Whether the whole thread group has exited (the pidfd is readable)."""
        ...

    async def wait_exited(self) -> None:
        """Return once the whole thread group has exited."""
        ...

    def state(self) -> str:
        """The state letter of now (proc(5)), `X` when it is gone."""
        ...

    def close(self) -> None:
        """Let go. Idempotent."""
        ...


class NetworkHands(Protocol):
    """The node's network hands. Each call may take as long as nftables is held up in the target's namespace."""

    @property
    def unavailable(self) -> str:
        """Why nothing of this can be done on this node, "" when it can."""
        ...

    async def cut(self, held: HeldProcess, act: str, policy: Any, keep: Callable[[dict[str, Any]], None]) -> Applied:
        """Carry a policy out on the network of this process: a pod's sandbox, or a container's init.

        `keep` is given what an undo needs before anything is changed, and once more when it stands.
        Raises TargetGone, TargetRefused (the node's own network), ActFailed (it stands at neither end).
        """
        ...

    async def counters(self, state: dict[str, Any]) -> Counters:
        """What an act's tables have seen so far; places where none stand are left out. Raises ActFailed."""
        ...

    async def undo(self, state: dict[str, Any]) -> UndoReport:
        """Take the act's tables away, wherever they are, and nothing else. Twice is harmless."""
        ...


class Capture(Protocol):
    """A capture that is under way by itself."""

    async def read(self) -> None:
        """Return once all that is to be read of the target was read, or nothing more comes."""
        ...

    async def ended(self) -> None:
        """Return once nothing more comes."""
        ...

    @property
    def captured(self) -> Captured | None:
        """What came of it; None while it is under way."""
        ...


class CaptureHands(Protocol):
    """What takes evidence, by processes that can be ended whatever their target does to them."""

    async def take(
        self,
        wanted: Wanted,
        processes: Sequence[ProcessFacts],
        container: ContainerFacts | None,
        still: Still | None = None,
    ) -> Captured:
        """Keep a bundle of these processes, and of all in this container. Raises nothing.

        `still`: the target stands still now, and goes on as soon as what changes was read, whatever becomes of it.
        """
        ...

    def begin(self, wanted: Wanted, processes: Sequence[ProcessFacts], container: ContainerFacts | None) -> Capture:
        """The same, under way by itself: nothing of it ends when nobody waits any more."""
        ...

    def release(self, act: str) -> None:
        """What this act kept to give it back is not needed for that any more: it may be let go with time."""
        ...


class Lookup(Protocol):
    """What deciding asks of the node. Every method is synchronous and bounded."""

    def hold(self, pid: int) -> HeldProcess:
        """Open a pidfd, then read the facts once. Raises TargetGone, TargetRefused."""
        ...

    def precise_start(self, facts: ProcessFacts) -> tuple[int, int]:
        """(start, slack) in ns of CLOCK_REALTIME: in µs where the kernel tells (taskstats), else as in the facts."""
        ...

    def more_facts(self, facts: ProcessFacts) -> ProcessFacts:
        """The same facts with what `hold` leaves out because it is seldom needed. The caller holds the process."""
        ...

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container whose id begins with this. Raises TargetGone (none), TargetRefused (two directories)."""
        ...

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        """Whose container it is, of its full id and the pod uid of its cgroup. Remembered; raises nothing."""
        ...

    def upper_of(self, container: ContainerFacts) -> Upper:
        """Its overlay's upper directory, by the runtime's word. Remembered; raises nothing."""
        ...


class NodeHost(Lookup, Protocol):
    """What the node lets an act do. Every method is synchronous and bounded unless it says otherwise."""

    @property
    def network(self) -> NetworkHands | None:
        """What acts on the networks of pods; None while nothing here can (no rule needed it so far, or no rights)."""
        ...

    @property
    def capture(self) -> CaptureHands | None:
        """What takes evidence; None while no rule needs it."""
        ...

    def descendants(self, pid: int) -> tuple[int, ...]:
        """Every living descendant of now, parents before children."""
        ...

    def children(self, pid: int) -> tuple[int, ...]:
        """Its living children of now, of all its threads; () when it has gone."""
        ...

    def session_entry(self, facts: ProcessFacts) -> tuple[int, tuple[int, ...]]:
        """The exec entry that a container's process belongs to, and all its members. Raises TargetRefused."""
        ...

    def namespaces_of(self, container: ContainerFacts, process: ProcessFacts | None = None) -> NamespaceFacts:
        """Of a container and its pod's sandbox; where this process sits elsewhere. Raises TargetGone, TargetRefused."""
        ...

    def pod_containers(self, container: ContainerFacts) -> tuple[str, ...]:
        """Ids of the containers of the same pod that are there now, its own first; its own alone in no pod."""
        ...

    def container_members(self, container: ContainerFacts) -> tuple[int, ...]:
        """Pids in the container's cgroup and below, read now."""
        ...

    def kill_container(self, container: ContainerFacts) -> None:
        """`cgroup.kill` where there is one; else freeze, signal each, thaw, until empty. Raises ActFailed."""
        ...

    def freeze(self, container: ContainerFacts, frozen: bool) -> bool:
        """Freeze or thaw; whether this changed it: False without a freezer, and where it was so already."""
        ...

    def pause(self, container: ContainerFacts) -> bool:
        """Freeze it for a moment; False without a freezer, and where it is frozen for longer already.

        A later `freeze` takes it over. Each True is to be followed by one `go_on`.
        """
        ...

    def go_on(self, container: ContainerFacts) -> None:
        """The moment is over: thaw it, unless another one is not over yet, or somebody took it over."""
        ...

    def is_paused(self, container: ContainerFacts) -> bool:
        """Whether it stands still for a moment only."""
        ...

    def is_frozen(self, container: ContainerFacts) -> bool:
        """Whether all of it stands still now, whoever froze it. Raises ActFailed where there is no freezer."""
        ...

    def holds_signals(self, container: ContainerFacts) -> bool:
        """Whether it is frozen by v1's freezer, in which even SIGKILL waits for the thaw."""
        ...

    def has_control(self, container: ContainerFacts, controller: str, file: str) -> bool:
        """Whether the container's cgroup has such a control file. `controller`: of v1, "" for v2."""
        ...

    def block_devices(self) -> tuple[str, ...]:
        """The node's disks, as `MAJ:MIN`, without those that are memory or a file."""
        ...

    def read_control(self, container: ContainerFacts, controller: str, file: str) -> str:
        """What such a file says. Raises ActFailed without one."""
        ...

    def write_control(self, container: ContainerFacts, controller: str, file: str, value: str) -> None:
        """Write it. Raises ActFailed, with the kernel's reason."""
        ...

    async def wait_container_empty(self, container: ContainerFacts) -> None:
        """Return once no process is left in the container's cgroup."""
        ...
