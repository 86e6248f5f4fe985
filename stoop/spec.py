"""The contracts between the parts: what an action, output or notifier declares, what a target is, how an act ends.

Pure: no I/O, no clock. Times are nanoseconds: `*_ns` of CLOCK_REALTIME since the epoch, `*_mono_ns` of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec

from stoop.pods import NamespaceFacts, PodFacts


class Mode(enum.StrEnum):
    """What the agent may do: act, only say what it would do, or nothing at all."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    OFF = "off"


class Verdict(enum.StrEnum):
    """How an act ended. Every alert that matched ends as exactly one of these per act."""

    DONE = "done"  # carried out and verified
    SKIPPED = "skipped"  # nothing to do: already gone, a duplicate
    REFUSED = "refused"  # the guard, or what can't be proven
    FAILED = "failed"  # tried, and it did not work
    EXPIRED = "expired"  # too late: too old, the queue was full
    WOULD = "would"  # observe mode, dry run or a disarmed rule: everything but the act


class Outcome(msgspec.Struct, frozen=True):
    """How an act ended and why. `reason` is one line for a person; empty only for a plain `done`."""

    verdict: Verdict
    reason: str = ""
    details: dict[str, Any] = {}

    @property
    def is_error(self) -> bool:
        """Whether it counts as an action error for `ignore_errors` (Talon: an error ends the chain of actions)."""
        return self.verdict in (Verdict.FAILED, Verdict.REFUSED, Verdict.EXPIRED)


class Scope(enum.StrEnum):
    """Where an act is carried out: by the agent on its node, or by the controller on the cluster."""

    NODE = "node"
    CLUSTER = "cluster"


class Reach(enum.StrEnum):
    """How far an act reaches. What reaches further than the node's own pods needs the rule's explicit leave."""

    PROCESS = "process"
    CONTAINER = "container"
    POD = "pod"
    NODE = "node"
    WORKLOAD = "workload"
    CLUSTER = "cluster"
    NONE = "none"  # acts on nothing of the cluster: calls out (a cloud function)


class OutputUse(enum.StrEnum):
    """Whether an action leaves data that an `output` block can send somewhere."""

    NONE = "none"
    ALLOWED = "allowed"
    REQUIRED = "required"


class TargetKind(enum.StrEnum):
    """What an act needs to be held before it begins."""

    PROCESS = "process"
    CONTAINER = "container"
    OBJECT = "object"  # an object of the cluster; the controller's business
    NONE = "none"


class ClusterRight(msgspec.Struct, frozen=True):
    """One RBAC rule that an action needs (Kubernetes: `PolicyRule` of rbac.authorization.k8s.io/v1)."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]


class Parameters(msgspec.Struct, frozen=True):
    """Base of every action's, output's and notifier's parameters.

    Each field is `Annotated[type, msgspec.Meta(description=…)]`. A field without a default is required.
    """


class NoParameters(Parameters, frozen=True):
    """For what takes no parameters."""


class ParameterFault(msgspec.Struct, frozen=True):
    """What an own check of a spec found wrong in parameters whose types are right.

    `code`: `param-value`, `param-required`, `param-empty`, `cidr`, `script-missing`, `script-and-file`,
    `script-file-missing`.
    """

    code: str
    parameter: str
    message: str


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What actions, outputs and notifiers have in common."""

    name: str
    description: str
    parameters: type[Parameters] = NoParameters
    check: Callable[[Any], Iterable[ParameterFault]] | None = None
    cluster_rights: tuple[ClusterRight, ...] = ()
    cloud_rights: tuple[str, ...] = ()
    example: str = ""


