"""The metadata of this node's pods as the helper told it, by uid. No I/O: the clock is handed in.

What was told stays when the helper or the API has gone: nobody can change a label while the API is away, and a pod of
that uid stays that pod. How old it is, is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from stoop.podmeta import PodMeta
from stoop.pods import PodFacts

MAX_PODS = 1024
"""Pods kept: a kubelet runs 110 unless told otherwise, a large node some 500. One costs at most 16 KiB (agent/pods)."""

KEPT_GONE_NS = 60 * 10**9
"""A pod that was deleted stays known for so long: its processes may run on (a grace of 30 s is usual), and alerts come
late."""

STALE_NS = 150 * 10**9
"""Older than this it is said to be stale. An API server shows that a quiet watch is alive once a minute, by a bookmark
(k8s.io/apiserver, storage/cacher); the second one missed is a fault."""


class Podbook:
    """Pods by uid, and by name for the copies of static pods, whose uid the API gives anew."""

    def __init__(self, mono_ns: Callable[[], int]) -> None:
        self._mono_ns = mono_ns
        self._pods: dict[str, PodMeta] = {}
        self._mirrors: dict[tuple[str, str], str] = {}
        self._gone: dict[str, int] = {}  # since when, oldest first
        self._fresh_ns = 0
        self.left_out = 0
        self.lists = 0
        self.unknown = 0

    def __len__(self) -> int:
        """How many pods are there now, as far as is known."""
        return len(self._pods) - len(self._gone)

    @property
    def is_listed(self) -> bool:
        """Whether all pods of some moment were told."""
        return self.lists > 0

    @property
    def age_ns(self) -> int:
        """Since the source last proved that what is here is so; 0 before the first list."""
        return self._mono_ns() - self._fresh_ns if self.is_listed else 0

    def put(self, pod: PodMeta) -> None:
        """A pod is there, or is another than it was. Beyond MAX_PODS it is left out, and counted."""
        self._forget_gone()
        if pod.uid not in self._pods and len(self._pods) >= MAX_PODS:
            self.left_out += 1
            return
        self._drop(pod.uid)
        self._pods[pod.uid] = pod
        if pod.mirrors:
            self._mirrors[pod.namespace, pod.name] = pod.uid
        self.fresh()

    def gone(self, uid: str) -> None:
        """It was deleted: forgotten after KEPT_GONE_NS."""
        self._forget_gone()
        if uid in self._pods:
            self._gone.setdefault(uid, self._mono_ns())
        self.fresh()

    def listed(self, uids: Iterable[str], left_out: int) -> None:
        """These are all there are."""
        for uid in self._pods.keys() - set(uids):
            self.gone(uid)
        self.left_out, self.lists = left_out, self.lists + 1
        self.fresh()

    def fresh(self) -> None:
        """What is here is still so."""
        self._fresh_ns = self._mono_ns()

    def join(self, facts: PodFacts) -> PodFacts:
        """The node's facts with the API's word on the pod of that uid. A uid that can be forged joins nothing."""
        if not facts.uid.is_strong:
            return facts
        pod = self._pods.get(facts.uid.value) or self._mirror_of(facts)
        if pod is None:
            self.unknown += 1
            return facts
        joined = facts.joined(pod)
        age_ns = self.age_ns
        return msgspec.structs.replace(joined, stale_s=age_ns // 10**9) if age_ns > STALE_NS else joined

    def _mirror_of(self, facts: PodFacts) -> PodMeta | None:
        """The API's copy of a static pod. Anyone can write that annotation, so the names must be the node's own."""
        if not (facts.namespace.is_strong and facts.name.is_strong):
            return None
        pod = self._pods.get(self._mirrors.get((facts.namespace.value, facts.name.value), ""))
        return pod if pod is not None and pod.mirrors == facts.uid.value else None

    def _forget_gone(self) -> None:
        before = self._mono_ns() - KEPT_GONE_NS
        while self._gone and next(iter(self._gone.values())) <= before:
            self._drop(next(iter(self._gone)))

    def _drop(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        self._gone.pop(uid, None)
        if pod is not None and self._mirrors.get((pod.namespace, pod.name)) == uid:
            del self._mirrors[pod.namespace, pod.name]
