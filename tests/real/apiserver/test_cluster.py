"""The harness itself: what the other tests take for granted of it."""

from __future__ import annotations

import pytest

from tests.real.apiserver.cluster import Cluster, Refused


def test_rights_are_those_of_the_account_and_every_request_is_written_down(the_cluster: Cluster) -> None:
    namespace = the_cluster.namespace()
    token = the_cluster.account(namespace, "reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
    made = the_cluster.pod(namespace, "web-1", node="node-of-harness", labels={"app": "web"})
    (found,) = the_cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods", token=token)["items"]
    assert (found["metadata"]["uid"], found["spec"]["nodeName"]) == (made["metadata"]["uid"], "node-of-harness")
    with pytest.raises(Refused, match=r"403.*cannot delete resource"):
        the_cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/web-1", token=token)
    asked = the_cluster.asked_by(namespace, "reader")
    assert [(event["verb"], event["responseStatus"]["code"]) for event in asked] == [("list", 200), ("delete", 403)]


def test_a_pod_goes_at_once(the_cluster: Cluster) -> None:
    namespace = the_cluster.namespace()
    the_cluster.pod(namespace, "web-1", node="node-of-harness")
    the_cluster.delete(namespace, "web-1")
    assert the_cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods")["items"] == []
