"""Which ended containers are waited for, and what their acts' records say once the kubelet has started another.

Pure. The kubelet starts a container that ended again in the same pod (same uid, whatever becomes of the pod's sandbox),
with the same name and under another id: at once, or after a back-off of 10 s that doubles up to 5 minutes (Kubernetes,
"Pod Lifecycle", container restarts). A pod that is made anew has another uid: that is another pod.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from stoop.pods import PodFacts, Source
from stoop.record import Record
from stoop.spec import Verdict

WATCH_NS = 360 * 10**9
"""How long another one is waited for: the kubelet's longest back-off, and a minute to pull and start it."""

MAX_WATCHED = 256
"""Acts whose container is waited for at a time, some 2 KiB each; the oldest goes first. A node has some 250 pods."""

ENDERS = frozenset({"container:kill", "process:kill"})
"""What may end a container: all of it, or its first process, and the runtime the rest."""

SHOWN = 12
"""Digits of an id that a person is told, as Falco tells them."""


class Ended(msgspec.Struct, frozen=True):
    """An act that ended a container. `container`: its name in its pod, "" for the pod's sandbox."""

    record: Record
    container_id: str
    pod_uid: str
    container: str
    until_mono_ns: int


def may_have_ended(record: Record) -> tuple[str, str] | None:
    """(container id, pod uid by its cgroup) of a container that this act may have ended; None where it can't have.

    Whether it did end is to be looked at. Of what gives back only that counts which says whom it ended (`then: kill`).
    """
    if record.verdict is not Verdict.DONE or "restarted_as" in record.details:
        return None
    given_back = "undoes" in record.details
    if not (record.details.get("container_id") if given_back else record.actionner in ENDERS):
        return None
    target = record.target
    container_id, pod_uid, told_by = (target.get(key) for key in ("container_id", "pod_uid", "told_by"))
    if not (isinstance(container_id, str) and isinstance(pod_uid, str) and isinstance(told_by, dict)):
        return None
    by_cgroup = told_by.get("pod_uid") == Source.CGROUP and "claimed_container_id" not in target
    return (container_id, pod_uid) if container_id and pod_uid and by_cgroup else None


def name_in_pod(pod: PodFacts) -> str | None:
    """The name by which the kubelet starts a container again, "" for the pod's sandbox; None where nothing tells."""
    is_sandbox = pod.sandbox_id == pod.container_id
    return pod.container.value or ("" if is_sandbox else None)


def told(ended: Ended, container_id: str, now_ns: int) -> Record:
    """The record of the act anew: `details.restarted_as` has the whole id, `restarted_after_s` is since the act."""
    record = ended.record
    after_s = max(0, now_ns - record.at_ns) / 1e9
    word = f"restarted as {container_id[:SHOWN]} {after_s:.1f} s later"
    return msgspec.structs.replace(
        record,
        reason=f"{record.reason}; {word}" if record.reason else word,
        details=record.details | {"restarted_as": container_id, "restarted_after_s": round(after_s, 3)},
        amends=True,
    )


class Watched:
    """The acts whose container is waited for, by the act. Not thread-safe."""

    def __init__(self) -> None:
        self._acts: OrderedDict[str, Ended] = OrderedDict()

    def __len__(self) -> int:
        return len(self._acts)

    def add(self, ended: Ended) -> bool:
        """Wait for another one; False where the oldest had to go for it."""
        self._acts[ended.record.act] = ended
        self._acts.move_to_end(ended.record.act)
        if len(self._acts) <= MAX_WATCHED:
            return True
        self._acts.popitem(last=False)
        return False

    def has_ended(self, container_id: str) -> bool:
        """Whether this is one of those that were ended: its cgroup may be there for a while."""
        return any(ended.container_id == container_id for ended in self._acts.values())

    def pods(self) -> frozenset[str]:
        """The uids of the pods in which one is waited for."""
        return frozenset(ended.pod_uid for ended in self._acts.values())

    def took_place(self, container_id: str, pod_uid: str, name: str) -> list[Ended]:
        """This container runs now: those in whose place it is. They are no longer waited for."""
        return self._take(
            ended
            for ended in self._acts.values()
            if (ended.pod_uid, ended.container) == (pod_uid, name) and ended.container_id != container_id
        )

    def over(self, mono_ns: int) -> list[Ended]:
        """Those for which nobody waits any longer."""
        return self._take(ended for ended in self._acts.values() if ended.until_mono_ns <= mono_ns)

    def next_mono_ns(self) -> int:
        """When the next one is over; 0 where none is waited for."""
        return min((ended.until_mono_ns for ended in self._acts.values()), default=0)

    def _take(self, which: Iterable[Ended]) -> list[Ended]:
        taken = list(which)
        for ended in taken:
            del self._acts[ended.record.act]
        return taken
