"""Whose container it is, as the node tells: pod, namespace, container name, and which word of the node's it was.

Pure. Falco has the same names from the runtime's socket, but late or never (`k8s.*` is often null); the node has them
in files, of which some only root can write.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from stoop.podmeta import PodMeta, is_metadata

POD_FIELDS = ("k8s.ns.name", "k8s.pod.name", "k8s.pod.uid", "k8s.pod.id")
"""What Falco says of a pod (`k8s.pod.id` is the old name of `k8s.pod.uid`)."""

UNTOLD = ("", "<NA>")
"""What Falco writes where it knows nothing."""


class Source(enum.StrEnum):
    """Where a name was read."""

    ALERT = "alert"
    CGROUP = "cgroup"  # the path of the container's cgroup
    BUNDLE = "bundle"  # the runtime's own files, which only root can write
    KUBELET = "kubelet"  # /var/log/pods and /var/log/containers: a pod with a hostPath there can forge them
    API = "api"  # the API server, or the kubelet's own list of its pods


class Told(msgspec.Struct, frozen=True):
    """A name and where it was read. `value` is "" where nothing told it."""

    value: str = ""
    source: Source = Source.ALERT

    @property
    def is_strong(self) -> bool:
        """Whether no container can have forged it."""
        return bool(self.value) and self.source in (Source.CGROUP, Source.BUNDLE, Source.API)


NOTHING = Told()


class PodFacts(msgspec.Struct, frozen=True):
    """What the node says of the pod that a container belongs to.

    `in_pod`: False where the runtime's own files and the cgroup show no pod; None where it could not be told.
    `sandbox_id`: the container that holds the pod's namespaces, "" where it is not known.
    `why`: why the runtime's own word is missing, "" where it is there.
    `init_pid`: its first process, by the runtime's own word; 0 without that.
    `meta`: what the API says of it, None where that is not known; `conflict`: how API and node disagree about who it
    is, "" where they do not. `stale_s`: how old that is, where it is so old that somebody should know; else 0.
    """

    container_id: str
    namespace: Told = NOTHING
    name: Told = NOTHING
    uid: Told = NOTHING
    container: Told = NOTHING
    image: Told = NOTHING
    sandbox_id: str = ""
    in_pod: bool | None = None
    why: str = ""
    init_pid: int = 0
    meta: PodMeta | None = None
    conflict: str = ""
    stale_s: int = 0

    def joined(self, meta: PodMeta) -> PodFacts:
        """The same with the API's word on the pod of this uid: it counts more than a word that can be forged."""
        names = (("k8s.ns.name", self.namespace, meta.namespace), ("k8s.pod.name", self.name, meta.name))
        conflict = ""
        for field, told, value in names:
            if told.is_strong and told.value != value:
                conflict = f"the node ({told.source}) says {field} {told.value!r}, the API {value[:MAX_SHOWN]!r}"
                break
        namespace, name = (told if told.is_strong else Told(value, Source.API) for _, told, value in names)
        return msgspec.structs.replace(self, namespace=namespace, name=name, meta=meta, conflict=conflict)

    def fields(self, asked: Iterable[str] = ()) -> dict[str, str | None]:
        """By Falco's names: a value, None (known to have none), or no key (unknown).

        `asked`: the fields that are wanted, for labels and annotations can have any name.
        """
        known: dict[str, str | None] = dict.fromkeys(POD_FIELDS) if self.in_pod is False else {}
        known |= {field: told.value for field, told in self._by_field() if told.value}
        if self.container.value:
            known["container.name"] = self.container.value
        return known | self.metadata(asked)

    def metadata(self, asked: Iterable[str]) -> dict[str, str | None]:
        """Of `fields` those that labels, annotations and owners answer."""
        if self.in_pod is False:
            return {field: None for field in asked if is_metadata(field)}
        return self.meta.fields(asked) if self.meta is not None else {}

    def contradicts(self, fields: Mapping[str, object]) -> str:
        """Empty, or how alert, node and API disagree about who it is. Only what can't be forged contradicts."""
        if self.conflict:
            return self.conflict
        for field, told in self._by_field():
            claimed = fields.get(field)
            if not isinstance(claimed, str) or claimed in UNTOLD:
                continue
            if told.is_strong and told.value != claimed:
                by = "the API" if told.source is Source.API else f"the node ({told.source})"
                return f"the alert says {field} {claimed[:MAX_SHOWN]!r}, {by} {told.value!r}"
            if self.in_pod is False:
                return f"the alert says {field} {claimed[:MAX_SHOWN]!r}, the node that the container is in no pod"
        return ""

    def describe(self) -> dict[str, str]:
        """What a record says: the names that are known."""
        names = {key: told.value for key, told in self._by_name() if told.value}
        return names | ({"owner": str(self.meta.owner)} if self.meta is not None and self.meta.owner else {})

    def sources(self) -> dict[str, str]:
        """Where each of `describe` was read."""
        sources = {key: str(told.source) for key, told in self._by_name() if told.value}
        return sources | ({"owner": str(Source.API)} if self.meta is not None and self.meta.owner else {})

    def _by_field(self) -> tuple[tuple[str, Told], ...]:
        return tuple(zip(POD_FIELDS, (self.namespace, self.name, self.uid, self.uid), strict=True))

    def _by_name(self) -> tuple[tuple[str, Told], ...]:
        return (
            ("namespace", self.namespace),
            ("pod", self.name),
            ("pod_uid", self.uid),
            ("container", self.container),
            ("image", self.image),
        )


class Upper(msgspec.Struct, frozen=True):
    """Where a container's overlay keeps what the container wrote, as the runtime mounted it.

    `directory`: as this process sees it. `device`: MAJOR:MINOR of that overlay, which no other one of the node has: the
    container's root must have it too. `why`: the reason where there is none to be told; the others are "" then.
    """

    directory: str = ""
    device: str = ""
    why: str = ""


MAX_SHOWN = 64
"""Characters shown of a name that an alert claims: a DNS label (RFC 1123) has at most 63."""


class NamespaceFacts(msgspec.Struct, frozen=True):
    """The namespaces of a container, told by inode (namespaces(7)), beside the host's and other pods'.

    `net`, `pid`, `mnt`: of the container's first process. `pod_net`: of the pod's sandbox, which is what an act on the
    pod's network is for; `holder_pid`: a process of that one (of the container, where the sandbox is not known).
    `shared_with`: ids of containers of other pods that are in `pod_net` too.
    `elsewhere`: what of the alert's process differs from its container's first process: `net`, `pid`, `mnt`, `root`.
    """

    container_id: str
    init_pid: int
    holder_pid: int
    sandbox_id: str
    net: int
    pid: int
    mnt: int
    pod_net: int
    host_net: int
    host_pid: int
    host_mnt: int
    shared_with: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def on_host_network(self) -> bool:
        """Whether the pod's network is the host's: no act on it alone is possible."""
        return self.pod_net == self.host_net
