"""file:quarantine: a file that a container wrote is kept as evidence and taken out of use, until it is given back.

    plan ─▶ keep: a copy in a bundle, pinned ─▶ the hold, synced ─▶ aside: mode 000, another name ─▶ … ─▶ back
Everything that looks into the container is a worker's. Reasons: docs/decisions/0013-quarantine.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from stoop.actions.container.init import protected_init
from stoop.actions.evidence.acting import ANSWER_SECONDS, NOT_HERE, told
from stoop.actions.evidence.bounds import size
from stoop.actions.holding import DEFAULT_TTL, Ttl, check_ttl, ttl_ns
from stoop.captures import About, AsideWanted, Captured, KeepFileWanted
from stoop.errors import TargetError, TargetGone, TargetRefused
from stoop.node import CaptureHands, ContainerFacts, NodeHost, ProcessFacts
from stoop.spec import (
    ActContext,
    Action,
    ActionSpec,
    Begun,
    Outcome,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Reversal,
    Scope,
    TargetKind,
    Verdict,
)
from stoop.template import expand
from stoop.units import parse_size

MAX_FILE = 1024**3
"""Bytes: a file is taken away only when it is kept whole, and the store holds 4 GiB."""

MAX_PATH = 4096
"""Bytes of a path (PATH_MAX, path_resolution(7))."""

BYTES_PER_SECOND = 16 * 2**20
"""What a disk takes at least, for the deadlines."""

SHORTEST_SECONDS = 30.0
"""To keep a small file: usually some 50 ms."""

STEP_SECONDS = 10.0
"""For taking away, and for a look: some ms. A worker may have to wait for its place."""

UNDO_SECONDS = STEP_SECONDS + MAX_FILE / BYTES_PER_SECOND
"""To give back what is read again first, and may have to be made anew."""


class QuarantineParameters(Parameters, frozen=True):
    """Which file, and until when."""

    file: Annotated[
        str,
        Meta(
            description="The file's path in the container. `${FD_NAME}` and the like stand for fields of the alert. "
            "Without it: the executable of the alert's process, wherever it was renamed to, also one in memory "
            "only (memfd) or deleted."
        ),
    ] = ""
    image_files: Annotated[
        bool,
        Meta(
            description="`true`: also a file of the image. Only this container's view of it is taken away, but what "
            "needs it breaks."
        ),
    ] = False
    interpreters: Annotated[
        bool,
        Meta(
            description="`true`: with `image_files` also the image's shells, Python and the like and its loader, "
            "by which its scripts and programs run: without them the container is broken."
        ),
    ] = False
    max_bytes: Annotated[str, Meta(description="A larger file is refused, and left where it is. At most 1GiB.")] = (
        "256MiB"
    )
    ttl: Ttl = DEFAULT_TTL

    @property
    def bytes(self) -> int:
        """Of the file."""
        return parse_size(self.max_bytes)


def check(params: QuarantineParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    if params.file and not params.file.startswith(("/", "$")):
        yield ParameterFault("param-value", "file", f"file must be a full path in the container, not {params.file!r}")
    if "\0" in params.file or len(_bytes(params.file)) > MAX_PATH:
        yield ParameterFault("param-value", "file", f"file must be a path of at most {MAX_PATH} bytes without NUL")
    if params.interpreters and not params.image_files:
        yield ParameterFault("param-value", "interpreters", "interpreters: true needs image_files: true too")
    yield from size("max_bytes", params.max_bytes, MAX_FILE, "1GiB", least=1)
    yield from check_ttl(params.ttl)


SPEC = ActionSpec(
    name="file:quarantine",
    description="Keeps a file of the container in a bundle, then takes its permissions away and renames it in its "
    "directory to `.stoop-quarantine-ACT`. Only a regular file with one name on the container's own overlay: nothing "
    "on a volume or hostPath, nothing of the node's, nothing of the image unless asked for. What runs already runs on, "
    "and root in the container can rename it back, which is told: it stops what is started by that name. After `ttl` "
    "it has name, permissions and content again, out of the bundle where it was changed or removed.",
    parameters=QuarantineParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    continue_default=True,
    sources=("syscall",),
    needs=(("proc.pid", "container.id"),),
    reversible=True,
    # A moved file is on disk.
    outlives_boot=True,
    destroys=True,
    idempotent=True,
    blocking=True,
    output=OutputUse.ALLOWED,
    # The root of another user's process; its files, whoever owns them; their mode. To make one anew: owner, set-id
    # bits, capabilities of files.
    node_rights=(
        *("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"),
        *("CAP_CHOWN", "CAP_FSETID", "CAP_SETFCAP"),
    ),
    example="""\
