"""Whose container it is: the runtime's own files first, then the kubelet's directories; remembered by container id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from agent.node.bundles import Bundle, Bundles, Names
from agent.node.kubelet import KubeletLogs
from stoop.pods import NOTHING, PodFacts, Source, Told

MAX_REMEMBERED = 1024
"""Containers whose names are remembered: a node has some hundred; some 600 bytes each. The least used goes first."""

WEAK_NS = 10_000_000_000
"""What the runtime's own files did not tell is asked again after this time: they may be seen by then."""


EXPECTED_NS = 1_000_000_000
"""The same, where nobody asked yet: the container has just come, and the rest of its files may be written by then."""


class Pods:
    """Tells a container's pod. What the runtime's files told stays true: an id is never given to another container."""

    def __init__(self, bundles: Bundles, logs: KubeletLogs, mono_ns: Callable[[], int]) -> None:
        self._bundles = bundles
        self._logs = logs
        self._mono_ns = mono_ns
        self._known: OrderedDict[tuple[str, str], tuple[PodFacts, int]] = OrderedDict()

    def of(self, container_id: str, pod_uid: str) -> PodFacts:
        """Of the container with this full id, whose cgroup says this pod uid ("" where it says none)."""
        key = (container_id, pod_uid)
        known = self._known.get(key)
        if known is not None and (not known[1] or self._mono_ns() < known[1]):
            self._known.move_to_end(key)
            return known[0]
        return self._remember(key, self._look(container_id, pod_uid), WEAK_NS)

    def expect(self, container_id: str, pod_uid: str) -> None:
        """Somebody may ask about this container soon: look now, when nobody waits for it."""
        key = (container_id, pod_uid)
        if key not in self._known:
            self._remember(key, self._look(container_id, pod_uid), EXPECTED_NS)

    def by_runtime(self, container_id: str, pod_uid: str) -> PodFacts:
        """The same by the runtime's own word alone, looked at anew until it is there: for a container that is just
        being started. The kubelet's directories are left: they may lie on a disk that hangs."""
        key = (container_id, pod_uid)
        known = self._known.get(key)
        if known is not None and not known[1]:
            return known[0]
        bundle = self._bundles.read(container_id)
        if isinstance(bundle, Bundle) and bundle.names.uid in ("", pod_uid):
            facts = _of_bundle(container_id, pod_uid, bundle)
            return facts if facts.why else self._remember(key, facts, WEAK_NS)
        return PodFacts(container_id, why=str(bundle) if isinstance(bundle, str) else "another pod's")

    def _remember(self, key: tuple[str, str], facts: PodFacts, weak_ns: int) -> PodFacts:
        self._known[key] = facts, self._mono_ns() + weak_ns if facts.why else 0
        self._known.move_to_end(key)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return facts

    def _look(self, container_id: str, pod_uid: str) -> PodFacts:
        bundle = self._bundles.read(container_id)
        if isinstance(bundle, Bundle):
            told = bundle.names.uid
            if not (told and pod_uid and told != pod_uid):
                return _of_bundle(container_id, pod_uid, bundle)
            bundle = f"the runtime says pod {told}, the cgroup pod {pod_uid}"
        names = self._logs.read(container_id, pod_uid)
        return _facts(container_id, pod_uid, names, Source.KUBELET, why=bundle)


def _of_bundle(container_id: str, pod_uid: str, bundle: Bundle) -> PodFacts:
    names = bundle.names
    why = "" if names.pod or not (pod_uid or names.uid) else "the runtime's files name no pod"
    facts = _facts(container_id, pod_uid, names, Source.BUNDLE, why=why)
    return msgspec.structs.replace(facts, init_pid=bundle.init_pid)


def _facts(container_id: str, pod_uid: str, names: Names, source: Source, why: str = "") -> PodFacts:
    def told(value: str) -> Told:
        return Told(value, source) if value else NOTHING

    in_pod = True if pod_uid or names.pod else (None if why else False)
    return PodFacts(
        container_id=container_id,
        namespace=told(names.namespace),
        name=told(names.pod),
        uid=Told(pod_uid, Source.CGROUP) if pod_uid else told(names.uid),
        container=told(names.container),
        image=told(names.image),
        sandbox_id=names.sandbox_id,
        in_pod=in_pod,
        why=why,
    )
