"""Each act on real containers through the whole agent: the world before, during and after, and who must not notice."""

from __future__ import annotations

from functools import partial

import pytest

from tests.e2e.test_evidence import bundles, parts_of
from tests.real.conftest import await_that
from tests.real.containers.node import Node
from tests.real.containers.on_node import (
    ACTS,
    POD_WIDE,
    REVERSIBLE,
    AgentOnNode,
    MakeOnNode,
    Scene,
    World,
    make_on_node,
    rule,
    scene,
    undone,
)

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

EACH = pytest.mark.parametrize("actionner", REVERSIBLE)


def changed(before: dict[str, World], now: dict[str, World]) -> dict[str, set[str]]:
    """Whose world is another one now, and what of it."""
    return {
        who: {name for name, old, new in zip(World._fields, before[who], now[who], strict=True) if old != new}
        for who in before
        if before[who] != now[who]
    }


DIFFERENCE = {
    "process:suspend": {"its process": {"stopped"}},
    "container:limit": {who: {"pids_max", "cpu_quota"} for who in ("victim", "its process")},
    "container:freeze": {who: {"frozen"} for who in ("victim", "its process")},
    "process:kill": {"its process": {"alive"}},
    "container:kill": {who: {"alive"} for who in ("victim", "its process")},
    "evidence:snapshot": {},
    "evidence:memory": {},
    **{
        actionner: {who: {"pod_rules", "host_rules"} for who in ("victim", "its process", "sibling")}
        for actionner in POD_WIDE
    },
}
"""What each act changes: nothing of the stranger's ever, and of the sibling's only what the pod shares."""


def test_every_act_is_in_the_table() -> None:
    assert set(DIFFERENCE) == set(ACTS)


@pytest.mark.parametrize("how", ["dry_run", "observe"])
def test_trying_changes_nothing(how: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    rules = "".join(rule(actionner, dry_run=how == "dry_run") for actionner in ACTS)
    agent = make_on_node(rules, mode="observe" if how == "observe" else "enforce")
    before = scene.whole()
    for actionner in ACTS:
        record = agent.answer(scene.alert(actionner))
        assert (record["actionner"], record["outcome"]) == (actionner, "would"), record
    assert scene.whole() == before
    assert agent.active() == []
    assert bundles(agent) == []


@EACH
def test_it_holds_twice_is_harmless_and_undo_gives_all_back(
    actionner: str, make_on_node: MakeOnNode, scene: Scene
) -> None:
    agent = make_on_node(rule(actionner))
    before = scene.whole()
    record = agent.answer(scene.alert(actionner))
    assert (record["outcome"], record["target"]["container_id"]) == ("done", scene.victim.id), record["reason"]
    assert record["timing_us"]["verified"] is not None
    during = scene.whole()
    assert changed(before, during) == DIFFERENCE[actionner]
    (held,) = agent.active()
    assert (held["run"], held["actionner"], held["trouble"]) == (record["run"], actionner, "")
    assert 3590 < held["left_s"] <= 3600
    again = agent.answer(scene.alert(actionner))
    assert again["outcome"] in ("done", "skipped"), again
    assert changed(during, scene.whole()) == {}
    (gone,) = agent.undo()
    assert (gone["act"], gone["outcome"]) == (record["act"], "done"), gone
    assert scene.whole() == before
    assert agent.active() == []


@pytest.mark.parametrize("actionner", ["process:kill", "container:kill"])
def test_it_kills_whom_it_means(actionner: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(actionner))
    before = scene.whole()
    record = agent.answer(scene.alert(actionner))
    assert record["outcome"] == "done", record
    await_that(lambda: not scene.whole()["its process"].alive, "it is dead")
    assert changed(before, scene.whole()) == DIFFERENCE[actionner]
    assert agent.answer(scene.alert(actionner))["outcome"] in ("skipped", "refused")
    assert changed(before, scene.whole()) == DIFFERENCE[actionner]


@pytest.mark.parametrize("actionner", ["evidence:snapshot", "evidence:memory"])
def test_evidence_is_kept_and_nobody_notices(actionner: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(actionner))
    before = scene.whole()
    records = [agent.answer(scene.alert(actionner)) for _ in range(2)]
    assert [record["outcome"] for record in records] == ["done", "done"], records
    assert changed(before, scene.whole()) == DIFFERENCE[actionner]
    assert bundles(agent) == [record["details"]["bundle"] for record in records]
    target, parts = parts_of(agent, bundles(agent)[0])
    assert (target["container_id"], target["pod"]) == (scene.victim.id, "web-1")
    wanted = (
        f"processes/{scene.pid}.json" if actionner == "evidence:snapshot" else f"memory/{scene.victim.init_pid}.json"
    )
    assert wanted in parts
    assert agent.stoop("evidence", "verify").returncode == 0
    assert agent.status()["evidence"]["workers"]["running"] == []


def hold_all(agent: AgentOnNode, scene: Scene) -> None:
    """Every reversible act on the one victim."""
    for actionner in REVERSIBLE:
        record = agent.answer(scene.alert(actionner))
        assert record["outcome"] == "done", record
    assert {held["actionner"] for held in agent.active()} == set(REVERSIBLE)


def all_rules(ttl: str) -> str:
    return "".join(rule(actionner, ttl=ttl) for actionner in REVERSIBLE)


def given_back(agent: AgentOnNode) -> bool:
    return len(undone(agent)) == len(REVERSIBLE)


def test_all_at_once_outlives_sigkill_and_comes_back_on_time(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(all_rules("6s"))
    before = scene.whole()
    hold_all(agent, scene)
    during = scene.whole()
    agent.kill()
    assert scene.whole() == during
    assert {held["actionner"] for held in agent.active()} == set(REVERSIBLE)
    agent.start()
    await_that(partial(given_back, agent), f"all given back; log: {agent.said()[-2000:]}")
    rows = undone(agent)
    assert [row["outcome"] for row in rows] == ["done"] * len(REVERSIBLE), rows
    assert all(6 <= row["details"]["held_s"] < 9 for row in rows), rows
    assert scene.whole() == before
    assert agent.active() == []


def test_what_ends_while_no_agent_runs_comes_back_at_the_next_start(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(all_rules("1500ms"), on_stop="keep")
    before = scene.whole()
    for actionner in REVERSIBLE:
        agent.send(scene.alert(actionner))
    agent.records(len(REVERSIBLE))
    agent.kill()
    await_that(lambda: all(held["left_s"] == 0 for held in agent.active()), "their time is over")
    assert changed(before, scene.whole())
    agent.start()
    await_that(partial(given_back, agent), f"all given back; log: {agent.said()[-2000:]}")
    assert scene.whole() == before


def test_a_pod_that_is_gone_leaves_nothing_held(make_on_node: MakeOnNode, scene: Scene, the_node: Node) -> None:
    agent = make_on_node(all_rules("1h"))
    hold_all(agent, scene)
    the_node.clear()
    results = agent.undo()
    assert {gone["outcome"] for gone in results} <= {"skipped", "done"}, results
    assert len(results) == len(REVERSIBLE)
    assert agent.active() == []
    assert agent.status()["holds"] == {"count": 0, "trouble": {}}
