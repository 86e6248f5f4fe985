"""Sees the kubelet start a container again that an act has ended, and amends the act's record: `restarted as ID`.

A sink of the recorder: nothing here is on the way of an act. The index of containers tells of new ones as they come
(inotify), and only while one is waited for; their names are in the runtime's files some ms later, once they run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec
import trio

from agent.node.cgroup import Found
from agent.node.container_index import Heard
from stoop.errors import TargetError, TargetGone
from stoop.holdings import Say
from stoop.node import ContainerFacts
from stoop.pods import PodFacts
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.restarted import MAX_WATCHED, WATCH_NS, Ended, Watched, may_have_ended, name_in_pod, told
from stoop.runs import Clocks

TRIES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between looks at the files of a new container, which the runtime writes after it made the cgroup: usually the
first or second finds them. One that is not proven to run after these never did."""

MAX_NEW = 256
"""New containers looked at side by side, as many as acts are waited for. More are left: nothing is told of them."""

MAX_PENDING = 1024
"""Records not yet looked at; beyond it the newest are left. The task takes them within ms."""


class Node(Protocol):
    """What this asks of the node."""

    def find_container(self, container_id: str) -> ContainerFacts: ...

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts: ...

    def pod_by_runtime(self, container_id: str, pod_uid: str) -> PodFacts:
        """As `pod_of`, by the runtime's own word alone, looked at anew until it is there."""
        ...

    def containers(self) -> Iterable[Found]:
        """Each container's cgroup."""
        ...

    def hear_of_containers(self, heard: Heard | None) -> None:
        """Be told of each new container's cgroup; None to be told no more."""
        ...


class _New(msgspec.Struct):
    """A new container in a pod in which one is waited for. `tries`: looks so far."""

    pod_uid: str
    next_mono_ns: int
    tries: int = 0


class Restarts:
    """Waits for those containers while it is served. `put` is a sink of the recorder; it never blocks."""

    def __init__(self, node: Node, recorder: Recorder, clocks: Clocks, say: Say) -> None:
        self._node = node
        self._recorder = recorder
        self._clocks = clocks
        self._say = say
        self._watched = Watched()
        self._pods: frozenset[str] = frozenset()
        self._pending: deque[tuple[Record, str, str]] = deque(maxlen=MAX_PENDING)
        self._new: dict[str, _New] = {}
        self._woken = trio.Event()
        self._full = False

    def put(self, record: Record) -> None:
        """A record was made: where its act may have ended a container, that is looked at soon."""
        found = may_have_ended(record)
        if found is not None and len(self._pending) < MAX_PENDING:
            self._pending.append((record, *found))
            self._woken.set()

    def waiting(self) -> int:
        """How many acts' containers are waited for."""
        return len(self._watched)

    async def serve(self) -> None:
        """Watch and tell, until cancelled. Asleep while nothing is waited for."""
        try:
            while True:
                self._woken = trio.Event()
                self._take_pending()
                self._look_at_new()
                self._let_go()
                with trio.move_on_after(self._pause_s()):
                    await self._woken.wait()
        finally:
            self._node.hear_of_containers(None)

    # ------------------------------------------------------------ what has ended

    def _take_pending(self) -> None:
        """Those that did end are waited for; one that took the place already may have come before we listened."""
        came: set[str] = set()
        while self._pending:
            record, container_id, pod_uid = self._pending.popleft()
            pod = self._node.pod_of(container_id, pod_uid)  # remembered since before the act
            name = name_in_pod(pod)
            if name is None or not self._is_over(container_id, pod):
                continue
            until = self._clocks.mono_ns() + WATCH_NS
            self._watch(Ended(record, container_id, pod_uid, name, until))
            came.add(pod_uid)
        if came:
            self._listen()
            self._look_around(came)

    def _is_over(self, container_id: str, pod: PodFacts) -> bool:
        try:
            container = self._node.find_container(container_id)
        except TargetGone:
            return True
        except TargetError:
            return False
        first_is_gone = bool(pod.init_pid) and pod.init_pid not in container.members
        return first_is_gone or not container.members

    def _watch(self, ended: Ended) -> None:
        has_room = self._watched.add(ended)
        if not has_room and not self._full:
            self._say("warning", "not every container that was ended is waited for", most=MAX_WATCHED)
        self._full = not has_room

    def _listen(self) -> None:
        self._pods = self._watched.pods()
        self._node.hear_of_containers(self._heard if self._pods else None)

    def _look_around(self, pods: Iterable[str]) -> None:
        """Containers that are there already: nothing is told of them."""
        wanted = frozenset(pods)
        try:
            for found in self._node.containers():
                if found.pod_uid in wanted:
                    self._heard(found)
        except TargetError as error:
            self._say("warning", "a container that was started again may not be told", reason=error.reason)

    # ------------------------------------------------------------ what comes

    def _heard(self, found: Found) -> None:
        """A container's cgroup is there: called by the index, so short."""
        if found.pod_uid not in self._pods or self._watched.has_ended(found.container_id):
            return
        if found.container_id not in self._new and len(self._new) < MAX_NEW:
            self._new[found.container_id] = _New(found.pod_uid, self._clocks.mono_ns())
            self._woken.set()

    def _look_at_new(self) -> None:
        mono_ns = self._clocks.mono_ns()
        for container_id, new in list(self._new.items()):
            if new.next_mono_ns <= mono_ns and self._is_known(container_id, new):
                del self._new[container_id]

    def _is_known(self, container_id: str, new: _New) -> bool:
        """Whether nothing more is to be learnt of it: it was told whose place it took, or it never ran."""
        pod = self._node.pod_by_runtime(container_id, new.pod_uid)  # which proves that it runs
        is_last = new.tries >= len(TRIES_S)
        name = name_in_pod(pod)
        if name is not None and not pod.why:
            for ended in self._watched.took_place(container_id, new.pod_uid, name):
                self._recorder.followed(told(ended, container_id, self._clocks.now_ns()))
            self._listen()
            return True
        if not is_last:
            new.next_mono_ns = self._clocks.mono_ns() + int(TRIES_S[new.tries] * 1e9)
            new.tries += 1
        return is_last

    def _let_go(self) -> None:
        over = self._watched.over(self._clocks.mono_ns())
        if over:
            self._listen()

    def _pause_s(self) -> float:
        times = [new.next_mono_ns for new in self._new.values()]
        times += [self._watched.next_mono_ns()] if len(self._watched) else []
        return max(0, min(times) - self._clocks.mono_ns()) / 1e9 if times else float("inf")
