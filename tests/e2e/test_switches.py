"""Modes, limits and arming: at once, and over restarts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoop.control import Arm, ControlError, SetMode, ask
from stoop.spec import (
    Mode,
)
from tests.e2e.conftest import KILL_IT, Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import MakeBox, Process, Spawn, await_that

pytestmark = pytest.mark.real

RULE = "Kill a terminal shell"
OTHER_RULE = KILL_IT.replace(RULE, "Another rule").replace("Terminal shell in container", "Other")


def answer(agent: Agent, process: Process, **top: Any) -> Row:
    """What came of one alert about it."""
    before = len(agent.rows())
    agent.send(alert(process.pid, {"evt.num": before}, **top))
    return agent.records(before + 1)[-1]


def switch(agent: Agent, mode: Mode, for_s: float | None = None) -> None:
    told = ask(agent.control_path, SetMode(mode, for_s))
    assert (told["mode"], told["kept"], told["synced"]) == (str(mode), True, True)


def programs(directory: Path, count: int) -> list[str]:
    """So many executables, for limits count those of the host."""
    directory.mkdir(exist_ok=True)
    return [str(shutil.copy("/bin/sleep", directory / f"program{number}")) for number in range(count)]


# ---------------------------------------------------------------- modes


def test_observe_goes_through_everything_but_the_act(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(mode="observe")
    victim = spawn("sleep", "1000")
    row = answer(agent, victim)
    assert (row["outcome"], row["reason"], row["target"]["pid"]) == ("would", "observe mode", victim.pid)
    timing = row["timing_us"]
    assert timing["decided"] > 0
    assert (timing["acted"], timing["verified"]) == (None, None)
    assert lives(victim)


def test_off_does_nothing_and_says_so(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(mode="off")
    victim = spawn("sleep", "1000")
    row = answer(agent, victim)
    assert (row["outcome"], "off" in row["reason"]) == ("skipped", True)
    assert lives(victim)
    assert agent.get("readyz")[0] == 200


def test_the_emergency_stop_holds_at_once_and_over_a_restart(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    assert agent.stoop("mode", "off").returncode == 0
    assert answer(agent, victim)["outcome"] == "skipped"
    agent.kill()
    agent.start()
    assert agent.status()["mode"] == "off"
    assert answer(agent, victim)["outcome"] == "skipped"
    assert lives(victim)
    switch(agent, Mode.ENFORCE)
    assert answer(agent, victim)["outcome"] == "done"
    assert was_killed(victim)


def test_for_a_while_ends_by_itself(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    switch(agent, Mode.OBSERVE, 1.0)
    assert answer(agent, victim)["outcome"] == "would"
    await_that(lambda: agent.status()["mode"] == "enforce", "the time is over")
    assert answer(agent, victim)["outcome"] == "done"
    await_that(lambda: "the switched mode ended" in agent.said(), "it is said")


def test_for_a_while_ends_also_while_the_agent_is_down(make_agent: MakeAgent) -> None:
    agent = make_agent(mode="observe")
    switch(agent, Mode.OFF, 0.05)
    agent.stop()
    kept = json.loads((agent.state_dir / "mode.json").read_text())
    (agent.state_dir / "mode.json").write_text(json.dumps(kept | {"until_ns": 1}))
    agent.start()
    assert agent.status()["mode"] == "observe"


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"mode":"kill them all"}', b"\xff\xfe", b"[]", b'"enforce"'])
def test_a_mode_that_can_not_be_read_means_observe(make_agent: MakeAgent, spawn: Spawn, garbage: bytes) -> None:
    agent = make_agent(start=False)
    agent.state_dir.mkdir(mode=0o700)
    (agent.state_dir / "mode.json").write_bytes(garbage)
    agent.start()
    victim = spawn("sleep", "1000")
    assert answer(agent, victim)["outcome"] == "would"
    assert lives(victim)
    assert agent.status()["mode"] == "observe"
    await_that(lambda: "a switch can't be read" in agent.said(), "it is said")
    switch(agent, Mode.ENFORCE)
    assert answer(agent, victim)["outcome"] == "done"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_mode_and_is_not_waited_for(
    make_agent: MakeAgent, spawn: Spawn, make: Callable[[Path], None]
) -> None:
    agent = make_agent(start=False)
    agent.state_dir.mkdir(mode=0o700)
    make(agent.state_dir / "mode.json")
    agent.start()
    victim = spawn("sleep", "1000")
    assert (answer(agent, victim)["outcome"], agent.status()["mode"]) == ("would", "observe")
    assert lives(victim)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.OFF])
def test_what_was_only_watched_is_no_repeat_once_the_mode_is_switched(
    make_agent: MakeAgent, spawn: Spawn, mode: Mode
) -> None:
    agent = make_agent(mode=str(mode), guard={"dedup_window": "1h"})
    victim = spawn("sleep", "1000")
    assert answer(agent, victim)["outcome"] in ("would", "skipped")
    switch(agent, Mode.ENFORCE)
    assert answer(agent, victim)["outcome"] == "done"
    assert was_killed(victim)


def test_a_mode_that_can_not_be_kept_holds_and_is_told(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    (agent.state_dir / "mode.json.new").mkdir()  # in the way of the file that is written first
    ended = agent.stoop("mode", "off")
    assert ended.returncode != 0
    assert "could not be written down" in ended.stderr
    victim = spawn("sleep", "1000")
    assert answer(agent, victim)["outcome"] == "skipped"
    await_that(lambda: "a switch can't be kept" in agent.said(), "it is logged")
    assert lives(victim)


def test_what_is_no_mode_changes_nothing(make_agent: MakeAgent) -> None:
    agent = make_agent()
    ended = agent.stoop("mode", "sleep")
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert agent.status()["mode"] == "enforce"


# ---------------------------------------------------------------- limits


def test_the_sixth_executable_disarms_the_rule_until_it_is_armed(
    make_agent: MakeAgent, spawn: Spawn, tmp_path: Path
) -> None:
    agent = make_agent(guard={"max_targets": 5, "max_targets_total": 20})
    victims = [spawn(path, "1000") for path in programs(tmp_path / "bin", 6)]
    await_that(lambda: all(Path(f"/proc/{p.pid}/exe").readlink().name.startswith("program") for p in victims), "exec")
    for victim in victims[:5]:
        assert answer(agent, victim)["outcome"] == "done"
    row = answer(agent, victims[5])
    assert (row["outcome"], "distinct targets" in row["reason"]) == ("would", True)
    assert lives(victims[5])
    assert list(agent.status()["disarmed"]) == [RULE]
    samples = agent.samples()
    assert (samples["stoop_disarmed_rules"], samples[f'stoop_rule_disarmed{{rule="{RULE}"}}']) == (1, 1)
    await_that(lambda: "a rule disarmed itself" in agent.said(), "it is said loudly")

    for end in (agent.stop, agent.kill):  # in order, and not
        end()
        agent.start()
        assert list(agent.status()["disarmed"]) == [RULE]
        assert answer(agent, victims[5])["outcome"] == "would"
    assert lives(victims[5])

    assert agent.stoop("arm", RULE).returncode == 0
    assert agent.status()["disarmed"] == {}
    assert answer(agent, victims[5])["outcome"] == "done"
    agent.stop()
    agent.start()
    assert agent.status()["disarmed"] == {}


def test_what_is_hit_again_counts_once(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(guard={"max_targets": 2, "max_targets_total": 2})
    for _ in range(8):
        assert answer(agent, spawn("sleep", "1000"))["outcome"] == "done"
    assert agent.status()["disarmed"] == {}


def test_observing_trips_nothing_but_says_so(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    agent = make_agent(mode="observe", guard={"max_targets": 1, "max_targets_total": 0})
    first, second = (spawn(path, "1000") for path in programs(tmp_path / "bin", 2))
    await_that(lambda: Path(f"/proc/{second.pid}/exe").readlink().name == "program1", "exec")
    assert answer(agent, first)["details"] == {}
    assert "distinct targets" in answer(agent, second)["details"]["limit"]
    assert agent.status()["disarmed"] == {}


def test_the_limit_over_all_rules_disarms_all(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    agent = make_agent(KILL_IT + OTHER_RULE, guard={"max_targets": 5, "max_targets_total": 2})
    victims = [spawn(path, "1000") for path in programs(tmp_path / "bin", 3)]
    await_that(lambda: Path(f"/proc/{victims[2].pid}/exe").readlink().name == "program2", "exec")
    assert answer(agent, victims[0])["outcome"] == "done"
    assert answer(agent, victims[1], rule="Other")["outcome"] == "done"
    assert answer(agent, victims[2])["outcome"] == "would"
    assert list(agent.status()["disarmed"]) == ["*"]
    assert answer(agent, victims[2], rule="Other")["outcome"] == "would"
    assert ask(agent.control_path, Arm("*")) == {"armed": ["*"]}
    assert answer(agent, victims[2])["outcome"] == "done"


@pytest.mark.root
def test_containers_count_by_their_ids(make_agent: MakeAgent, spawn: Spawn, make_box: MakeBox) -> None:
    agent = make_agent(guard={"max_targets": 2, "max_targets_total": 0})
    boxes = [make_box() for _ in range(3)]
    inside = [spawn("sleep", "1000", preexec_fn=box.enter) for box in boxes for _ in range(2)]
    assert [answer(agent, process)["outcome"] for process in inside] == ["done"] * 4 + ["would"] * 2


def test_a_broken_list_of_disarmed_rules_disarms_all(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False)
    agent.state_dir.mkdir(mode=0o700)
    (agent.state_dir / "disarmed.json").write_bytes(b"{]")
    agent.start()
    victim = spawn("sleep", "1000")
    assert answer(agent, victim)["outcome"] == "would"
    assert lives(victim)
    ask(agent.control_path, Arm("*"))
    assert answer(agent, victim)["outcome"] == "done"


def test_what_is_not_disarmed_can_not_be_armed(make_agent: MakeAgent) -> None:
    agent = make_agent()
    with pytest.raises(ControlError, match="not disarmed"):
        ask(agent.control_path, Arm("no such rule"))
    ended = agent.stoop("arm", "no such rule")
    assert (ended.returncode != 0, "Traceback" in ended.stderr) == (True, False)
