"""The whole agent beside a real API server: what rules ask of a pod's metadata decides who dies, whatever fails."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent, MakeAgent, alert, lives, make_agent, was_killed
from tests.real.apiserver.cluster import Cluster
from tests.real.apiserver.sources import RIGHTS, kubelet
from tests.real.conftest import Box, MakeBox, Spawn, await_that, make_box, pytest_runtest_setup, spawn

__all__ = ["make_agent", "make_box", "pytest_runtest_setup", "spawn"]

pytestmark = [pytest.mark.real, pytest.mark.root]

RULES = """
- rule: Kill the web
  match: {rules: [Terminal shell in container], output_fields: ["k8s.pod.label[app]=web"]}
  actions: [{action: Kill it, actionner: "process:kill"}]
- rule: Kill all but databases
  match: {rules: [Fileless execution], output_fields: ["k8s.pod.label[app]!=db"]}
  actions: [{action: Kill it, actionner: "process:kill"}]
- rule: Kill a deployment
  match: {rules: [Deployment], output_fields: ["k8s.deployment.name=shop, k8s.pod.annotation[note]!=spare"]}
  actions: [{action: Kill it, actionner: "process:kill"}]
"""
SHOP = {
    "labels": {"app": "web", "pod-template-hash": "5f7"},
    "ownerReferences": [
        {"kind": "ReplicaSet", "name": "shop-5f7", "apiVersion": "apps/v1", "uid": "u", "controller": True}
    ],
}

_numbers = itertools.count(1)


class Place:
    """A node's name, a namespace, and an agent that asks for its pods."""

    def __init__(self, cluster: Cluster, make: MakeAgent, boxes: MakeBox, directory: Path) -> None:
        self.cluster = cluster
        self.node = f"agents-node-{next(_numbers)}"
        self.namespace = cluster.namespace()
        self.make = make
        self._boxes = boxes
        self._directory = directory

    def written(self, name: str, text: str) -> str:
        """A file that root alone can read."""
        path = self._directory / name
        path.touch(0o600)
        path.write_text(text)
        return str(path)

    def agent(self, source: str = "watch", server: str = "") -> Agent:
        """An agent that knows the pods of this node."""
        token = self.written("token", self.cluster.account(self.namespace, "agent", RIGHTS[source]))
        pods = {"source": source, "server": server or self.cluster.server, "token_file": token}
        made = self.make(RULES, node_name=self.node, pods=pods | {"ca_file": str(self.cluster.ca), "interval": "1s"})
        await_that(lambda: bool(made.status()["pods"]["listed"]), f"the pods are listed; log: {made.said()}")
        return made

    def box(self, uid: str) -> Box:
        """The cgroups of a container of this pod."""
        whole = self._boxes("v2", f"kubepods/burstable/pod{uid}/{os.urandom(32).hex()}")
        assert whole.v2 is not None
        return Box(whole.v2.name, uid, whole.v2, whole.freezer)

    def pod(self, name: str, **metadata: object) -> Box:
        """A pod, and the cgroups of its container."""
        made = self.cluster.pod(self.namespace, name, node=self.node, **metadata)
        return self.box(made["metadata"]["uid"])

    def known(self, agent: Agent, count: int) -> None:
        """Wait until the agent knows so many pods."""
        await_that(lambda: agent.status()["pods"]["known"] == count, f"{count} pods; {agent.status()['pods']}")


@pytest.fixture
def place(the_cluster: Cluster, make_agent: MakeAgent, make_box: MakeBox, tmp_path: Path) -> Place:
    return Place(the_cluster, make_agent, make_box, tmp_path)


def about(box: Box, pid: int, rule: str = "Terminal shell in container", **fields: object) -> bytes:
    return alert(pid, {"container.id": box.container_id[:12], **fields}, rule=rule)


def test_a_label_decides_who_dies(place: Place, spawn: Spawn) -> None:
    web, db = place.pod("web-1", **SHOP), place.pod("db-1", labels={"app": "db"})
    agent = place.agent()
    victim, spared = (spawn("sleep", "1000", preexec_fn=box.enter) for box in (web, db))
    agent.send(about(db, spared.pid), about(web, victim.pid))
    assert was_killed(victim)
    (row,) = agent.records(1)
    assert row["rule"] == "Kill the web"
    assert row["target"]["metadata"] == {"k8s.pod.label[app]": "web"}
    assert (row["target"]["owner"], row["target"]["namespace"], row["target"]["pod"]) == (
        "ReplicaSet/shop-5f7",
        place.namespace,
        "web-1",
    )
    by = dict.fromkeys(("namespace", "pod", "owner", "metadata"), "api")
    assert row["target"]["told_by"] == by | {"pod_uid": "cgroup"}
    other = spawn("sleep", "1000", preexec_fn=web.enter)
    agent.send(about(db, spared.pid, "Fileless execution"), about(web, other.pid, "Deployment"))
    assert was_killed(other)
    assert lives(spared)
    (_, row) = agent.records(2)
    assert (row["rule"], row["target"]["metadata"]) == ("Kill a deployment", {"k8s.deployment.name": "shop"})


