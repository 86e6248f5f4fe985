"""The contracts between the parts: what an action, output or notifier declares, what a target is, how an act ends.

Pure: no I/O, no clock. Times are nanoseconds: `*_ns` of CLOCK_REALTIME since the epoch, `*_mono_ns` of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from stoop.alert import Alert
from stoop.captures import About
from stoop.node import ContainerFacts, HeldProcess, NodeHost, ProcessFacts


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
    `idempotent_with`: which parameters it is idempotent with, where it is not with all.
    `reversible`: it holds something until its `ttl` is over, and gives it back then. `outlives_boot`: what it holds is
    still held after the machine was restarted (a file that was moved), so the act calls `keep_synced` before it.
    """

    target: TargetKind
    scope: Scope
    reach: Reach
    continue_default: bool
    sources: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    reversible: bool = False
    outlives_boot: bool = False
    destroys: bool = False
    idempotent: bool = False
    idempotent_with: Callable[[Any], bool] | None = None
    blocking: bool = False
    output: OutputUse = OutputUse.NONE
    node_rights: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def repeatable(spec: ActionSpec, params: Any) -> bool:
    """Whether an act with these parameters may be done twice: it is the same as once."""
    return spec.idempotent and (spec.idempotent_with is None or spec.idempotent_with(params))


class OutputSpec(Spec, frozen=True, kw_only=True):
    """Where evidence can go (`local:file`, `aws:s3`, …)."""


class NotifierSpec(Spec, frozen=True, kw_only=True):
    """Who can be told (`slack`, `webhook`, …)."""


class Reversal(msgspec.Struct, frozen=True):
    """What undoing an act will need, read before the act and kept before it is begun.

    `key`: what of the target is held; a second act with the same key holds nothing anew. `ttl_ns`: for how long, 0 for
    ever. `state`: what the action's `undo` gets; JSON's types only, ids and paths and old values. `then`: what becomes
    of the target when the time is over, for a person.
    """

    key: str
    ttl_ns: int
    state: dict[str, Any]
    then: str = "given back"


class ActContext(msgspec.Struct, frozen=True):
    """What `begin` gets: the held target, the typed parameters, and ways to ask who is protected.

    `act`: the id of this act. Of a reversible one: `reversal`, what was kept (if its key was held already, of that
    time), and `keep`, to add to the state that `undo` gets before something more is changed. `keep_synced` does that on
    the disk itself, in a thread, and returns "" or why nothing may be changed now (it can't be written; it was given
    back meanwhile).
    """

    host: NodeHost
    params: Any
    process: HeldProcess | None
    container: ContainerFacts | None
    protects: Callable[[ProcessFacts], str]  # "" or the reason why this process must not be touched
    protects_container: Callable[[ContainerFacts], str]  # the same of a whole container
    act: str = ""
    reversal: Reversal | None = None
    keep: Callable[[dict[str, Any]], None] | None = None
    about: Callable[[], About] | None = None  # by whose word the act of now is done
    seen: HeldProcess | None = None  # of an act on a container: the alert's process, where it is held
    fields: Mapping[str, Any] = {}  # the alert's output_fields: words, not facts
    alert: Alert | None = None  # the same, for placeholders (`stoop.template`)
    # As `keep`, on the disk itself.
    keep_synced: Callable[[dict[str, Any]], Awaitable[str]] | None = None
    has_output: bool = False  # whether the rule sends what it leaves somewhere


class Begun(msgspec.Struct, frozen=True):
    """An act that was begun and has yet to be verified. `held` are further processes it holds; verify closes them.

    `acted` False: nothing was done yet. The act blocks, so `verify` does all of it, in the lane.
    `deadline_s`: how long this very one may take, where it was seen to take longer than its like (0: as usual).
    """

    held: tuple[Any, ...] = ()
    details: dict[str, Any] = {}
    acted: bool = True
    deadline_s: float = 0.0


Plan = Callable[[ActContext], Outcome | Reversal]
Begin = Callable[[ActContext], Outcome | Begun]
Verify = Callable[[ActContext, Begun], Awaitable[Outcome]]
Overdue = Callable[[ActContext, Begun], Outcome]
Undo = Callable[[NodeHost, dict[str, Any]], Awaitable[Outcome]]
Drift = Callable[[NodeHost, dict[str, Any]], Awaitable[str]]


class Action(msgspec.Struct, frozen=True):
    """One line of the catalogue. Without `begin` it is declared only: loading accepts it, acting is refused.

    `begin` is synchronous, bounded and awaits nothing. `verify` runs in the target's lane, under the act's deadline;
    `overdue` says what is to be said when the deadline passes first. `deadline_s`: of what takes longer than others do,
    by its parameters, in seconds. `lane`: a lane of its own beside the target's, for what only reads and takes long: it
    holds up no other act on the same target, nor does one hold it up. Those of one name follow each other.

    A reversible action has more. `plan` reads what undoing will need, before anything is changed. `undo` gives
    back exactly that: `done`; `skipped` where nothing of ours is left (gone, or somebody else changed it since, which
    it says); `failed` to be tried again. It may be called at any time, twice, and after a restart, and gets `undo_s`
    seconds (0: as usual). `at_end` is called in its place when the time is over, where that means something else;
    `at_end_destroys` tells of which container that would be the end, None where of none, for whoever wants evidence of
    it first (raises TargetGone, TargetRefused). `drift` tells what somebody else did to it meanwhile, "" for nothing.
    """

    spec: ActionSpec
    begin: Begin | None = None
    verify: Verify | None = None
    overdue: Overdue | None = None
    deadline_s: Callable[[Any], float] | None = None
    lane: str = ""
    plan: Plan | None = None
    undo: Undo | None = None
    undo_s: float = 0.0
    at_end: Undo | None = None
    at_end_destroys: Callable[[NodeHost, dict[str, Any]], ContainerFacts | None] | None = None
    drift: Drift | None = None


class Catalogue(msgspec.Struct, frozen=True):
    """Everything that rules may name. Handed in as a value, so that loading and checking stay pure."""

    actions: dict[str, Action]
    outputs: dict[str, OutputSpec]
    notifiers: dict[str, NotifierSpec]
