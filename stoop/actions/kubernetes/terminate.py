"""kubernetes:terminate: delete the pod.

It destroys: what the pod held in memory and in its own file systems is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import POD_NEEDS, READ_REPLICASET
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


class TerminateParameters(Parameters, frozen=True):
    """Which pods are spared, and how long the others get."""

    grace_period_seconds: Annotated[
        int,
        Meta(description="Seconds between SIGTERM and SIGKILL. 0 deletes at once, without the pod's own grace period."),
    ] = 0
    ignore_daemonsets: Annotated[bool, Meta(description="Spare pods that belong to a DaemonSet.")] = False
    ignore_statefulsets: Annotated[bool, Meta(description="Spare pods that belong to a StatefulSet.")] = False
    ignore_standalone_pods: Annotated[bool, Meta(description="Spare pods that nothing would create again.")] = False
    min_healthy_replicas: Annotated[
        str,
        Meta(
            description="Spare the pod if its ReplicaSet has fewer ready pods than this: a count (`'3'`, in quotes) "
            "or a percentage of the wanted replicas (`33%`, rounded up). Empty: no such limit."
        ),
    ] = ""


def check(params: TerminateParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.replicas("min_healthy_replicas", params.min_healthy_replicas)


SPEC = ActionSpec(
    name="kubernetes:terminate",
    description="Deletes the pod. What owns it (a ReplicaSet, a Job, …) usually starts another.",
    parameters=TerminateParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.POD,
    continue_default=False,
    sources=("syscall",),
    needs=POD_NEEDS,
    destroys=True,
    # Deleted by UID: a second request finds nothing.
    idempotent=True,
    cluster_rights=(
        ClusterRight(group="", resources=("pods",), verbs=("delete", "get")),
        READ_REPLICASET,
    ),
    example="""\
- action: Terminate the pod
  actionner: kubernetes:terminate
  parameters:
    grace_period_seconds: 2
    ignore_daemonsets: true
    min_healthy_replicas: 33%
- rule: A shell was started in a container
  match:
    rules: [Terminal shell in container]
  actions:
    - action: Terminate the pod
""",
)

ACTION = Action(spec=SPEC)
