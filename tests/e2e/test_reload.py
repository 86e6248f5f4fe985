"""Rules that change while the agent runs, and rules that can't be used."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import KILL_IT, TERMINAL_SHELL, Agent, MakeAgent, alert, lives, was_killed
from tests.real.conftest import Spawn, await_that

pytestmark = pytest.mark.real

SAVES = 100
BROKEN = "- rule: [\n"


def rules_text(count: int) -> str:
    """So many rules; only the first is about the alerts that are sent here."""
    others = [
        f"- rule: rule {number}\n  match: {{rules: [Other {number}]}}\n  actions: [{{action: Kill it}}]\n"
        for number in range(1, count)
    ]
    named = KILL_IT.replace("actions: [{action: Kill it, actionner", "actions: [{action: Kill it too, actionner")
    return f'- {{action: Kill it, actionner: "process:kill"}}\n{named}' + "".join(others)


def count_of(agent: Agent) -> int:
    """Rules in force."""
    return int(agent.status()["rules"]["count"])


def last_error(agent: Agent) -> str:
    return str(agent.status()["rules"]["last_error"])


def reloads(agent: Agent, result: str) -> float:
    return agent.samples().get(f'stoop_reloads_total{{result="{result}"}}', 0)


def ready_detail(agent: Agent) -> str:
    """What /readyz says of the rules, being ready all the same."""
    code, text = agent.get("readyz")
    assert code == 200
    return str(json.loads(text)["rules"]["rejected"])


def still_kills(agent: Agent, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    agent.send(alert(victim.pid))
    assert was_killed(victim)


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.swp")
    fresh.write_text(text)
    fresh.rename(path)


@pytest.mark.parametrize("save", [in_place, by_rename])
def test_a_hundred_saves_end_with_all_rules_and_never_with_fewer(
    make_agent: MakeAgent, spawn: Spawn, save: Callable[[Path, str], None]
) -> None:
    agent = make_agent(rules_text(1))
    seen = [1]

    def look() -> int:
        seen.append(count_of(agent))
        return seen[-1]

    for number in range(2, SAVES + 2):
        save(agent.rules, rules_text(number))
        look()
    await_that(lambda: look() == SAVES + 1, "the last save is in force")
    assert seen == sorted(seen)
    assert last_error(agent) == ""
    assert reloads(agent, "rejected") == 0
    still_kills(agent, spawn)


def test_kubernetes_swaps_a_symlink(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(rules_text(1), start=False)
    mount = agent.directory / "mount"
    mount.mkdir()

    def publish(number: int) -> None:
        version = mount / f"..version{number}"
        version.mkdir()
        (version / "rules.yaml").write_text(rules_text(number))
        (mount / "..data_tmp").symlink_to(version.name)
        (mount / "..data_tmp").rename(mount / "..data")

    publish(1)
    (mount / "rules.yaml").symlink_to("..data/rules.yaml")
    agent.configure({"rules_files": [str(mount / "rules.yaml")]})
    agent.start()
    for number in range(2, 6):
        publish(number)
        await_that(lambda number=number: count_of(agent) == number, f"{number} rules")  # type: ignore[misc]
    assert reloads(agent, "rejected") == 0
    still_kills(agent, spawn)


@pytest.mark.parametrize("bad", [BROKEN, "", "- rule: x\n  actions: [{action: nobody}]\n", "\0", "- *alias\n"])
def test_a_file_that_can_not_be_used_leaves_the_old_rules_in_force(
    make_agent: MakeAgent, spawn: Spawn, bad: str
) -> None:
    agent = make_agent(rules_text(3))
    agent.rules.write_text(bad)
    await_that(lambda: last_error(agent) != "", "it is said in the status")
    assert str(agent.rules) in last_error(agent)
    assert count_of(agent) == 3
    assert (reloads(agent, "rejected"), agent.samples()["stoop_reload_rejected"]) == (1, 1)
    assert str(agent.rules) in ready_detail(agent)
    await_that(lambda: "rules rejected: the old ones stay in force" in agent.said(), "it is logged")
    still_kills(agent, spawn)
    agent.rules.write_text(rules_text(4))
    await_that(lambda: count_of(agent) == 4, "the mended file is in force")
    assert (last_error(agent), ready_detail(agent), agent.samples()["stoop_reload_rejected"]) == ("", "", 0)


def test_a_file_that_goes_and_comes_back(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(rules_text(3))
    text = agent.rules.read_text()
    agent.rules.unlink()
    await_that(lambda: last_error(agent) != "", "it is missed")
    still_kills(agent, spawn)
    agent.rules.write_text(text)
    await_that(lambda: not last_error(agent), "it is back")
    assert count_of(agent) == 3


def test_sighup_has_the_same_files_read_again(make_agent: MakeAgent) -> None:
    agent = make_agent()
    os.kill(agent.program.pid, signal.SIGHUP)
    await_that(lambda: reloads(agent, "ok") == 1, "read again, though nothing changed")
    assert agent.stoop("status").returncode == 0


def test_only_sighup_where_the_files_are_not_watched(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(rules_text(1), watch_rules=False)
    agent.rules.write_text(rules_text(2))
    still_kills(agent, spawn)
    assert count_of(agent) == 1
    os.kill(agent.program.pid, signal.SIGHUP)
    await_that(lambda: count_of(agent) == 2, "reloaded")


def test_no_rules_are_rules_too(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    agent.rules.write_text("[]\n")
    await_that(lambda: count_of(agent) == 0, "none in force")
    bystander = spawn("sleep", "1000")
    agent.send(alert(bystander.pid))
    await_that(lambda: agent.status()["counts"]["received"] == 1, "the alert came")
    agent.rules.write_text(KILL_IT)
    await_that(lambda: count_of(agent) == 1, "one in force")
    assert lives(bystander)
    still_kills(agent, spawn)


def test_rules_can_be_swapped_amid_a_flood(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(rules_text(50))
    named = [spawn("sleep", "1000") for _ in range(40)]
    with agent.connect() as sock:
        for number, process in enumerate(named):
            if number % 10 == 5:
                by_rename(agent.rules, rules_text(50 + number))
            sock.sendall(alert(process.pid))
        assert all(map(was_killed, named))
    assert [row["outcome"] for row in agent.records(len(named))] == ["done"] * len(named)
    await_that(lambda: count_of(agent) == 85, "the last save is in force")


# ---------------------------------------------------------------- at the start

FOUR_FAULTS = f"""
- rule: one
  match: {{rules: [{TERMINAL_SHELL}], priority: ">=Nothing"}}
  actions: [{{action: a, actionner: "process:kill", parameters: {{signal: NONE}}}}]