- action: Take the program away
  actionner: file:quarantine
  parameters:
    max_bytes: 64MiB
    ttl: 24h
- rule: A binary that the image did not hold was run
  match:
    rules: [Drop and execute new binary in container]
  actions:
    - action: Take the program away
""",
)


# ------------------------------------------------------------ taking


def plan(ctx: ActContext) -> Outcome | Reversal:
    """Which file is meant; it was not looked at yet. Each act holds its own: another file may have the name by now."""
    if ctx.container is None or ctx.about is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    path = _path(ctx)
    actor = ctx.seen.facts if ctx.seen is not None and not path else None
    if not path and (actor is None or actor.container_id != ctx.container.container_id):
        where = "has moved out of its container" if actor is not None else "has ended, or is not known"
        return Outcome(Verdict.SKIPPED, f"the process whose executable is meant {where} (name the file: `file`)")
    state: dict[str, Any] = {
        "container_id": ctx.container.container_id,
        "path": path,
        "process": [actor.pid, actor.birth] if actor is not None else [],
        "about": msgspec.to_builtins(ctx.about()),
        "image_files": ctx.params.image_files,
        "interpreters": ctx.params.interpreters,
    }
    return Reversal(f"{path or 'executable'} {ctx.act}", ttl_ns(ctx.params.ttl), state)


def _path(ctx: ActContext) -> str:
    """As the container calls it; "" for the executable of the alert's process. Raises TargetRefused."""
    text = str(ctx.params.file)
    if not text:
        return ""
    text = expand(text, ctx.alert) if ctx.alert is not None else text
    if not text.startswith("/") or "\0" in text or len(_bytes(text)) > MAX_PATH:
        raise TargetRefused(f"{text[:64]!r} is no full path of a file in the container")
    return text


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


def begin(ctx: ActContext) -> Outcome | Begun:
    """Nothing yet: whoever looks into what a target made may be held up there."""
    if ctx.container is None or ctx.reversal is None:
        return Outcome(Verdict.REFUSED, "no container was found for it")
    reason = protected_init(ctx, ctx.container)
    if reason or ctx.host.capture is None:
        return Outcome(Verdict.REFUSED, reason or NOT_HERE)
    return Begun(acted=False)


async def verify(ctx: ActContext, begun: Begun) -> Outcome:
    """Keep it, write down what undo needs, take it away; and see that it still is ours to hold."""
    hands, reversal, keep = ctx.host.capture, ctx.reversal, ctx.keep_synced
    if ctx.container is None or reversal is None or keep is None or hands is None:
        return Outcome(Verdict.REFUSED, NOT_HERE)
    try:
        kept = await _keep(ctx, hands, ctx.container, reversal.state)
        if not kept.ok:
            return _ended(kept, kept.details)
        state = reversal.state | {key: kept.details[key] for key in ("file", "bundle", "sha256")}
        details = _details(kept)
        trouble = await keep(state)
        if trouble:
            hands.release(state["about"]["act"])
            return Outcome(Verdict.FAILED, trouble, details)
        taken = await _step(ctx.host, hands, state, "aside", STEP_SECONDS)
        if not taken.ok:
            if taken.gone or taken.refused:
                hands.release(state["about"]["act"])
            return _ended(taken, details)
        trouble = await keep({"taken": True})
        if trouble:
            await undo(ctx.host, state)
            return Outcome(Verdict.FAILED, trouble, details)
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    changed = bool(taken.details.get("changed"))
    return Outcome(Verdict.DONE, "it was changed since it was kept" * changed, details | {"changed": changed})


async def _keep(ctx: ActContext, hands: CaptureHands, container: ContainerFacts, state: dict[str, Any]) -> Captured:
    given = _processes(ctx.host, container, state)
    wanted = KeepFileWanted(
        about=msgspec.convert(state["about"], About),
        deadline_s=seconds(ctx.params),
        target=told(ctx.host, ctx.seen.facts if ctx.seen is not None else None, container),
        host_mounts=(ctx.host.namespaces_of(container).host_mnt,),
        image_files=ctx.params.image_files,
        interpreters=ctx.params.interpreters,
        path=_bytes(state["path"]),
        limit=ctx.params.bytes,
    )
    return await hands.take(wanted, given, container)


