"""cilium:networkpolicy: deny the workload the address it talked to, with a CiliumNetworkPolicy (cilium.io/v2)."""

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


class CiliumNetworkPolicyParameters(Parameters, frozen=True):
    """What stays reachable. With neither list everything but the denied addresses does."""

    allow_cidr: Annotated[list[str], Meta(description="Networks that stay reachable, in CIDR form (`10.0.0.0/8`).")] = (
        field(default_factory=list)
    )
    allow_namespaces: Annotated[list[str], Meta(description="Namespaces whose pods stay reachable, by name.")] = field(
        default_factory=list
    )


def check(params: CiliumNetworkPolicyParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.cidrs("allow_cidr", params.allow_cidr)


SPEC = ActionSpec(
    name="cilium:networkpolicy",
    description="Denies every pod of the workload egress to the remote address of the alert. If a list is given, "
    "only what it names stays reachable. It takes Cilium.",
    parameters=CiliumNetworkPolicyParameters,
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
        # `delete` takes the policy back when its time is over.
        ClusterRight(
            group="cilium.io", resources=("ciliumnetworkpolicies",), verbs=("create", "delete", "get", "update")
        ),
    ),
    example="""\
- action: Deny the address
  actionner: cilium:networkpolicy
  parameters:
    allow_cidr: [10.0.0.0/8]
- rule: A container talks to a miner pool
  match:
    rules: [Detect outbound connections to common miner pool ports]
  actions:
    - action: Deny the address
""",
)

ACTION = Action(spec=SPEC)
