"""kubernetes:annotation: set or remove annotations on the pod or on its node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import POD_NEEDS
from stoop.spec import (
    Action,
    ActionSpec,
    ClusterRight,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)


class AnnotationParameters(Parameters, frozen=True):
    """What to set, and on what."""

    annotations: Annotated[
        dict[str, str],
        Meta(description="Key and value of each annotation, the value as text. An empty value removes the annotation."),
    ]
    level: Annotated[
        str,
        Meta(description="`node`: on the node that the pod runs on. Anything else: on the pod."),
    ] = "pod"


def check(params: AnnotationParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.not_empty("annotations", params.annotations)


SPEC = ActionSpec(
    name="kubernetes:annotation",
    description="Sets annotations on the pod or on its node, or removes them.",
    parameters=AnnotationParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    # The furthest that `level` allows.
    reach=Reach.NODE,
    continue_default=True,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    reversible=True,
    idempotent=True,
    cluster_rights=(
        ClusterRight(group="", resources=("pods",), verbs=("get", "patch")),
        ClusterRight(group="", resources=("nodes",), verbs=("get", "patch")),
    ),
    example="""\
- action: Mark the pod
  actionner: kubernetes:annotation
  parameters:
    annotations:
      security.example.com/status: suspicious
      security.example.com/cleared: ""
- rule: Something suspicious in a container
  match:
    priority: ">=Warning"
    tags: [container]
  actions:
    - action: Mark the pod
""",
)

ACTION = Action(spec=SPEC)
