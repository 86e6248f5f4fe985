"""kubernetes:cordon: keep new pods off the pod's node. What runs there is not touched, so it destroys nothing."""

from __future__ import annotations

from stoop.actions.pods import POD_NEEDS, READ_POD
from stoop.spec import (
    Action,
    ActionSpec,
    ClusterRight,
    Reach,
    Scope,
    TargetKind,
)

SPEC = ActionSpec(
    name="kubernetes:cordon",
    description="Marks the node that the pod runs on as unschedulable.",
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.NODE,
    continue_default=True,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    reversible=True,
    idempotent=True,
    cluster_rights=(READ_POD, ClusterRight(group="", resources=("nodes",), verbs=("get", "patch"))),
    example="""\
- action: Cordon the node
  actionner: kubernetes:cordon
- rule: A container escapes by release_agent
  match:
    rules: [Detect release_agent File Container Escapes]
  actions:
    - action: Cordon the node
""",
)

ACTION = Action(spec=SPEC)
