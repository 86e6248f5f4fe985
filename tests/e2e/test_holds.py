"""What is held and given back, through the whole agent: real processes in real cgroups, TTLs, SIGKILL, undo."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Agent, MakeAgent, Row, alert, was_killed
from tests.real.conftest import Box, MakeBox, Process, Spawn, alive, await_that, line, say, state

pytestmark = [pytest.mark.root]

EACH_KIND = pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])


def holding(actionner: str, **parameters: Any) -> str:
    return f"""
- rule: Hold it
  match: {{rules: [Terminal shell in container]}}
  allow_host: true
  actions: [{{action: Hold it, actionner: "{actionner}", parameters: {json.dumps(parameters)}}}]
"""


def ended(agent: Agent) -> list[Row]:
    """Records of what was given back."""
    return [row for row in agent.rows() if row["details"].get("undoes")]


def begun(agent: Agent) -> list[Row]:
    """Records of acts."""
    return [row for row in agent.rows() if not row["details"].get("undoes")]


def active(agent: Agent) -> list[Any]:
    """What `stoop active --json` says."""
    said = agent.stoop("active", "--json")
    return [json.loads(text) for text in said.stdout.splitlines()]


def held_files(agent: Agent) -> list[Path]:
    return list((agent.state_dir / "held").glob("*"))


def boxed(make_box: MakeBox, spawn: Spawn, kind: str = "v2") -> tuple[Box, Process]:
    """A container in which one process gives back each line that it gets."""
    box = make_box(kind)
    process = spawn("cat", preexec_fn=box.enter)
    say(process, "begun")
    assert line(process) == "begun"
    return box, process


def runs(process: Process) -> bool:
    """Whether it answers."""
    say(process, "there?")
    return line(process) == "there?"


def hold(agent: Agent, process: Process) -> Row:
    """Send the alert; the record of what was done."""
    before = len(begun(agent))
    agent.send(alert(process.pid, {"container.id": ""}))
    await_that(lambda: len(begun(agent)) > before, f"a record; log: {agent.said()[-2000:]}")
    return begun(agent)[-1]


# ---------------------------------------------------------------- freeze


@EACH_KIND
def test_a_frozen_container_stands_still_and_goes_on_when_its_time_is_over(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    _, beside = boxed(make_box, spawn, kind)
    agent = make_agent(holding("container:freeze", ttl="700ms"))
    record = hold(agent, inside)
    assert (record["outcome"], record["reason"], record["target"]["container_id"]) == ("done", "", box.container_id)
    assert record["timing_us"]["verified"] is not None
    assert runs(beside)
    assert box.is_frozen()
    say(inside, "there?")
    await_that(lambda: bool(ended(agent)), "it is given back")
    assert line(inside) == "there?"
    assert not box.is_frozen()
    (undone,) = ended(agent)
    assert (undone["outcome"], undone["reason"]) == ("done", "its time is over: thawed")
    assert (undone["action"], undone["run"], undone["details"]["undoes"]) == (
        "undo: Hold it",
        record["run"],
        record["act"],
    )
    assert undone["details"]["held_s"] >= 0.7
    await_that(lambda: not held_files(agent), "its file is gone")
    assert active(agent) == []


def test_it_is_killed_at_the_end_where_the_rule_says_so(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn, "hybrid")
    agent = make_agent(holding("container:freeze", ttl="300ms", then="kill"))
    hold(agent, inside)
    assert was_killed(inside)
    await_that(lambda: bool(ended(agent)), "it is recorded")
    assert ended(agent)[0]["reason"] == "its time is over: killed, as the rule says"


def test_undone_by_hand_it_is_thawed_also_where_it_would_be_killed_at_the_end(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h", then="kill"))
    record = hold(agent, inside)
    (held,) = active(agent)
    assert (held["run"], held["then"], held["trouble"]) == (record["run"], "killed", "")
    assert 3500 < held["left_s"] <= 3600
    shown = agent.stoop("active")
    assert (shown.returncode, record["run"][:12] in shown.stdout, "killed in" in shown.stdout) == (0, True, True)
    undone = agent.stoop("undo", record["run"][:8])
    assert (undone.returncode, "thawed" in undone.stdout) == (0, True)
    assert runs(inside)
    assert "nothing is held" in agent.stoop("active").stdout


@EACH_KIND
def test_sigkill_and_a_new_agent_gives_back_on_time(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    agent = make_agent(holding("container:freeze", ttl="1h"))
    record = hold(agent, inside)
    agent.kill()
    assert box.is_frozen()
    offline = json.loads(agent.stoop("active", "--json").stdout)
    agent.start()
    await_that(lambda: "what the last agent held is still held" in agent.said(), "it is said")
    (held,) = active(agent)
    assert (held["run"], held["until_ns"]) == (record["run"], offline["until_ns"])
    assert held["left_s"] < offline["left_s"]
    assert agent.stoop("extend", record["run"], "--for", "300ms").returncode == 0
    await_that(lambda: bool(ended(agent)), "it is given back")
    assert runs(inside)
    assert [row["outcome"] for row in ended(agent)] == ["done"]


def test_what_was_due_while_no_agent_ran_is_given_back_at_the_start(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="600ms"))
    hold(agent, inside)
    agent.kill()
    (file,) = held_files(agent)
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"until_mono_ns": 1, "until_ns": 1}))  # long ago
    assert box.is_frozen()
    agent.start()
    await_that(lambda: bool(ended(agent)), "it is given back")
    assert runs(inside)


def test_a_hold_of_an_earlier_start_of_the_machine_is_over(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h"))
    hold(agent, inside)
    agent.stoop("undo", "--all")
    agent.kill()
    lost = {"act": "a" * 32, "boot_id": "another boot"}
    (agent.state_dir / "held" / f"{'a' * 32}.json").write_text(json.dumps(HELD | lost))
    agent.start()
    await_that(lambda: len(ended(agent)) == 2, "it is recorded")
    assert (ended(agent)[-1]["outcome"], active(agent)) == ("skipped", [])
    assert "the machine was restarted" in ended(agent)[-1]["reason"]


HELD = {
    "act": "b" * 32,
    "run": "c" * 32,
    "alert": "d" * 32,
    "rule": "Hold it",
    "action": "Hold it",
    "actionner": "container:freeze",
    "target": "x",
    "key": "frozen",
    "boot_id": "",
    "made_ns": 1,
    "made_mono_ns": 1,
    "until_ns": 0,
    "until_mono_ns": 0,
    "state": {"container_id": "e" * 64, "was_frozen": False, "then": "thaw"},
}


def test_a_broken_file_is_told_and_hurts_no_good_neighbour(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h"))
    hold(agent, inside)
    agent.kill()
    (agent.state_dir / "held" / f"{'f' * 32}.json").write_text("{")
    (agent.state_dir / "held" / f"{'9' * 32}.new").write_text("{")
    agent.start()
    await_that(lambda: "a hold can't be read" in agent.said(), "it is told")
    assert len(active(agent)) == 1
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(inside)


def test_a_container_that_is_gone_needs_no_undo(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h"))
    hold(agent, inside)
    inside.kill()
    inside.wait()
    for directory in box.directories:
        directory.rmdir()
    undone = agent.stoop("undo", "--all", "--json")
    told = json.loads(undone.stdout)
    assert (undone.returncode, told["outcome"]) == (0, "skipped")
    assert "no cgroup is container" in told["reason"]
    assert active(agent) == []
    for directory in box.directories:
        directory.mkdir()


def test_twice_is_harmless_and_the_longer_time_counts(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    short = holding("container:freeze", ttl="1m")
    long = holding("container:freeze", ttl="4h").replace("rule: Hold it", "rule: Hold it longer")
    agent = make_agent(short + long)
    hold(agent, inside)
    await_that(lambda: len(begun(agent)) == 2, "both rules")
    first, second = begun(agent)
    assert (first["outcome"], second["outcome"], second["reason"]) == ("done", "skipped", "it is frozen already")
    assert second["details"]["held_by"] == first["act"]
    (held,) = active(agent)
    assert 14_000 < held["left_s"] <= 14_400
    assert box.is_frozen()
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(inside)


def test_what_somebody_else_froze_is_left_to_him(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    box.freeze()
    agent = make_agent(holding("container:freeze", ttl="200ms"))
    record = hold(agent, inside)
    assert (record["outcome"], active(agent)) == ("skipped", [])
    assert "not by Stoop" in record["reason"]
    assert box.is_frozen()


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"mode": "off"}])
def test_without_leave_nothing_is_touched(
    settings: dict[str, Any], make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, "hybrid")
    agent = make_agent(holding("container:freeze"), **settings)
    assert hold(agent, inside)["outcome"] in ("would", "skipped")
    assert (box.is_frozen(), held_files(agent)) == (False, [])


def test_mode_off_undoes_nothing_and_what_is_due_is_given_back_all_the_same(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h"))
    record = hold(agent, inside)
    assert agent.stoop("mode", "off").returncode == 0
    assert box.is_frozen()
    assert agent.stoop("extend", record["run"], "--for", "300ms").returncode == 0
    await_that(lambda: bool(ended(agent)), "it is given back")
    assert runs(inside)


@pytest.mark.parametrize(("on_stop", "stays"), [("keep", True), ("undo", False)])
def test_a_stop_keeps_what_is_held_unless_it_is_told_otherwise(
    on_stop: str, stays: bool, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="1h"), on_stop=on_stop)
    hold(agent, inside)
    assert agent.stop() == 0
    assert box.is_frozen() is stays


def test_for_ever_is_said(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(holding("container:freeze", ttl="0"))
    hold(agent, inside)
    (held,) = active(agent)
    assert (held["left_s"], held["until_ns"]) == (None, 0)
    assert "held until `stoop undo`" in agent.stoop("active").stdout
    await_that(lambda: "held without an end" in agent.said(), "it is said loudly")
    assert agent.stoop("undo", "--all").returncode == 0


# ---------------------------------------------------------------- suspend


def test_a_stopped_tree_goes_on_and_its_neighbour_never_stopped(make_agent: MakeAgent, spawn: Spawn) -> None:
    root = spawn("sh", "-c", "sleep 1001 & sleep 1000 & echo begun; wait")
    beside = spawn("sleep", "1000")
    assert line(root) == "begun"
    agent = make_agent(holding("process:suspend", scope="tree", ttl="1h"))
    record = hold(agent, root)
    assert (record["outcome"], record["details"]["count"]) == ("done", 3)
    pids = record["details"]["pids"]
    assert [state(pid) for pid in pids] == ["T"] * 3
    assert state(beside.pid) == "S"
    assert agent.stoop("undo", "--all").returncode == 0
    assert "T" not in [state(pid) for pid in pids]
    for pid in pids[1:]:
        assert alive(pid)


def test_somebody_elses_sigcont_leaves_nothing_to_undo(make_agent: MakeAgent, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    agent = make_agent(holding("process:suspend", ttl="1h"))
    hold(agent, victim)
    assert state(victim.pid) == "T"
    victim.send_signal(signal.SIGCONT)
    await_that(lambda: state(victim.pid) == "S", "it runs")
    undone = json.loads(agent.stoop("undo", "--all", "--json").stdout)
    assert (undone["outcome"], undone["reason"]) == ("skipped", "somebody else continued it before")


# ---------------------------------------------------------------- what a person may get wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("undo",), "name one run, or --all"),
        (("undo", "abc"), "too short"),
        (("undo", "abcdef"), "nothing is held by abcdef"),
        (("undo", "abcdef", "--all"), "name one run, or --all"),
        (("extend", "abcdef"), "say how long"),
        (("extend", "abcdef", "--for", "soon"), "not a duration"),
        (("extend", "abcdef", "--for", "365d"), "at most 30d"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words: tuple[str, ...], said: str, make_agent: MakeAgent) -> None:
    answer = make_agent().stoop(*words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


# ---------------------------------------------------------------- together with others

FREEZE_THEN = """
- rule: Freeze, then kill
  match: {{rules: [Terminal shell in container]}}
  actions:
  - {{action: Freeze it, actionner: "container:freeze"}}
  - {{action: Kill it, actionner: "{kill}"}}
"""


@EACH_KIND
@pytest.mark.parametrize("kill", ["process:kill", "container:kill"])
def test_what_is_frozen_can_be_killed(
    kill: str, kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    other = spawn("cat", preexec_fn=box.enter)
    say(other, "begun")
    assert line(other) == "begun"
    agent = make_agent(FREEZE_THEN.format(kill=kill))
    agent.send(alert(inside.pid, {"container.id": ""}))
    assert was_killed(inside)
    rows = agent.records(2)
    assert [(row["actionner"], row["outcome"]) for row in rows] == [("container:freeze", "done"), (kill, "done")]
    if kill == "process:kill":
        assert box.is_frozen()
        assert agent.stoop("undo", "--all").returncode == 0
        assert runs(other)
    else:
        assert was_killed(other)


def test_limits_come_and_go_through_the_whole_agent(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn, "v1")
    agent = make_agent(holding("container:limit", memory="64MiB"))
    record = hold(agent, inside)
    assert (record["outcome"], active(agent)) == ("refused", [])
    assert "leave memory out" in record["reason"]
