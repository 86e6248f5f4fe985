"""kubernetes:delete: delete the object that an audit event is about.

It destroys: a deleted object can't be brought back from here. Nothing in Falco's audit fields names the object's UID,
so it is read first and spared if it was created after the event.
"""

from __future__ import annotations

from stoop.spec import (
    Action,
    ActionSpec,
    ClusterRight,
    Reach,
    Scope,
    TargetKind,
)

_VERBS = ("delete", "get")

SPEC = ActionSpec(
    name="kubernetes:delete",
    description="Deletes the object that the audit event names: a namespace, configmap, secret, deployment, daemonset, "
    "statefulset, replicaset, service, serviceaccount, role or clusterrole. Pods are for kubernetes:terminate.",
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.CLUSTER,
    continue_default=False,
    sources=("k8s_audit",),
    # `ka.target.namespace` too, save for namespaces and clusterroles, which are in none: the act itself checks that.
    needs=(("ka.target.resource",), ("ka.target.name",)),
    destroys=True,
    idempotent=True,
    cluster_rights=(
        ClusterRight(
            group="", resources=("configmaps", "namespaces", "secrets", "serviceaccounts", "services"), verbs=_VERBS
        ),
        ClusterRight(
            group="apps", resources=("daemonsets", "deployments", "replicasets", "statefulsets"), verbs=_VERBS
        ),
        ClusterRight(group="rbac.authorization.k8s.io", resources=("clusterroles", "roles"), verbs=_VERBS),
    ),
    example="""\
- action: Delete the object
  actionner: kubernetes:delete
- rule: A configmap holds credentials
  match:
    rules: [Create/Modify Configmap With Private Credentials]
    source: k8s_audit
  actions:
    - action: Delete the object
""",
)

ACTION = Action(spec=SPEC)