def _processes(host: NodeHost, container: ContainerFacts, state: dict[str, Any]) -> list[ProcessFacts]:
    """The container's first process, and the one whose executable is meant. Raises TargetGone, TargetRefused."""
    init = host.hold(container.init_pid)
    init.close()
    if init.facts.container_id != container.container_id:
        raise TargetGone("the container's first process has ended")
    found = [init.facts]
    if state["process"]:
        pid, birth = state["process"]
        held = host.hold(pid)
        held.close()
        if held.facts.birth != birth:
            raise TargetGone(f"pid {pid} was given anew")
        found.append(held.facts)
    return found


async def _step(host: NodeHost, hands: CaptureHands, state: dict[str, Any], step: str, deadline_s: float) -> Captured:
    """One step of the second half. Raises TargetGone, TargetRefused."""
    container = host.find_container(state["container_id"])
    named = bool(state["file"]["name"])
    given = _processes(host, container, state | {"process": []} if named else state)
    wanted = AsideWanted(
        about=msgspec.convert(state["about"], About),
        deadline_s=deadline_s,
        host_mounts=(host.namespaces_of(container).host_mnt,),
        image_files=state["image_files"],
        interpreters=state["interpreters"],
        file=state["file"],
        bundle=state["bundle"],
        sha256=state["sha256"],
        step=step,
    )
    return await hands.take(wanted, given, container)


def _ended(captured: Captured, details: dict[str, Any]) -> Outcome:
    """Of a step that did not work."""
    verdict = Verdict.SKIPPED if captured.gone else Verdict.REFUSED if captured.refused else Verdict.FAILED
    return Outcome(verdict, captured.reason, details)


def _details(kept: Captured) -> dict[str, Any]:
    """For the record: what a person asks. The rest is the hold's."""
    file = kept.details["file"]
    shown = {key: value for key, value in kept.details.items() if key not in ("file", "resolved")}
    about = {"file": kept.details["resolved"], "layer": file["layer"], "mode": f"{file['mode']:04o}"}
    return shown | about | {"size": file["size"], "uid": file["uid"], "gid": file["gid"]}


def seconds(params: QuarantineParameters) -> float:
    """How long keeping may take."""
    return SHORTEST_SECONDS + params.bytes / BYTES_PER_SECOND


def overdue(ctx: ActContext, begun: Begun) -> Outcome:
    """What to say when the deadline passed first. What may be done of it is undone."""
    return Outcome(Verdict.FAILED, "the worker did not answer in time")


# ------------------------------------------------------------ giving back


async def undo(host: NodeHost, state: dict[str, Any]) -> Outcome:
    """Name, permissions and content again; what others did since is left to them, and told."""
    hands = host.capture
    if hands is None:
        return Outcome(Verdict.FAILED, NOT_HERE)
    if "file" not in state:
        hands.release(state["about"]["act"])
        return Outcome(Verdict.SKIPPED, "nothing was taken away yet")
    try:
        back = await _step(host, hands, state, "back", UNDO_SECONDS - ANSWER_SECONDS)
    except TargetGone as error:
        back = Captured(False, error.reason, gone=True)
    if back.gone:
        hands.release(state["about"]["act"])
        return Outcome(Verdict.SKIPPED, f"{back.reason}: nothing to give back; the file is in {state['bundle']}")
    if not back.ok:
        return Outcome(Verdict.FAILED, back.reason)
    hands.release(state["about"]["act"])
    return Outcome(Verdict.DONE, back.reason, back.details)


async def drift(host: NodeHost, state: dict[str, Any]) -> str:
    """What somebody else did to what is in quarantine."""
    hands = host.capture
    if hands is None or "taken" not in state:
        return ""
    found = await _step(host, hands, state, "look", STEP_SECONDS - ANSWER_SECONDS)
    return found.reason


ACTION = Action(
    spec=SPEC,
    begin=begin,
    verify=verify,
    overdue=overdue,
    deadline_s=lambda params: seconds(params) + STEP_SECONDS + ANSWER_SECONDS,
    plan=plan,
    undo=undo,
    undo_s=UNDO_SECONDS,
    drift=drift,
)
