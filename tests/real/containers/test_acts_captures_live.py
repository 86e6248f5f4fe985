"""Captures that last, of traffic and of system calls, on real containers."""

from __future__ import annotations

import gzip
import os
import select
from pathlib import Path

import pytest
import yaml

from tests.real.conftest import alive, await_that
from tests.real.containers.capturing import (
    ALWAYS,
    PARAMETERS,
    TRAFFIC,
    bundles,
    capture,
    hears,
    kept,
    listening,
    needs_tcpdump,
    pod_files,
    said,
    talker,
)
from tests.real.containers.node import Node
from tests.real.containers.on_node import (
    MakeOnNode,
    Scene,
    acts_of,
    make_on_node,
    on_node,
    rule,
    scene,
    told_of,
)
from tests.real.containers.pod import Container
from tests.work.test_traffic import TCPDUMP, packets

__all__ = ["make_on_node", "scene", "talker"]

pytestmark = [pytest.mark.root, pytest.mark.real]


# ---------------------------------------------------------------- traffic


@needs_tcpdump
def test_the_pods_traffic_and_no_others(make_on_node: MakeOnNode, talker: Container) -> None:
    rules = capture("evidence:pcap", snaplen=96) + capture("kubernetes:tcpdump", snaplen=96, image="evil:latest")
    agent = make_on_node(rules)
    other = talker.node.pod("web-2", "shop")
    other.container("sh", "-c", "while :; do ping -c 1 -W 1 -p 77 10.244.0.1 >/dev/null; done")
    joined = other.container("sleep", "1000", name="joined", options=["--with-ns", f"network:{talker.pod.netns}"])
    for actionner in TRAFFIC:
        record = agent.answer(told_of(talker, rule=actionner))
        assert record["outcome"] == "done", record
        assert record["details"]["network_shared_with"] == [joined.id[:12]]
        sent = [data for _, data in packets(kept(agent, record)[1])]
        assert any(b"\xa5" * 16 in data for data in sent)
        assert not any(b"\x77" * 16 in data for data in sent)
        assert max(map(len, sent)) == 96
        assert ("ignored" in record["details"]) is (actionner == "kubernetes:tcpdump")
    assert "no container is started" in record["details"]["ignored"]["image"]


@needs_tcpdump
def test_the_nodes_own_network_is_never_captured(make_on_node: MakeOnNode, the_node: Node) -> None:
    agent = make_on_node("".join(map(capture, TRAFFIC)))
    container = the_node.pod("agent", "shop", host_network=True).container("sleep", "1000")
    for actionner in TRAFFIC:
        record = agent.answer(told_of(container, rule=actionner))
        assert (record["outcome"], "hostNetwork" in record["reason"]) == ("refused", True), record
    assert bundles(agent) == []


@needs_tcpdump
def test_acts_on_others_and_on_the_same_container_do_not_wait_for_a_capture(
    make_on_node: MakeOnNode, scene: Scene
) -> None:
    """The pod's sandbox lives on, so the capture goes on too; it ends with that."""
    agent = make_on_node(capture("evidence:pcap", duration=600) + rule("container:kill") + rule("container:freeze"))
    agent.send(told_of(scene.victim, rule="evidence:pcap"))
    pid = listening(agent, scene.pod)
    for container, actionner in ((scene.stranger, "container:freeze"), (scene.victim, "container:kill")):
        record = agent.answer(told_of(container, rule=actionner))
        assert record["outcome"] == "done", record
    await_that(lambda: not alive(scene.victim.init_pid), "it is dead")
    assert hears(pid, scene.pod)
    assert alive(scene.sibling.init_pid)
    scene.pod.sandbox.remove()
    await_that(lambda: len(acts_of(agent)) == 3, "the capture has ended")
    record = acts_of(agent)[-1]
    assert (record["actionner"], record["outcome"]) == ("evidence:pcap", "done"), record
    assert record["details"]["missing"] == 1
    packets(kept(agent, record)[1])
    await_that(lambda: not alive(pid), "tcpdump has ended")


@needs_tcpdump
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_ends_with_the_agent(how: str, make_on_node: MakeOnNode, talker: Container) -> None:
    agent = make_on_node(capture("kubernetes:tcpdump", duration=600))
    links = talker.pod.run("ip", "link")
    agent.send(told_of(talker, rule="kubernetes:tcpdump"))
    pid = listening(agent, talker.pod)
    pidfd = os.pidfd_open(pid)
    try:
        if how == "stop":
            assert agent.stop() == 0
        else:
            agent.kill()
        await_that(lambda: bool(select.select([pidfd], [], [], 0)[0]), "tcpdump has ended")
    finally:
        os.close(pidfd)
    assert talker.pod.run("ip", "link") == links
    assert alive(talker.init_pid)
    agent.start()
    (record,) = acts_of(agent)
    assert record["outcome"] == "failed", record
    await_that(lambda: bundles(agent) == [], "what the writer left is tidied up")
    assert agent.stoop("evidence", "verify").returncode == 0


