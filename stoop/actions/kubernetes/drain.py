"""kubernetes:drain: evict every pod of the pod's node.

It destroys: an evicted pod is deleted, and with it what it held in memory and in its own file systems.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, field

from stoop import values
from stoop.actions.pods import POD_NEEDS, READ_NODE, READ_REPLICASET
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


class DrainParameters(Parameters, frozen=True):
    """Which pods are spared, and how long to wait for the others."""

    ignore_daemonsets: Annotated[bool, Meta(description="Spare pods that belong to a DaemonSet.")] = False
    ignore_statefulsets: Annotated[bool, Meta(description="Spare pods that belong to a StatefulSet.")] = False
    min_healthy_replicas: Annotated[
        str,
        Meta(
            description="Spare pods whose ReplicaSet has fewer ready pods than this: a count (`'3'`, in quotes) "
            "or a percentage of the wanted replicas (`33%`, rounded up). Empty: no such limit."
        ),
    ] = ""
    ignore_errors: Annotated[
        bool, Meta(description="Count the act as done even if some pods could not be evicted.")
    ] = False
    max_wait_period: Annotated[
        int, Meta(description="Seconds to wait for the evicted pods to be gone. 0: don't wait.")
    ] = 0
    wait_period_excluded_namespaces: Annotated[
        list[str], Meta(description="Namespaces whose pods are evicted but not waited for.")
    ] = field(default_factory=list)


def check(params: DrainParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.replicas("min_healthy_replicas", params.min_healthy_replicas)


SPEC = ActionSpec(
    name="kubernetes:drain",
    description="Evicts all pods of the node that the pod runs on. It does not cordon the node: put kubernetes:cordon "
    "before it, or the pods may come back.",
    parameters=DrainParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.NODE,
    continue_default=True,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    destroys=True,
    idempotent=True,
    blocking=True,
    cluster_rights=(
        ClusterRight(group="", resources=("pods",), verbs=("get", "list")),
        ClusterRight(group="", resources=("pods/eviction",), verbs=("create",)),
        READ_NODE,
        READ_REPLICASET,
    ),
    example="""\
- action: Cordon the node
  actionner: kubernetes:cordon
- action: Drain the node
  actionner: kubernetes:drain
  parameters:
    ignore_daemonsets: true
    ignore_statefulsets: true
    max_wait_period: 60
- rule: A container escapes by release_agent
  match:
    rules: [Detect release_agent File Container Escapes]
  actions:
    - action: Cordon the node
    - action: Drain the node
""",
)

ACTION = Action(spec=SPEC)
