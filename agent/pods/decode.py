"""JSON of the API and of the kubelet → `PodMeta`, and nothing that nobody asks for. Pure.

Both a PartialObjectMetadataList (meta.k8s.io/v1) and a PodList (v1) have `metadata` and `items[].metadata`; the rest is
read past. What a pod's maker can make long is bounded here, and said to be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from stoop.podmeta import MIRROR, Owner, PodMeta

MAX_VALUE = 1024
"""Bytes of one annotation that are kept: what rules compare is short; a last applied manifest is not for them."""

MAX_KEPT = 16 * 1024
"""Bytes of keys and values kept of one pod, labels first. An object may have 1.5 MiB of them (etcd's limit)."""

MAX_NAME = 253
"""Of a name, a namespace and a uid (RFC 1123 subdomain; Kubernetes, "Object Names and IDs")."""

MAX_LINE = 2 * 1024 * 1024
"""Bytes of one event of a watch: an object has at most 1.5 MiB."""


MAX_MESSAGE = 500
"""Characters of what a server says against a request."""


class Garbled(ValueError):
    """These bytes are not what an API server says."""


class _Owner(msgspec.Struct):
    kind: str
    name: str
    apiVersion: str = ""
    controller: bool | None = None


class _Meta(msgspec.Struct, rename={"owners": "ownerReferences", "version": "resourceVersion"}):
    uid: str = ""
    name: str = ""
    namespace: str = ""
    version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owners: list[_Owner] | None = None


class _Object(msgspec.Struct):
    metadata: _Meta


class _List(msgspec.Struct):
    metadata: _Meta
    items: list[_Object] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class Listed(NamedTuple):
    """All pods of one moment, and the version to watch from."""

    pods: tuple[PodMeta, ...]
    version: str


class Event(NamedTuple):
    """One event of a watch. `type`: ADDED, MODIFIED, DELETED (with a pod), BOOKMARK, ERROR (with code and message)."""

    type: str
    version: str = ""
    pod: PodMeta | None = None
    code: int = 0
    message: str = ""


_list = msgspec.json.Decoder(_List).decode
_event = msgspec.json.Decoder(_Event).decode
_object = msgspec.json.Decoder(_Object).decode
_status = msgspec.json.Decoder(_Status).decode


def read_list(data: bytes | bytearray) -> Listed:
    """A list of pods. Raises Garbled."""
    try:
        found = _list(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"not a list of pods: {error}") from error
    return Listed(tuple(pod_of(item.metadata) for item in found.items or ()), found.metadata.version)


def read_event(line: bytes) -> Event:
    """One line of a watch. Raises Garbled."""
    try:
        event = _event(line)
        if event.type == "ERROR":
            status = _status(event.object)
            return Event("ERROR", code=status.code, message=status.message[:MAX_MESSAGE])
        meta = _object(event.object).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"not an event of a watch: {error}") from error
    if event.type == "BOOKMARK":
        return Event("BOOKMARK", meta.version)
    if event.type not in ("ADDED", "MODIFIED", "DELETED"):
        raise Garbled(f"an event of a kind that is not known: {event.type[:40]!r}")
    return Event(event.type, meta.version, pod_of(meta))


def read_message(data: bytes) -> str:
    """The message of a Status (meta/v1), shortened; "" where it is none."""
    try:
        return _status(data).message[:MAX_MESSAGE]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def pod_of(meta: _Meta) -> PodMeta:
    """What is kept of one object's metadata. Raises Garbled without a name, namespace or uid."""
    for text in (meta.uid, meta.name, meta.namespace):
        if not 0 < len(text) <= MAX_NAME:
            raise Garbled(f"a pod without a name, a namespace or a uid: {(meta.namespace, meta.name)!r:.200}")
    labels, annotations = meta.labels or {}, meta.annotations or {}
    left = MAX_KEPT
    kept_labels, left = _kept(labels, left)
    kept_annotations, _ = _kept(annotations, left)
    cut = len(kept_labels) < len(labels) or len(kept_annotations) < len(annotations)
    owner = next((owner for owner in meta.owners or () if owner.controller), None)
    return PodMeta(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        labels=kept_labels,
        annotations=kept_annotations,
        owner=Owner(owner.kind[:MAX_NAME], owner.name[:MAX_NAME], owner.apiVersion[:MAX_NAME]) if owner else None,
        cut=cut,
        mirrors=annotations.get(MIRROR, "")[:MAX_NAME],
    )


def _kept(values: dict[str, str], left: int) -> tuple[dict[str, str], int]:
    """As many as fit, in the order of their keys, so that which ones is not chance; and what is left of the bound."""
    kept = {}
    for key in sorted(values):
        size = len(key.encode()) + len(values[key].encode())
        if len(values[key]) <= MAX_VALUE and size <= left:
            kept[key] = values[key]
            left -= size
    return kept, left


class Lines:
    """Takes bytes as they come and gives whole lines, without their ends. Holds at most one unfinished line."""

    def __init__(self, most: int = MAX_LINE) -> None:
        self._most = most
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that these bytes complete; empty ones are left out. Raises Garbled for one that is too long."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._hold(data[start:end])
            line, self._held = bytes(self._held), bytearray()
            start = end + 1
            if line.strip():
                yield line
        self._hold(data[start:])

    def _hold(self, data: bytes) -> None:
        if len(self._held) + len(data) > self._most:
            self._held = bytearray()
            raise Garbled(f"an event of more than {self._most} bytes")
        self._held += data