- rule: two
  actions: [{{action: b, actionner: "no:such"}}]
- rule: three
  match: {{output_fields: ["nothing"]}}
  actions: [{{action: c, actionner: "process:kill"}}]
"""


def test_broken_rules_end_the_start_with_every_error(make_agent: MakeAgent) -> None:
    ended = make_agent(FOUR_FAULTS, start=False).once()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    for line, word in ((3, ">=Nothing"), (4, "signal"), (6, "no:such"), (8, "nothing")):
        assert [text for text in ended.stderr.splitlines() if f"rules.yaml:{line}:" in text and word in text], word


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_at_the_start_is_no_error_but_said(make_agent: MakeAgent, text: str) -> None:
    agent = make_agent(text)
    assert (count_of(agent), agent.get("readyz")[0]) == (0, 200)
    agent.rules.write_text(KILL_IT)
    await_that(lambda: count_of(agent) == 1, "filled")


def test_a_missing_file_at_the_start_is_named(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False)
    agent.rules.unlink()
    ended = agent.once()
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert str(agent.rules) in ended.stderr


def test_every_broken_file_is_told_at_once(make_agent: MakeAgent) -> None:
    agent = make_agent(BROKEN, start=False)
    second = agent.directory / "second.yaml"
    second.write_text("- action: {\n")
    settings = yaml.safe_load(agent.config.read_text())
    agent.configure(settings | {"rules_files": [str(agent.rules), str(second)]})
    ended = agent.once()
    assert ended.returncode == 2
    assert [line.split(":")[1].rpartition("/")[2] for line in ended.stderr.splitlines()] == [
        "rules.yaml",
        "second.yaml",
    ]
