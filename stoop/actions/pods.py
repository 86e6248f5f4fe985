"""What the acts on pods share: how an alert names a pod, and the rights on the API server that they need."""

from __future__ import annotations

from stoop.spec import (
    ClusterRight,
)

# In the order in which they are looked up. The `ka.` fields come from the audit log of the API server (Falco's plugin
# k8saudit): `ka.target.pod.name` for what is done *in* a pod (exec), `ka.target.name` for what is done *to* it.
POD_NEEDS: tuple[tuple[str, ...], ...] = (
    ("k8s.pod.name", "ka.target.pod.name", "ka.target.name"),
    ("k8s.ns.name", "ka.target.namespace"),
)

# `fd.rip` is the remote end of a connection, `fd.sip` its server side; Falco fills what the rule prints.
REMOTE_ADDRESS_NEEDS: tuple[str, ...] = ("fd.rip", "fd.sip")

READ_POD = ClusterRight(group="", resources=("pods",), verbs=("get",))
READ_NODE = ClusterRight(group="", resources=("nodes",), verbs=("get",))
READ_REPLICASET = ClusterRight(group="apps", resources=("replicasets",), verbs=("get",))
# Whose selector names the pods of a workload. Deployments are reached through their replica set.
READ_WORKLOAD = ClusterRight(group="apps", resources=("daemonsets", "replicasets", "statefulsets"), verbs=("get",))
# exec over WebSocket begins with a GET, which the API server checks as `get`; SPDY's POST, and newer API servers on any
# way in, ask for `create`.
EXEC_IN_POD = ClusterRight(group="", resources=("pods/exec",), verbs=("create", "get"))
