"""kubernetes:networkpolicy: cut the egress of the pod's workload with a NetworkPolicy (networking.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, field

from stoop import values
from stoop.actions.pods import POD_NEEDS, READ_POD, READ_WORKLOAD
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


class NetworkPolicyParameters(Parameters, frozen=True):
    """What stays reachable. With neither list nothing does."""

    allow_cidr: Annotated[list[str], Meta(description="Networks that stay reachable, in CIDR form (`10.0.0.0/8`).")] = (
        field(default_factory=list)
    )
    allow_namespaces: Annotated[list[str], Meta(description="Namespaces whose pods stay reachable, by name.")] = field(
        default_factory=list
    )


def check(params: NetworkPolicyParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.cidrs("allow_cidr", params.allow_cidr)


SPEC = ActionSpec(
    name="kubernetes:networkpolicy",
    description="Denies egress to every pod of the workload that the pod belongs to, save for what is allowed here. "
    "Ingress is left alone. It takes a network plugin that enforces policies.",
    parameters=NetworkPolicyParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.WORKLOAD,
    continue_default=True,
    sources=("syscall",),
    needs=POD_NEEDS,
    reversible=True,
    idempotent=True,
    cluster_rights=(
        READ_POD,
        READ_WORKLOAD,
        # `delete` takes the policy back when its time is over.
        ClusterRight(
            group="networking.k8s.io", resources=("networkpolicies",), verbs=("create", "delete", "get", "update")
        ),
    ),
    example="""\
- action: Isolate the workload
  actionner: kubernetes:networkpolicy
  parameters:
    allow_cidr: [10.96.0.10/32]
    allow_namespaces: [observability]
- rule: A container talks to a miner pool
  match:
    rules: [Detect outbound connections to common miner pool ports]
  actions:
    - action: Isolate the workload
""",
)

ACTION = Action(spec=SPEC)
