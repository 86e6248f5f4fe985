"""k8sevents: an Event of Kubernetes in the namespace that the act was about."""

from __future__ import annotations

from stoop.spec import (
    ClusterRight,
    NotifierSpec,
)

SPEC = NotifierSpec(
    name="k8sevents",
    description="Writes an Event of Kubernetes about the pod, which `kubectl get events` shows.",
    cluster_rights=(
        ClusterRight(group="", resources=("events",), verbs=("create",)),
        # The Event refers to the pod by its UID.
        ClusterRight(group="", resources=("pods",), verbs=("get",)),
    ),
    example="""\
default_notifiers: [k8sevents]
""",
)