@needs_tcpdump
def test_without_tcpdump_it_is_said(
    the_node: Node, make_on_node: MakeOnNode, talker: Container, tmp_path: Path
) -> None:
    """On the node, in `stoop actions list`, and of each rule that needs it; the rest goes on."""
    agent = on_node(the_node, tmp_path, "".join(map(capture, PARAMETERS)))
    script = f'mount --bind /dev/null {os.path.realpath(TCPDUMP)}; exec "$@"'
    agent.prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh")
    try:
        agent.start()
        found = agent.status()["unavailable"]
        assert {name for name in found if name in ALWAYS} == set(TRAFFIC)
        assert found["evidence:pcap"]["rules"] == ["evidence:pcap"]
        assert "no tcpdump here" in found["evidence:pcap"]["reason"]
        assert "no tcpdump here" in agent.said()
        assert agent.stoop("actions", "list").stdout.count("no tcpdump here") == 2
        record = agent.answer(told_of(talker, rule="evidence:pcap"))
        assert (record["outcome"], record["reason"]) == ("refused", found["evidence:pcap"]["reason"]), record
        said(talker, "still read")
        assert agent.answer(told_of(talker, rule="kubernetes:log"))["details"]["log"] == ["still read"]
    finally:
        agent.close()


# ---------------------------------------------------------------- system calls


def test_without_a_sysdig_that_works_it_is_refused(make_on_node: MakeOnNode, scene: Scene) -> None:
    """There is none, or it has no driver for this kernel: found out once, when a rule needs it."""
    agent = make_on_node(capture("kubernetes:sysdig"))
    await_that(lambda: "kubernetes:sysdig" in agent.status()["unavailable"], f"it is told; log: {agent.said()}")
    told = agent.status()["unavailable"]["kubernetes:sysdig"]
    assert told["reason"].startswith(("there is no sysdig here", "sysdig does not work here: `sysdig --modern-bpf"))
    assert told["rules"] == ["kubernetes:sysdig"]
    assert "a rule needs what can't be done here" in agent.said()
    listed = agent.stoop("actions", "list").stdout.split("--- kubernetes:sysdig ---\n")[1].split("\n--- ")[0]
    assert yaml.safe_load(listed)["unavailable_on_this_node"] == told["reason"]
    record = agent.answer(told_of(scene.victim, rule="kubernetes:sysdig"))
    assert (record["outcome"], record["reason"]) == ("refused", told["reason"])
    assert bundles(agent) == []


# Says how it was called in place of a capture.
STAND_IN = """#!/bin/sh
{ printf '%s\\n' "$@"; echo of sixty bytes and more, as a capture would have; } | gzip
"""


def test_a_program_in_the_place_of_sysdig_is_told_whom_to_capture(the_node: Node, scene: Scene, tmp_path: Path) -> None:
    """All of the act but the program, for which there is no driver here: the pod's containers and no other's."""
    (tmp_path / "sysdig").write_text(STAND_IN)
    (tmp_path / "sysdig").chmod(0o755)
    named = '["kubernetes:sysdig"]'
    of_the_pod = capture("kubernetes:sysdig", buffer_size=0, duration=3, image="x").replace(named, '["pod"]')
    of_the_node = (
        capture("kubernetes:sysdig", scope="node").replace(named, '["node"]').replace("kubernetes", "node's", 1)
    )
    agent = on_node(the_node, tmp_path, of_the_pod + of_the_node)
    agent.more_environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    try:
        agent.start()
        before, inside = scene.whole(), pod_files(scene)
        record = agent.answer(told_of(scene.victim, rule="pod"))
        assert (record["outcome"], record["reason"]) == ("done", ""), record
        assert record["details"]["data"] == {"part": "sysdig.scap.gz", "name": "sysdig.scap.gz"}
        assert "no Job is created" in record["details"]["ignored"]["image"]
        *told, asked, _ = gzip.decompress(kept(agent, record)[1]).decode().splitlines()
        assert told == ["--modern-bpf", "-M", "3", "-s", "2048", "-z", "-w", "-"]
        ids = {each.id[:12] for each in (scene.victim, scene.sibling, scene.pod.sandbox)}
        assert set(asked.removeprefix("container.id in (").removesuffix(")").split(", ")) == ids
        record = agent.answer(told_of(scene.victim, rule="node"))
        assert (record["outcome"], record["details"].get("ignored")) == ("done", None), record
        *told, _ = gzip.decompress(kept(agent, record)[1]).decode().splitlines()
        assert told == ["--modern-bpf", "-M", "1", "-s", "2048", "-z", "-w", "-"]
        assert (scene.whole(), pod_files(scene)) == (before, inside)
    finally:
        agent.close()
