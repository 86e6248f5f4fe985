"""Real containers of pods that a real API server knows: three witnesses, and what becomes of it when they disagree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent
from tests.real.apiserver.cluster import Cluster
from tests.real.apiserver.sources import RIGHTS
from tests.real.conftest import alive, await_that, pytest_runtest_setup
from tests.real.containers.node import Node, missing, node
from tests.real.containers.on_node import told_of

__all__ = ["pytest_runtest_setup"]

pytestmark = [pytest.mark.root, pytest.mark.real]

NODE = "node-of-containers"
STATIC = "0123456789abcdef0123456789abcdef"
RULES = """
- rule: Kill the web
  match: {rules: [Terminal shell in container], output_fields: ["k8s.pod.label[app]=web"]}
  actions: [{action: Kill it, actionner: "container:kill"}]
"""


class AgentBeside(Agent):
    """An agent that sees the node's files, and the machine's loopback, where the API server is."""

    node: Node

    def command(self, *words: str) -> list[str]:
        return [
            "nsenter",
            f"--target={self.node.pid}",
            "--mount",
            f"--wdns={os.getcwd()}",
            "--",
            *super().command(*words),
        ]


@pytest.fixture(scope="module")
def the_node() -> Iterator[Node]:
    """A node of these tests alone: others start the API server anew, which would be a difference of the machine."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with node() as made:
        yield made


@pytest.fixture
def namespace(the_cluster: Cluster) -> str:
    return the_cluster.namespace()


@pytest.fixture
def agent(the_node: Node, the_cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[AgentBeside]:
    token = tmp_path / "token"
    token.write_text(the_cluster.account(namespace, "agent", RIGHTS["watch"]))
    pods = {"source": "watch", "server": the_cluster.server, "token_file": str(token), "ca_file": str(the_cluster.ca)}
    guard = {"reference_pid": the_node.pid}
    made = AgentBeside(tmp_path, RULES, {"node_name": NODE, "pods": pods, "guard": guard})
    made.node = the_node
    made.start()
    yield made
    made.close()


def test_alert_node_and_api_together(the_node: Node, the_cluster: Cluster, agent: AgentBeside, namespace: str) -> None:
    labels = {"app": "web"}
    uids = [
        the_cluster.pod(namespace, name, node=NODE, labels=labels)["metadata"]["uid"] for name in ("web-1", "web-2")
    ]
    mirror = {"kubernetes.io/config.mirror": STATIC}
    the_cluster.pod(namespace, "static-1", node=NODE, labels=labels, annotations=mirror)
    victim = the_node.pod("web-1", namespace, uid=uids[0]).container("sleep", "1000", name="app")
    liar = the_node.pod("other", namespace, uid=uids[1]).container("sleep", "1000", name="app")
    static = the_node.pod("static-1", namespace, uid=STATIC).container("sleep", "1000", name="app")
    await_that(lambda: agent.status()["pods"]["known"] == 3, f"three pods: {agent.status()['pods']}; {agent.said()}")

    agent.send(told_of(liar))
    (row,) = agent.records(1)
    assert (row["outcome"], row["reason"]) == (
        "refused",
        "the node (bundle) says k8s.pod.name 'other', the API 'web-2'",
    )
    assert alive(liar.init_pid)

    agent.send(told_of(victim))
    row = agent.records(2)[-1]
    await_that(lambda: not alive(victim.init_pid), "the container dead")
    assert row["target"]["metadata"] == {"k8s.pod.label[app]": "web"}
    assert row["target"]["told_by"] == {
        **dict.fromkeys(("namespace", "pod", "container", "image"), "bundle"),
        "pod_uid": "cgroup",
        "metadata": "api",
    }

    # Of a static pod the API has a copy with a uid of its own.
    agent.send(told_of(static))
    row = agent.records(3)[-1]
    await_that(lambda: not alive(static.init_pid), "the static pod's container dead")
    assert (row["outcome"], row["target"]["pod_uid"], row["target"]["pod"]) == ("done", STATIC, "static-1")
    assert alive(liar.init_pid)
