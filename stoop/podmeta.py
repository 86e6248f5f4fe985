"""What the API knows of a pod beside its names: labels, annotations, owners; and the alert fields that these answer.

Pure. Falco's own fields are `k8s.pod.label[KEY]` (once written `k8s.pod.label.KEY`), `k8s.rs.name`, `k8s.rc.name` and
`k8s.deployment.name`; the others are ours, in the same form. Labels, annotations and owners are what the maker of a pod
wrote there, and whoever may patch it: they say what a pod is meant to be, never who it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_LABEL, _ANNOTATION = "k8s.pod.label", "k8s.pod.annotation"

_OWNERS = {"k8s.rs.name": ("ReplicaSet", "apps/"), "k8s.rc.name": ("ReplicationController", "v1")}
"""Fields that name an owner of one kind, and how its API version begins: another group may have such a kind too."""

_DEPLOYMENT = "k8s.deployment.name"

_OTHERS = frozenset({*_OWNERS, _DEPLOYMENT, "k8s.pod.owner.kind", "k8s.pod.owner.name"})

TEMPLATE_HASH = "pod-template-hash"
"""The label by which a Deployment tells its ReplicaSets apart: their names end with it (k8s.io/api/apps/v1,
DefaultDeploymentUniqueLabelKey)."""

MIRROR = "kubernetes.io/config.mirror"
"""On the API's copy of a static pod: the uid that the kubelet, and so the cgroup, has for it (k8s.io/api/core/v1,
MirrorPodAnnotationKey)."""


def is_metadata(field: str) -> bool:
    """Whether this alert field is one that a pod's metadata answers."""
    return field in _OTHERS or _key(field) is not None


def _key(field: str) -> tuple[str, str] | None:
    """(`k8s.pod.label` or `k8s.pod.annotation`, key) of a field that asks one label or annotation."""
    for kind in (_LABEL, _ANNOTATION):
        if field.startswith(kind):
            mark, key = field[len(kind) : len(kind) + 1], field[len(kind) + 1 :]
            if mark == "." and key:
                return kind, key
            if mark == "[" and len(key) > 1 and key.endswith("]"):
                return kind, key[:-1]
    return None


class Owner(msgspec.Struct, frozen=True):
    """The object that made a pod and looks after it: of its ownerReferences the one with `controller: true`."""

    kind: str
    name: str
    version: str = ""  # apiVersion: `apps/v1`, `batch/v1`, `v1`

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


class PodMeta(msgspec.Struct, frozen=True):
    """One pod's metadata, without what nobody asks for.

    `cut`: labels or annotations were left out, for they are too many or too long: one that is not here is not known.
    `mirrors`: of the API's copy of a static pod, the uid that its node has for it; else "".
    """

    uid: str
    namespace: str
    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner: Owner | None = None
    cut: bool = False
    mirrors: str = ""

    def fields(self, asked: Iterable[str]) -> dict[str, str | None]:
        """Of the fields that are asked those that it answers: a value, None (it has none), or no key (not known)."""
        known: dict[str, str | None] = {}
        for field in asked:
            found = _key(field)
            if found is not None:
                values = self.labels if found[0] == _LABEL else self.annotations
                if found[1] in values or not self.cut:
                    known[field] = values.get(found[1])
            elif field in _OTHERS:
                known |= self._of_owner(field)
        return known

    def _of_owner(self, field: str) -> dict[str, str | None]:
        owner = self.owner
        if field == _DEPLOYMENT:
            # Which label a name ends with is not known when labels were left out.
            return {} if self.cut and TEMPLATE_HASH not in self.labels else {field: self._deployment()}
        if owner is None:
            return {field: None}
        if field in _OWNERS:
            kind, version = _OWNERS[field]
            return {field: owner.name if owner.kind == kind and owner.version.startswith(version) else None}
        return {field: owner.kind if field.endswith("kind") else owner.name}

    def _deployment(self) -> str | None:
        """The name of its Deployment: its ReplicaSet's, without the hash of the template that both bear."""
        replicas = self._of_owner("k8s.rs.name")["k8s.rs.name"]
        ending = f"-{self.labels.get(TEMPLATE_HASH, '')}"
        if replicas is None or len(ending) == 1 or not replicas.endswith(ending):
            return None
        return replicas.removesuffix(ending) or None