class ActionSpec(Spec, frozen=True, kw_only=True):
    """What an action declares. A test proves each declaration.

    `needs`: alert fields of which each group needs at least one (`(("proc.pid",),)`).
    `node_rights`: Linux capabilities (capabilities(7)) it needs on the node.
    `continue_default`: Talon's default of `continue` for this actionner.
    """

    target: TargetKind
    scope: Scope
    reach: Reach
    continue_default: bool
    sources: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    reversible: bool = False
    destroys: bool = False
    idempotent: bool = False
    blocking: bool = False
    output: OutputUse = OutputUse.NONE
    node_rights: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class OutputSpec(Spec, frozen=True, kw_only=True):
    """Where evidence can go (`local:file`, `aws:s3`, …)."""


class NotifierSpec(Spec, frozen=True, kw_only=True):
    """Who can be told (`slack`, `webhook`, …)."""


# ---------------------------------------------------------------- what the node says: facts


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
    falco_pids: frozenset[int] = frozenset()
    falco_cgroups: frozenset[str] = frozenset()


class HeldProcess(Protocol):
    """One process, held by a pidfd (pidfd_open(2)): the number can't come to mean another process while it is held."""

    @property
    def facts(self) -> ProcessFacts: ...

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


class NodeHost(Protocol):
    """What the node lets an act do. Every method is synchronous and bounded unless it says otherwise."""

    def hold(self, pid: int) -> HeldProcess:
        """Open a pidfd, then read the facts once. Raises TargetGone, TargetRefused."""
        ...

    def precise_start(self, facts: ProcessFacts) -> tuple[int, int]:
        """(start, slack) in ns of CLOCK_REALTIME: in µs where the kernel tells (taskstats), else as in the facts."""
        ...

    def more_facts(self, facts: ProcessFacts) -> ProcessFacts:
        """The same facts with what `hold` leaves out because it is seldom needed. The caller holds the process."""
        ...

    def descendants(self, pid: int) -> tuple[int, ...]:
        """Every living descendant of now, parents before children."""
        ...

    def session_entry(self, facts: ProcessFacts) -> tuple[int, tuple[int, ...]]:
        """The exec entry that a container's process belongs to, and all its members. Raises TargetRefused."""
        ...

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container whose id begins with this. Raises TargetGone (none), TargetRefused (two directories)."""
        ...

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        """Whose container it is, of its full id and the pod uid of its cgroup. Remembered; raises nothing."""
        ...

    def namespaces_of(self, container: ContainerFacts, process: ProcessFacts | None = None) -> NamespaceFacts:
        """Of a container and its pod's sandbox; where this process sits elsewhere. Raises TargetGone, TargetRefused."""
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

    async def wait_container_empty(self, container: ContainerFacts) -> None:
        """Return once no process is left in the container's cgroup."""
        ...


# ---------------------------------------------------------------- acts


class ActContext(msgspec.Struct, frozen=True):
    """What `begin` gets: the held target, the typed parameters, and a way to ask whether a process is protected."""

    host: NodeHost
    params: Any
    process: HeldProcess | None
    container: ContainerFacts | None
    protects: Callable[[ProcessFacts], str]  # "" or the reason why this process must not be touched


class Begun(msgspec.Struct, frozen=True):
    """An act that was begun and has yet to be verified. `held` are further processes it holds; verify closes them."""

    held: tuple[Any, ...] = ()
    details: dict[str, Any] = {}


Begin = Callable[[ActContext], Outcome | Begun]
Verify = Callable[[ActContext, Begun], Awaitable[Outcome]]
Overdue = Callable[[ActContext, Begun], Outcome]


class Action(msgspec.Struct, frozen=True):
    """One line of the catalogue. Without `begin` it is declared only: loading accepts it, acting is refused.

    `begin` is synchronous, bounded and awaits nothing. `verify` runs in the target's lane, under the act's deadline;
    `overdue` says what is to be said when the deadline passes first.
    """

    spec: ActionSpec
    begin: Begin | None = None
    verify: Verify | None = None
    overdue: Overdue | None = None


class Catalogue(msgspec.Struct, frozen=True):
    """Everything that rules may name. Handed in as a value, so that loading and checking stay pure."""

    actions: dict[str, Action]
    outputs: dict[str, OutputSpec]
    notifiers: dict[str, NotifierSpec]
