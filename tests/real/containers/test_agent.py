"""The whole agent on a real node: it tells pods apart by what the node says, whatever the alert omits or claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import alive, await_that
from tests.real.containers.node import Node
from tests.real.containers.on_node import AgentOnNode, on_node, told_of

pytestmark = [pytest.mark.root, pytest.mark.real]

RULES = """
- rule: Kill a shell of the shop
  match: {rules: [Terminal shell in container], output_fields: ["k8s.ns.name!=dev, container.name=app"]}
  actions: [{action: Kill it, actionner: "container:kill"}]
"""


@pytest.fixture
def agent(the_node: Node, tmp_path: Path) -> Iterator[AgentOnNode]:
    made = on_node(the_node, tmp_path, RULES)
    made.start()
    yield made
    made.close()


def test_the_node_tells_what_the_alert_left_out(the_node: Node, agent: AgentOnNode) -> None:
    pod = the_node.pod("web-1", "shop")
    victim, other = pod.container("sleep", "1000", name="app"), pod.container("sleep", "1000", name="side")
    in_dev = the_node.pod("web-1", "dev").container("sleep", "1000", name="app")
    agent.send(told_of(in_dev), told_of(other), told_of(victim))
    (row,) = agent.records(1)
    await_that(lambda: not alive(victim.init_pid), "the container of the shop dead")
    assert alive(other.init_pid)
    assert alive(in_dev.init_pid)
    assert row["outcome"] == "done"
    target = row["target"]
    assert {key: target[key] for key in ("namespace", "pod", "pod_uid", "container", "container_id")} == {
        "namespace": "shop",
        "pod": "web-1",
        "pod_uid": pod.uid,
        "container": "app",
        "container_id": victim.id,
    }
    assert target["told_by"] == {
        **dict.fromkeys(("namespace", "pod", "container", "image"), "bundle"),
        "pod_uid": "cgroup",
    }


def test_a_protected_namespace_and_an_alert_that_disagrees(the_node: Node, agent: AgentOnNode) -> None:
    system = the_node.pod("dns-1", "kube-system").container("sleep", "1000", name="app")
    shop = the_node.pod("web-1", "shop").container("sleep", "1000", name="app")
    agent.send(told_of(system), told_of(shop, k8s_ns_name="other"), told_of(shop, k8s_pod_name="web-2"))
    reasons = [(row["outcome"], row["reason"]) for row in agent.records(3)]
    assert reasons == [
        (
            "refused",
            "namespace kube-system is protected (guard.protected_namespaces); so says the node (bundle)",
        ),
        ("refused", "the alert says k8s.ns.name 'other', the node (bundle) 'shop'"),
        ("refused", "the alert says k8s.pod.name 'web-2', the node (bundle) 'web-1'"),
    ]
    assert alive(system.init_pid)
    assert alive(shop.init_pid)
