"""calico:networkpolicy: deny the workload the address it talked to, with a NetworkPolicy of Calico (its API v3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, field

from stoop import values
from stoop.actions.pods import POD_NEEDS, READ_POD, READ_WORKLOAD, REMOTE_ADDRESS_NEEDS
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

_VERBS = ("create", "delete", "get", "update")  # `delete` takes the policy back when its time is over


class CalicoNetworkPolicyParameters(Parameters, frozen=True):
    """What stays reachable. With neither list everything but the denied addresses does."""

    allow_cidr: Annotated[list[str], Meta(description="Networks that stay reachable, in CIDR form (`10.0.0.0/8`).")] = (
        field(default_factory=list)
    )
    allow_namespaces: Annotated[list[str], Meta(description="Namespaces whose pods stay reachable, by name.")] = field(
        default_factory=list
    )
    order: Annotated[
        int, Meta(description="The policy's place among Calico's policies; the lowest is applied first.")
    ] = 0


def check(params: CalicoNetworkPolicyParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.cidrs("allow_cidr", params.allow_cidr)


SPEC = ActionSpec(
    name="calico:networkpolicy",
    description="Denies every pod of the workload egress to the remote address of the alert. If a list is given, "
    "only what it names stays reachable. It takes Calico and its API server.",
    parameters=CalicoNetworkPolicyParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.WORKLOAD,
    continue_default=True,
    sources=("syscall",),
    needs=(*POD_NEEDS, REMOTE_ADDRESS_NEEDS),
    reversible=True,
    idempotent=True,
    cluster_rights=(
        READ_POD,
        READ_WORKLOAD,
        # Calico asks twice: the API server for `networkpolicies`, then Calico itself for the tier that the policy is in
        # (docs.tigera.io, "Configure RBAC for tiered policies").
        ClusterRight(group="projectcalico.org", resources=("networkpolicies", "tier.networkpolicies"), verbs=_VERBS),
        ClusterRight(group="projectcalico.org", resources=("tiers",), verbs=("get",)),
    ),
    example="""\
- action: Deny the address
  actionner: calico:networkpolicy
  parameters:
    allow_namespaces: [kube-system]
    order: 20
- rule: A container talks to a miner pool
  match:
    rules: [Detect outbound connections to common miner pool ports]
  actions:
    - action: Deny the address
""",
)

ACTION = Action(spec=SPEC)
