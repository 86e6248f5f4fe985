"""Whom a capture is of, made to stand still while it is looked at: frozen in a container, else stopped one by one.

What was frozen or stopped here goes on by `thaw`, and by `close` in any case; what stood before is left standing.
"""

from __future__ import annotations

from stoop.actions.container.init import protected_init
from stoop.actions.process.group import Group, belongs_to_tree, descendants_of
from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.node import ContainerFacts, HeldProcess, ProcessFacts
from stoop.spec import (
    ActContext,
)


class Standing:
    """The target of one capture. `processes`: those named one by one, the first one first; `container`: all in it too.

    `moves`: why it does not stand still though it should, "" where it does.
    """

    def __init__(self, ctx: ActContext) -> None:
        self._ctx = ctx
        self._frozen: ContainerFacts | None = None
        self._group: Group | None = None
        self._held: list[HeldProcess] = []
        self.processes: tuple[ProcessFacts, ...] = (ctx.process.facts,) if ctx.process is not None else ()
        self.container: ContainerFacts | None = None
        self.moves = ""

    @property
    def is_ours(self) -> bool:
        """Whether something of it was made to stand still here, and `thaw` is due."""
        return self._frozen is not None or self._group is not None

    def whole(self, still: bool) -> None:
        """All of the container. Raises TargetGone, TargetRefused (none; it is protected)."""
        container = container_of(self._ctx)
        if container is None:
            raise TargetRefused("it is in no container (scope: container)")
        reason = self._ctx.protects_container(container) or protected_init(self._ctx, container)
        if reason:
            raise TargetRefused(reason)
        self.container = container
        if still:
            self._freeze(container)

    def several(self, *, tree: bool, still: bool) -> None:
        """The process, and its tree. Raises TargetGone, TargetRefused, ActFailed."""
        process = self._ctx.process
        if process is None or process.has_exited():
            raise TargetGone("already exited")
        if not still:
            if tree:
                self._list(process)
            return
        container = self._freezable()
        stands = container is not None and self._freeze(container)
        self._group = group = Group(self._ctx, process, belongs_to_tree, resumes=True)
        group.gather(
            (lambda found: descendants_of(self._ctx.host, found)) if tree else (lambda found: ()),
            container.container_id if container is not None and stands else "",
        )
        self._held += group.extra
        self.processes = tuple(held.facts for held in group.members.values())
        self.moves = "" if stands or group.settled else "not all of it stood still in time"

    def thaw(self) -> None:
        """It goes on. Idempotent."""
        group, self._group = self._group, None
        frozen, self._frozen = self._frozen, None
        try:
            if group is not None:
                group.resume()
            if frozen is not None:
                self._ctx.host.go_on(frozen)
        except (TargetError, ActFailed) as error:  # it has gone meanwhile
            self.moves = f"it could not be thawed: {error.reason}"

    def close(self) -> None:
        """Thaw it, and let go of what was held for it. Idempotent."""
        try:
            self.thaw()
        finally:
            while self._held:
                self._held.pop().close()

    def _freezable(self) -> ContainerFacts | None:
        """The container of the process, where it may be frozen: others in it stand still with it."""
        try:
            container = container_of(self._ctx)
            return None if container is None or self._ctx.protects_container(container) else container
        except TargetError:
            return None

    def _freeze(self, container: ContainerFacts) -> bool:
        """Whether it stands still now, by us or by whoever froze it before."""
        try:
            if self._ctx.host.pause(container):
                self._frozen = container
            elif not self._ctx.host.is_frozen(container):
                self.moves = "it could not be frozen"
        except (TargetError, ActFailed) as error:
            self.moves = error.reason
        return not self.moves

    def _list(self, process: HeldProcess) -> None:
        """The tree as it runs: each held, and shown to have one of the tree as its parent."""
        members = {process.facts.pid: process.facts}
        for pid in self._ctx.host.descendants(process.facts.pid):
            try:
                held = self._ctx.host.hold(pid)
            except TargetError:
                continue
            held.close()
            if held.facts.ppid in members and not self._ctx.protects(held.facts):
                members[pid] = held.facts
        self.processes = tuple(members.values())


def container_of(ctx: ActContext) -> ContainerFacts | None:
    """The container of the act, or that of its process; None where it is in none. Raises TargetGone, TargetRefused."""
    if ctx.container is not None or ctx.process is None:
        return ctx.container
    container_id = ctx.process.facts.container_id
    return ctx.host.find_container(container_id) if container_id else None


def stand(ctx: ActContext, scope: str, *, still: bool) -> Standing:
    """The target of this scope (`process`, `tree`, `container`), standing still where it is to. `close` it.

    Raises TargetGone, TargetRefused, ActFailed; nothing stands then.
    """
    standing = Standing(ctx)
    try:
        if scope == "container":
            standing.whole(still)
        else:
            standing.several(tree=scope == "tree", still=still)
    except BaseException:
        standing.close()
        raise
    return standing
