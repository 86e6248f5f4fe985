"""Evidence before what destroys, through the whole agent: real processes in real cgroups, and an act that never waits
longer than it may."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Agent, MakeAgent, Row, alert, lives, was_killed
from tests.e2e.test_evidence import EACH_KIND, ask, boxed, bundles, parts_of, runs
from tests.real.conftest import PATIENCE_S, MakeBox, Spawn, await_that, line, state

pytestmark = [pytest.mark.root]


def killing(actionner: str = "process:kill", parameters: dict[str, Any] | None = None, **keys: Any) -> str:
    """One rule with an act that destroys."""
    action = {"action": "Kill it", "actionner": actionner, "parameters": parameters or {}}
    rule = {"rule": "Kill it", "match": {"rules": ["Terminal shell in container"]}, "allow_host": "true"}
    return json.dumps([rule | {"actions": [action]} | keys])


FIRST: dict[str, Any] = {"evidence_first": "true"}


def evidence_of(record: Row) -> dict[str, Any]:
    """What the record says of it."""
    found: dict[str, Any] = record["details"]["evidence"]
    return found


@contextlib.contextmanager
def nobody_reads(agent: Agent) -> Iterator[int]:
    """The nursery of workers stands still, so that no capture comes to its end. Gives its pid."""
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    nursery = int(agent.status()["evidence"]["workers"]["pid"])
    os.kill(nursery, signal.SIGSTOP)
    try:
        yield nursery
    finally:
        os.kill(nursery, signal.SIGCONT)


KILLS = [
    ("process:kill", {}),
    ("process:kill", {"scope": "tree"}),
    ("process:kill", {"scope": "container"}),
    ("container:kill", {}),
]


@EACH_KIND
@pytest.mark.parametrize("kill", KILLS)
def test_a_bundle_then_the_kill(
    kind: str, kill: tuple[str, dict[str, Any]], make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    actionner, parameters = kill
    all_of_it = actionner == "container:kill" or parameters.get("scope") == "container"
    box, inside = boxed(make_box, spawn, kind)
    other = spawn("cat", preexec_fn=box.enter)
    agent = make_agent(killing(actionner, parameters, **FIRST), evidence_deadline="5s")
    (record,) = ask(agent, inside)
    assert was_killed(inside)
    assert (record["outcome"], record["actionner"]) == ("done", actionner)
    assert "unsettled" not in record["details"]
    evidence = evidence_of(record)
    assert (evidence["taken"], "late" in evidence, "not_frozen" in evidence) == (True, False, False)
    assert bundles(agent) == [evidence["bundle"]]
    target, parts = parts_of(agent, evidence["bundle"])
    assert target["container_id"] == box.container_id
    assert {f"processes/{pid}.json" for pid in (inside.pid, other.pid)} <= parts
    timing = record["timing_us"]
    assert timing["decided"] + evidence["waited_ms"] * 1000 <= timing["acted"] <= timing["verified"]
    if all_of_it:
        assert was_killed(other)
    else:
        assert not box.is_frozen()
        assert runs(other)
    listed = agent.stoop("evidence", "list", "--run", record["run"])
    assert evidence["bundle"] in listed.stdout
    assert agent.stoop("evidence", "verify").returncode == 0


def test_a_tree_on_the_host(make_agent: MakeAgent, spawn: Spawn) -> None:
    root = spawn("sh", "-c", "sleep 1001 & echo $!; wait")
    child = int(line(root))
    beside = spawn("sleep", "1000")
    agent = make_agent(killing(**FIRST), evidence_deadline="5s")
    (record,) = ask(agent, root)
    assert (record["outcome"], was_killed(root)) == ("done", True)
    _, parts = parts_of(agent, evidence_of(record)["bundle"])
    assert {f"processes/{root.pid}.json", f"processes/{child}.json"} <= parts
    assert (state(child), state(beside.pid)) == ("S", "S")
    os.kill(child, signal.SIGKILL)  # of our own tree: nobody else ends it


@EACH_KIND
def test_the_kill_does_not_wait_for_ever(kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn, kind)
    _, beside = boxed(make_box, spawn, kind)
    agent = make_agent(killing(**FIRST), evidence_deadline="300ms")
    with nobody_reads(agent):
        (record,) = ask(agent, inside)
        assert (record["outcome"], was_killed(inside)) == ("done", True)
        evidence = evidence_of(record)
        assert (evidence["taken"], evidence["late"]) == (False, True)
        assert "did not wait longer" in evidence["reason"]
        assert 300 <= evidence["waited_ms"] < 2000
        assert not box.is_frozen()
        assert runs(beside)
    assert record["timing_us"]["acted"] - record["timing_us"]["decided"] >= 300_000


def test_the_configuration_counts_where_the_rule_says_nothing(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(killing(), evidence_first=True, evidence_deadline="5s")
    (record,) = ask(agent, inside)
    assert evidence_of(record)["taken"]


def test_the_rules_word_wins_over_the_configurations(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(killing(evidence_first="false"), evidence_first=True)
    (record,) = ask(agent, inside)
    assert (record["outcome"], "evidence" in record["details"], bundles(agent)) == ("done", False, [])
    assert agent.status()["evidence"]["workers"]["pid"] == 0


def test_what_destroys_nothing_has_none_before_it(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(killing("container:freeze", **FIRST))
    (record,) = ask(agent, inside)
    assert (record["outcome"], "evidence" in record["details"], bundles(agent)) == ("done", False, [])
    assert agent.stoop("undo", "--all").returncode == 0


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"mode": "off"}])
def test_without_leave_none_is_taken(
    settings: dict[str, Any], make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(killing(**FIRST), **settings)
    (record,) = ask(agent, inside)
    assert record["outcome"] in ("would", "skipped")
    assert (bundles(agent), lives(inside)) == ([], True)


def test_a_container_that_a_hold_froze_is_killed_and_its_others_stay_frozen(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    other = spawn("cat", preexec_fn=box.enter)
    rule = json.loads(killing(**FIRST))
    rule[0]["actions"].insert(0, {"action": "Freeze it", "actionner": "container:freeze"})
    agent = make_agent(json.dumps(rule), evidence_deadline="5s")
    _, killed = ask(agent, inside, 2)
    assert (killed["outcome"], evidence_of(killed)["taken"], was_killed(inside)) == ("done", True, True)
    assert box.is_frozen()
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(other)


@EACH_KIND
def test_sigkill_of_the_agent_while_the_kill_waits(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    agent = make_agent(killing(**FIRST), evidence_deadline="5s")
    with nobody_reads(agent) as nursery:
        agent.send(alert(inside.pid, {"container.id": ""}))
        await_that(box.is_frozen, "it stands still")
        agent.kill()
        assert box.is_frozen()
    await_that(lambda: not Path(f"/proc/{nursery}").exists(), "the nursery ended with the agent")
    agent.start()
    assert "was left frozen: thawed" in agent.said()
    assert runs(inside)
    assert (bundles(agent), agent.stoop("evidence", "verify").returncode) == ([], 0)
    (row,) = agent.records(1)
    assert (row["actionner"], row["outcome"]) == ("process:kill", "failed")


def test_a_stop_amid_the_wait_lets_the_kill_come_first(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(killing(**FIRST), evidence_deadline="1s")
    with nobody_reads(agent) as nursery:
        agent.send(alert(inside.pid, {"container.id": ""}))
        await_that(box.is_frozen, "it stands still")
        agent.program.send_signal(signal.SIGTERM)
        assert was_killed(inside)
        (row,) = agent.records(1)
        assert (row["outcome"], row["details"]["evidence"]["taken"]) == ("done", False)
        assert not box.is_frozen()
    assert agent.program.wait(PATIENCE_S) == 0
    assert not Path(f"/proc/{nursery}").exists()


@EACH_KIND
def test_a_freeze_that_comes_meanwhile_lasts(kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn, kind)
    other = spawn("cat", preexec_fn=box.enter)
    freeze = json.loads(killing("container:freeze"))[0] | {"rule": "Freeze it", "match": {"rules": ["Freeze"]}}
    agent = make_agent(json.dumps([*json.loads(killing(**FIRST)), freeze]), evidence_deadline="700ms")
    with nobody_reads(agent):
        agent.send(alert(inside.pid, {"container.id": ""}))
        await_that(box.is_frozen, "it stands still for a moment")
        agent.send(alert(other.pid, {"container.id": ""}, rule="Freeze"))
        frozen, killed = agent.records(2)
    assert (frozen["actionner"], frozen["outcome"]) == ("container:freeze", "done")
    assert (killed["outcome"], was_killed(inside)) == ("done", True)
    assert box.is_frozen()
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(other)


@EACH_KIND
def test_several_in_one_container_at_once(kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, bystander = boxed(make_box, spawn, kind)
    victims = [spawn("sleep", "1000", preexec_fn=box.enter) for _ in range(6)]
    agent = make_agent(killing(**FIRST), evidence_deadline="2s")
    agent.send(*(alert(victim.pid, {"container.id": ""}) for victim in victims))
    records = agent.records(len(victims))
    assert [record["outcome"] for record in records] == ["done"] * len(victims)
    assert all(was_killed(victim) for victim in victims)
    assert not box.is_frozen()
    assert runs(bystander)


# ---------------------------------------------------------------- the end of a freeze


def freezing(**parameters: Any) -> dict[str, Any]:
    """Parameters of a freeze that ends with a kill."""
    return {"ttl": "300ms", "then": "kill", **parameters}


def end_of(agent: Agent) -> Row:
    """The record of how the freeze ended, once it has."""
    await_that(lambda: len(agent.rows()) == 2, f"it has ended; log: {agent.said()[-2000:]}", 2 * PATIENCE_S)
    return agent.rows()[1]


@EACH_KIND
def test_a_bundle_of_what_is_frozen_then_its_end(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    other = spawn("cat", preexec_fn=box.enter)
    agent = make_agent(killing("container:freeze", freezing(), **FIRST), evidence_deadline="5s")
    (record,) = ask(agent, inside)
    assert (record["outcome"], "evidence" in record["details"]) == ("done", False)
    ended = end_of(agent)
    assert was_killed(inside)
    assert was_killed(other)
    assert (ended["outcome"], ended["details"]["undoes"]) == ("done", record["act"])
    assert "killed, as the rule says" in ended["reason"]
    evidence = evidence_of(ended)
    assert (evidence["taken"], "late" in evidence, "not_frozen" in evidence) == (True, False, False)
    assert bundles(agent) == [evidence["bundle"]]
    target, parts = parts_of(agent, evidence["bundle"])
    assert target["container_id"] == box.container_id
    assert {f"processes/{pid}.json" for pid in (inside.pid, other.pid)} <= parts
    listed = agent.stoop("evidence", "list", "--run", record["run"])
    assert evidence["bundle"] in listed.stdout
    assert (agent.stoop("active", "--json").stdout, box.is_frozen()) == ("", False)


@pytest.mark.parametrize("kind", ["hybrid"])
def test_the_end_does_not_wait_for_ever(kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn, kind)
    agent = make_agent(killing("container:freeze", freezing()), evidence_first=True, evidence_deadline="300ms")
    with nobody_reads(agent):
        ask(agent, inside)
        ended = end_of(agent)
        assert (ended["outcome"], was_killed(inside)) == ("done", True)
        assert (evidence_of(ended)["taken"], evidence_of(ended)["late"]) == (False, True)


@pytest.mark.parametrize("how", ["the rule says false", "somebody gives it back", "it is thawed"])
def test_an_end_without_evidence(how: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    keys = {"evidence_first": "false"} if how == "the rule says false" else {}
    by_hand = how == "somebody gives it back"
    parameters = freezing(ttl="1h" if by_hand else "300ms", then="thaw" if how == "it is thawed" else "kill")
    agent = make_agent(killing("container:freeze", parameters, **keys), evidence_first=True)
    ask(agent, inside)
    if by_hand:
        assert agent.stoop("undo", "--all").returncode == 0
    ended = end_of(agent)
    assert (ended["outcome"], "evidence" in ended["details"], bundles(agent)) == ("done", False, [])
    assert was_killed(inside) if how == "the rule says false" else runs(inside)


@pytest.mark.parametrize("kind", ["hybrid"])
def test_sigkill_of_the_agent_while_the_end_waits(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    agent = make_agent(killing("container:freeze", freezing(), **FIRST), evidence_deadline="5s")
    with nobody_reads(agent) as nursery:
        ask(agent, inside)
        running = agent.status()["evidence"]["workers"]
        await_that(lambda: agent.status()["evidence"]["workers"] != running, "evidence is asked for")
        agent.kill()
        assert box.is_frozen()
    await_that(lambda: not Path(f"/proc/{nursery}").exists(), "the nursery ended with the agent")
    agent.start()
    ended = end_of(agent)
    assert (ended["outcome"], evidence_of(ended)["taken"], was_killed(inside)) == ("done", True, True)
    assert bundles(agent) == [evidence_of(ended)["bundle"]]
    assert agent.stoop("evidence", "verify").returncode == 0


def test_an_end_that_came_while_no_agent_ran_and_other_rules_since(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(killing("container:freeze", freezing(ttl="1s"), **FIRST), evidence_deadline="5s")
    ask(agent, inside)
    agent.kill()
    agent.rules.write_text(killing("process:suspend"))

    def is_due() -> bool:
        return bool(json.loads(agent.stoop("active", "--json").stdout)["left_s"] == 0)

    await_that(is_due, "its time is over")
    assert box.is_frozen()
    agent.start()
    ended = end_of(agent)
    assert (ended["outcome"], evidence_of(ended)["taken"], was_killed(inside)) == ("done", True, True)