def test_a_pod_that_nobody_knows_is_neither_meant_nor_exempted(place: Place, spawn: Spawn) -> None:
    agent = place.agent()
    box = place.box("8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77")
    bystander = spawn("sleep", "1000", preexec_fn=box.enter)
    agent.send(about(box, bystander.pid), about(box, bystander.pid, "Fileless execution"))
    (row,) = agent.records(1)
    assert (row["rule"], row["outcome"]) == ("Kill all but databases", "refused")
    assert row["reason"] == "k8s.pod.label[app] can't be resolved here, and the rule exempts a value of it"
    assert lives(bystander)
    samples = agent.samples()
    assert samples['stoop_alerts_undecided_total{rule="Kill the web"}'] == 1
    assert samples["stoop_pods_unknown_total"] >= 1
    await_that(lambda: "what it asks is not known" in agent.said(), "it is said")


def test_a_label_that_was_just_changed_counts(place: Place, spawn: Spawn) -> None:
    box = place.pod("web-1", labels={"app": "db"})
    agent = place.agent()
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    place.cluster.patch(place.namespace, "web-1", {"labels": {"app": "web"}})

    def acted() -> bool:
        agent.send(about(box, victim.pid))
        return victim.poll() is not None

    await_that(acted, "the new label counts")
    assert was_killed(victim)


def test_an_alert_that_names_another_pod_than_the_api_is_refused(place: Place, spawn: Spawn) -> None:
    box = place.pod("web-1", **SHOP)
    agent = place.agent()
    bystander = spawn("sleep", "1000", preexec_fn=box.enter)
    fields = ("k8s.pod.name", "k8s.ns.name")
    for count, field in enumerate(fields, 1):
        agent.send(about(box, bystander.pid, **{field: "another"}))
        row = agent.records(count)[-1]
        assert row["outcome"] == "refused"
        assert row["reason"].startswith(f"the alert says {field} 'another', the API ")
    assert lives(bystander)


def test_nothing_known_is_lost_with_the_helper_and_the_next_one_asks_anew(place: Place, spawn: Spawn) -> None:
    box = place.pod("web-1", **SHOP)
    agent = place.agent()
    first = agent.status()["helper"]["pid"]
    os.kill(first, signal.SIGKILL)
    await_that(lambda: agent.status()["helper"]["pid"] != first, "the helper has ended")
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    agent.send(about(box, victim.pid))
    assert was_killed(victim)
    await_that(lambda: agent.status()["helper"]["pid"] not in (0, first), "another helper")
    place.pod("web-2", **SHOP)
    place.known(agent, 2)
    status = agent.status()["pods"]
    assert (status["source"], status["error"], status["stale"], status["left_out"]) == ("watch", "", False, 0)
    code, page = agent.get("readyz")
    assert (code, json.loads(page)["pods"]["known"]) == (200, 2)
    assert agent.samples()["stoop_pods_known"] == 2


@pytest.mark.parametrize("why", ["away", "another"])
def test_an_api_that_can_t_be_asked_holds_nothing_up_and_is_told(place: Place, spawn: Spawn, why: str) -> None:
    token = place.written("token", "a.b.c")
    authority = place.cluster.certificate(place.node, "DNS:another")[0]
    server = place.cluster.server if why == "another" else "https://127.0.0.1:9"
    pods = {"source": "watch", "server": server, "token_file": token, "ca_file": str(authority)}
    agent = place.make(RULES, node_name=place.node, pods=pods)
    await_that(lambda: bool(agent.status()["pods"]["error"]), "the trouble")
    assert ("CERTIFICATE_VERIFY_FAILED" in agent.status()["pods"]["error"]) is (why == "another")
    assert agent.get("readyz")[0] == 200
    said = agent.stoop("status")
    assert said.returncode == 1
    assert "of pods can't be asked for" in " ".join(said.stdout.split())
    box = place.box("8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77")
    victim = spawn("sleep", "1000", preexec_fn=box.enter)
    agent.send(about(box, victim.pid, **{"k8s.pod.label[app]": "web"}))
    assert was_killed(victim)


def test_by_the_kubelet(place: Place, spawn: Spawn) -> None:
    box = place.pod("web-1", **SHOP)
    with kubelet(place.cluster, place.node) as server:
        agent = place.agent("kubelet", server)
        victim = spawn("sleep", "1000", preexec_fn=box.enter)
        agent.send(about(box, victim.pid))
        assert was_killed(victim)
        place.cluster.delete(place.namespace, "web-1")
        place.known(agent, 0)
        agent.close()


def test_without_a_source_the_rules_are_named_and_the_others_act(place: Place) -> None:
    agent = place.make(RULES)
    lines = [json.loads(line) for line in agent.said().splitlines() if "rules warning" in line]
    places = [f"{agent.rules}:{place}" for place in ("3:65", "6:56", "9:48", "9:48")]
    assert [line["problem"].partition(": rule ")[0] for line in lines] == places
    said = agent.stoop("status")
    assert said.returncode == 1
    needing = "rules need them: Kill the web, Kill all but databases, Kill a deployment"
    assert needing in " ".join(said.stdout.split())
    checked = agent.stoop("rules", "check")
    assert checked.returncode == 1
    assert f"{agent.rules}:3:" in "".join(checked.stderr.split())
