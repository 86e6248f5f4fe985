"""Give back what a killed agent took: whoever it held still amid an act goes on.

A `tree`, `session` or `container` act freezes a container or stops processes for some ms. SIGKILL of the agent in that
moment leaves them so; the ring knows the target, and the next start looks after it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from stoop.errors import ActFailed, TargetError
from stoop.holds import Hold
from stoop.node import NodeHost
from stoop.record import Record

HOLDING_STILL = frozenset({"process:kill", "container:kill", "evidence:snapshot", "file:quarantine"})
"""Actions that hold targets still for a moment: themselves, or for the evidence before them."""

STOPPED = "T"


def resume(host: NodeHost, unfinished: Iterable[Record], holds: Iterable[Hold] = ()) -> list[str]:
    """Thaw and continue what these acts may have left standing; a line for a person for each thing done.

    What a hold keeps standing, of an act before, stands on.
    """
    told: list[str] = []
    held = _Held(holds)
    for record in unfinished:
        if record.actionner in HOLDING_STILL:
            container_id = record.target.get("container_id", "")
            if container_id and any(known.startswith(container_id) for known in held.containers):
                continue
            pids = _thaw(host, container_id, told) if container_id else _tree(host, record)
            pids = tuple(pid for pid in pids if pid not in held.pids)
            told += [f"pid {pid} was left stopped: continued" for pid in pids if _continue(host, pid)]
    return told


class _Held:
    """Whom holds keep standing: frozen containers by their ids, stopped processes."""

    def __init__(self, holds: Iterable[Hold]) -> None:
        self.containers: set[str] = set()
        self.pids: set[int] = set()
        for hold in holds:
            if hold.actionner == "container:freeze":
                self.containers.add(hold.state["container_id"])
            elif hold.actionner == "process:suspend":
                self.pids.update(pid for pid, _ in (*hold.state["processes"], hold.state["root"]))


def _thaw(host: NodeHost, container_id: str, told: list[str]) -> tuple[int, ...]:
    """Thaw the container; its processes, some of which may have been stopped one by one."""
    try:
        container = host.find_container(container_id)
        if host.freeze(container, False):
            told.append(f"container {container_id} was left frozen: thawed")
        return host.container_members(container)
    except (TargetError, ActFailed):
        return ()


def _tree(host: NodeHost, record: Record) -> tuple[int, ...]:
    """The process and its descendants, if it still is the one that was meant."""
    pid = int(record.target.get("pid", 0))
    try:
        held = host.hold(pid)
    except TargetError:
        return ()
    held.close()
    return (pid, *host.descendants(pid)) if held.facts.identity == record.target.get("identity") else ()


def _continue(host: NodeHost, pid: int) -> bool:
    try:
        held = host.hold(pid)
    except TargetError:
        return False
    try:
        return held.state() == STOPPED and held.signal(signal.SIGCONT)
    except ActFailed:
        return False
    finally:
        held.close()
