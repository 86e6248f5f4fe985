"""A container that an act ended is started again as the kubelet does it, and the act's record says as which."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.e2e.conftest import Row
from tests.real.conftest import alive, await_that
from tests.real.containers.node import Node
from tests.real.containers.on_node import (
    AgentOnNode,
    MakeOnNode,
    Scene,
    acts_of,
    make_on_node,
    rule,
    scene,
    told_of,
    undone,
)

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

RESTARTED_S = 20.0
"""A container of the harness takes some 0.3 s to start, on a busy machine more."""


def restarted_as(rows: Callable[[], list[Row]]) -> str:
    """Of the last of these records: what it says was started again, "" for nothing."""
    return str(rows()[-1]["details"].get("restarted_as", ""))


def await_restarted(agent: AgentOnNode, rows: Callable[[], list[Row]], wanted: str) -> Row:
    """The record, once it says so."""
    await_that(lambda: bool(restarted_as(rows)), f"restarted; log: {agent.said()[-2000:]}", RESTARTED_S)
    assert restarted_as(rows) == wanted
    return rows()[-1]


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "the whole container": ("container:kill", {}),
    "its first process": ("process:kill", {}),
    "the container of a process": ("process:kill", {"scope": "container"}),
    "after a freeze": ("container:freeze", {"ttl": "300ms", "then": "kill"}),
}
"""Each way in which an act ends a container."""


@pytest.mark.parametrize("way", WAYS)
def test_what_the_kubelet_starts_again_is_told(way: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    actionner, parameters = WAYS[way]
    agent = make_on_node(rule(actionner, **parameters))
    record = agent.answer(told_of(scene.victim, rule=actionner))
    assert record["outcome"] == "done", record
    rows = partial(undone if actionner == "container:freeze" else acts_of, agent)
    await_that(lambda: bool(rows()) and not alive(scene.victim.init_pid), "it was killed and recorded")
    assert restarted_as(rows) == ""
    first = rows()[-1]
    # One of another name in the pod, and one of its name in another pod, take nobody's place.
    scene.pod.container("sleep", "1000", name="late")
    scene.stranger.pod.again(scene.stranger, "sleep", "1000")
    assert restarted_as(rows) == ""
    again = scene.pod.again(scene.victim, "sleep", "1000")
    told = await_restarted(agent, rows, again.id)
    assert (told["act"], told["outcome"], told["amended"]) == (first["act"], "done", True)
    assert told["reason"].startswith(first["reason"])
    assert f"restarted as {again.id[:12]} " in told["reason"]
    assert 0 < told["details"]["restarted_after_s"] < RESTARTED_S + 10
    assert f"restarted as {again.id[:12]}" in agent.stoop("history").stdout
    assert alive(again.init_pid)
    assert len(agent.rows()) == (2 if actionner == "container:freeze" else 1)


def test_another_sandbox_in_the_same_pod(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule("container:kill"))
    assert agent.answer(told_of(scene.victim, rule="container:kill"))["outcome"] == "done"
    scene.pod.renew()
    again = scene.pod.container("sleep", "1000", name="app", attempt=1)
    await_restarted(agent, partial(acts_of, agent), again.id)


def test_a_pod_made_anew_is_another_pod(make_on_node: MakeOnNode, scene: Scene, the_node: Node) -> None:
    agent = make_on_node(rule("container:kill"))
    assert agent.answer(told_of(scene.victim, rule="container:kill"))["outcome"] == "done"
    # As a StatefulSet makes it: the same name in the same namespace, another uid.
    anew = the_node.pod("web-1", "shop").container("sleep", "1000", name="app")
    assert agent.answer(told_of(anew, rule="container:kill"))["outcome"] == "done"
    again = anew.pod.again(anew, "sleep", "1000")
    await_restarted(agent, partial(acts_of, agent), again.id)
    assert "restarted_as" not in acts_of(agent)[0]["details"]


def test_a_container_that_lived_on_was_not_ended_by_the_act(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule("process:kill") + rule("container:kill"))
    assert agent.answer(scene.alert("process:kill"))["outcome"] == "done"
    assert alive(scene.victim.init_pid)
    second = scene.pod.again(scene.victim, "sleep", "1000")  # somebody else ends it, later
    assert agent.answer(told_of(second, rule="container:kill"))["outcome"] == "done"
    third = scene.pod.again(second, "sleep", "1000")
    await_restarted(agent, partial(acts_of, agent), third.id)
    assert "restarted_as" not in acts_of(agent)[0]["details"]


def test_an_agent_that_was_killed_meanwhile_tells_nothing_and_does_no_harm(
    make_on_node: MakeOnNode, scene: Scene
) -> None:
    agent = make_on_node(rule("container:kill"))
    assert agent.answer(told_of(scene.victim, rule="container:kill"))["outcome"] == "done"
    agent.kill()
    agent.start()
    second = scene.pod.again(scene.victim, "sleep", "1000")
    assert agent.answer(told_of(second, rule="container:kill"))["outcome"] == "done"
    third = scene.pod.again(second, "sleep", "1000")
    await_restarted(agent, partial(acts_of, agent), third.id)
    assert "restarted_as" not in acts_of(agent)[0]["details"]
    assert alive(third.init_pid)
    assert agent.status()["ready"]
