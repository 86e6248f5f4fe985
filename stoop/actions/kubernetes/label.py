"""kubernetes:label: set or remove labels on the pod or on its node."""

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


class LabelParameters(Parameters, frozen=True):
    """What to set, and on what."""

    labels: Annotated[
        dict[str, str],
        Meta(description="Key and value of each label, the value as text. An empty value removes the label."),
    ]
    level: Annotated[
        str,
        Meta(description="`node`: on the node that the pod runs on. Anything else: on the pod."),
    ] = "pod"


def check(params: LabelParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.not_empty("labels", params.labels)


SPEC = ActionSpec(
    name="kubernetes:label",
    description="Sets labels on the pod or on its node, or removes them.",
    parameters=LabelParameters,
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
  actionner: kubernetes:label
  parameters:
    labels:
      analysis/status: suspicious
      analysis/cleared: ""
- rule: Something suspicious in a container
  match:
    priority: ">=Warning"
    tags: [container]
  actions:
    - action: Mark the pod
""",
)

ACTION = Action(spec=SPEC)
