"""Evidence through the whole agent: real processes in real cgroups, real workers, the bundles and their records."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stoop.evidence.store import Store
from tests.e2e.conftest import Agent, MakeAgent, Row, alert
from tests.real.conftest import Box, MakeBox, Process, Spawn, await_that, line, say, state

pytestmark = [pytest.mark.root]

EACH_KIND = pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])


def taking(*actionners: str, parameters: dict[str, Any] | None = None, **keys: Any) -> str:
    """One rule with these actions; `parameters` of the first one, `keys` of the rule."""
    actions: list[dict[str, Any]] = [{"action": f"Do {actionner}", "actionner": actionner} for actionner in actionners]
    actions[0] |= {"parameters": parameters or {}}
    rule = {"rule": "Keep it", "match": {"rules": ["Terminal shell in container"]}, "actions": actions}
    return json.dumps([rule | {"allow_host": "true"} | keys])


def bundles(agent: Agent) -> list[str]:
    """Names of the whole bundles."""
    return sorted(path.name.removesuffix(".tar.zst") for path in (agent.state_dir / "evidence").glob("0*.tar.zst"))


def unfinished(agent: Agent) -> list[str]:
    """What writers left in the store."""
    return [path.name for path in (agent.state_dir / "evidence").glob(".writing*")]


def parts_of(agent: Agent, bundle: str) -> tuple[dict[str, Any], set[str]]:
    """The target as the manifest has it, and the names of the parts; the bundle is whole."""
    with Store(str(agent.state_dir / "evidence")) as store, store.reading(bundle) as reader:
        assert reader.check() == []
        return reader.manifest.target, {part.name for part in reader.manifest.parts}


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


def ask(agent: Agent, process: Process, count: int = 1) -> list[Row]:
    """Send the alert; the records of what came of it."""
    before = len(agent.rows())
    agent.send(alert(process.pid, {"container.id": ""}))
    return agent.records(before + count)[before:]


# ---------------------------------------------------------------- evidence:snapshot


@EACH_KIND
def test_a_snapshot_of_a_container(kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn, kind)
    other = spawn("sleep", "1000", preexec_fn=box.enter)
    agent = make_agent(taking("evidence:snapshot", parameters={"scope": "container"}))
    (record,) = ask(agent, inside)
    assert record["outcome"] == "done"
    details = record["details"]
    (bundle,) = bundles(agent)
    assert (details["bundle"], details["path"]) == (bundle, str(agent.state_dir / "evidence" / f"{bundle}.tar.zst"))
    assert details["bytes"] == os.stat(details["path"]).st_size
    assert len(details["manifest"]) == 64
    assert 0 < details["frozen_ms"] < 2000
    target, parts = parts_of(agent, bundle)
    assert (target["pid"], target["container_id"]) == (inside.pid, box.container_id)
    assert {f"processes/{pid}.json" for pid in (inside.pid, other.pid)} <= parts
    assert not box.is_frozen()
    assert runs(inside)


@pytest.mark.parametrize("freeze_for", ["200ms", "0"])
@pytest.mark.parametrize("scope", ["process", "tree"])
def test_a_snapshot_on_the_host(scope: str, freeze_for: str, make_agent: MakeAgent, spawn: Spawn) -> None:
    root = spawn("sh", "-c", "sleep 1001 & echo $!; wait")
    child = int(line(root))
    agent = make_agent(taking("evidence:snapshot", parameters={"scope": scope, "freeze_for": freeze_for}))
    (record,) = ask(agent, root)
    assert (record["outcome"], "frozen_ms" in record["details"]) == ("done", freeze_for != "0")
    target, parts = parts_of(agent, record["details"]["bundle"])
    assert target["identity"] == record["target"]["identity"] if "identity" in record["target"] else target["pid"]
    assert f"processes/{root.pid}.json" in parts
    assert (f"processes/{child}.json" in parts) is (scope == "tree")
    assert "T" not in (state(root.pid), state(child))


def test_a_process_that_is_in_no_container_has_none_to_show(make_agent: MakeAgent, spawn: Spawn) -> None:
    victim = spawn("sleep", "1000")
    agent = make_agent(taking("evidence:snapshot", parameters={"scope": "container"}))
    (record,) = ask(agent, victim)
    assert (record["outcome"], record["reason"]) == ("refused", "it is in no container (scope: container)")
    assert bundles(agent) == []


def test_what_stood_before_is_left_standing(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    box.freeze()
    stopped = spawn("sleep", "1000")
    stopped.send_signal(signal.SIGSTOP)
    await_that(lambda: state(stopped.pid) == "T", "it is stopped")
    agent = make_agent(taking("evidence:snapshot"))
    (record,) = ask(agent, inside)
    assert (record["outcome"], "frozen_ms" in record["details"]) == ("done", True)
    assert box.is_frozen()
    (record,) = ask(agent, stopped)
    assert record["outcome"] == "done"
    assert state(stopped.pid) == "T"


def test_a_container_that_a_hold_froze_stays_frozen(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(taking("container:freeze", "evidence:snapshot"))
    first, second = ask(agent, inside, 2)
    assert (first["outcome"], second["outcome"]) == ("done", "done")
    assert box.is_frozen()
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(inside)


@pytest.mark.parametrize("settings", [{"mode": "observe"}, {"mode": "off"}])
def test_without_leave_none_is_taken(
    settings: dict[str, Any], make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(taking("evidence:snapshot"), **settings)
    (record,) = ask(agent, inside)
    assert record["outcome"] in ("would", "skipped")
    assert bundles(agent) == []


def test_without_a_rule_for_it_there_are_no_workers(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert agent.status()["evidence"]["workers"]["pid"] == 0
    assert not (agent.state_dir / "evidence").exists()


def test_the_workers_are_never_acted_on(make_agent: MakeAgent) -> None:
    agent = make_agent(taking("process:kill", "evidence:snapshot"))
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    nursery = agent.status()["evidence"]["workers"]["pid"]
    agent.send(alert(nursery, {"container.id": "", "proc.ppid": agent.program.pid}))
    (record,) = agent.records(1)
    assert record["outcome"] == "refused"
    assert agent.status()["evidence"]["workers"]["pid"] == nursery


# ---------------------------------------------------------------- evidence:memory


def test_memory_of_a_process(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(taking("evidence:memory", parameters={"regions": ["stack", "heap"], "max_bytes": "8MiB"}))
    (record,) = ask(agent, inside)
    assert (record["outcome"], "frozen_ms" in record["details"]) == ("done", False)
    _, parts = parts_of(agent, record["details"]["bundle"])
    assert f"memory/{inside.pid}.json" in parts
    assert runs(inside)


# ---------------------------------------------------------------- one bundle a run


def test_all_that_a_run_captures_is_in_one_bundle(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    """Evidence first of an act that destroys is of the same run."""
    _, inside = boxed(make_box, spawn)
    actions = ("evidence:memory", "evidence:snapshot", "evidence:snapshot", "process:kill")
    agent = make_agent(
        taking(*actions, parameters={"regions": ["stack"], "max_bytes": "8MiB"}, evidence_first="true"),
        evidence_deadline="5s",
    )
    records = ask(agent, inside, 4)
    assert [record["outcome"] for record in records] == ["done"] * 4
    told = [record["details"] for record in records[:3]] + [records[3]["details"]["evidence"]]
    assert all(each.get("taken", True) for each in told)
    (bundle,) = bundles(agent)
    assert {each["bundle"] for each in told} == {bundle}
    folders = [each.get("folder", "") for each in told]
    assert folders == ["", *(f"act-{record['act'][:8]}/" for record in records[1:])]
    with Store(str(agent.state_dir / "evidence")) as store, store.reading(bundle) as reader:
        assert reader.check() == []
        manifest = reader.manifest
    owners = {part.name: part.act for part in manifest.parts}
    assert owners[f"memory/{inside.pid}.json"] == records[0]["act"]
    for record, folder in zip(records[1:], folders[1:], strict=True):
        assert owners[f"{folder}processes/{inside.pid}.json"] == record["act"]
    assert [link.manifest for link in manifest.replaces] == [each["manifest"] for each in told[:3]]
    assert [capture.origin.act for capture in manifest.captures] == [record["act"] for record in records]
    ran = agent.stoop("evidence", "verify")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "the chain is whole")
    assert agent.samples()["stoop_evidence_bundles"] == 1


# ---------------------------------------------------------------- the store, the commands, the metrics


def test_two_runs_are_listed_shown_and_verified(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(taking("evidence:snapshot"))
    records = ask(agent, inside) + ask(agent, inside)
    names = bundles(agent)
    assert [record["details"]["bundle"] for record in records] == names
    listed = agent.stoop("evidence", "list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in names)
    shown = agent.stoop("evidence", "show", records[0]["run"][:12])
    assert (shown.returncode, names[0] in shown.stdout, names[1] in shown.stdout) == (0, True, False)
    assert agent.stoop("evidence", "verify").returncode == 0
    samples = agent.samples()
    assert samples["stoop_evidence_bundles"] == 2
    assert samples["stoop_evidence_bytes"] == sum(record["details"]["bytes"] for record in records)


def test_the_store_is_bounded_by_the_configuration(make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn) -> None:
    _, inside = boxed(make_box, spawn)
    agent = make_agent(taking("evidence:snapshot"), evidence={"max_count": 2})
    for _ in range(3):
        (record,) = ask(agent, inside)
    assert len(bundles(agent)) == 2
    assert record["details"]["bundle"] in bundles(agent)
    assert agent.stoop("evidence", "verify").returncode == 0


@EACH_KIND
def test_sigkill_amid_a_snapshot_leaves_nothing_half_done(
    kind: str, make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn, kind)
    agent = make_agent(taking("evidence:snapshot", parameters={"scope": "container", "freeze_for": "5s"}))
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    nursery = agent.status()["evidence"]["workers"]["pid"]
    os.kill(nursery, signal.SIGSTOP)  # no worker is forked, so the target stands until the agent is killed
    try:
        agent.send(alert(inside.pid, {"container.id": ""}))
        await_that(box.is_frozen, "it stands still")
    finally:
        agent.kill()
        os.kill(nursery, signal.SIGCONT)
    await_that(lambda: not Path(f"/proc/{nursery}").exists(), "the nursery ended with the agent")
    agent.start()
    assert "was left frozen: thawed" in agent.said()
    assert runs(inside)
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    assert unfinished(agent) == []
    assert (bundles(agent), agent.stoop("evidence", "verify").returncode) == ([], 0)
    (row,) = agent.records(1)
    assert (row["actionner"], row["outcome"]) == ("evidence:snapshot", "failed")


def test_sigkill_amid_a_snapshot_of_what_a_hold_froze_leaves_it_frozen(
    make_agent: MakeAgent, make_box: MakeBox, spawn: Spawn
) -> None:
    box, inside = boxed(make_box, spawn)
    agent = make_agent(taking("container:freeze", "evidence:snapshot"))
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    nursery = agent.status()["evidence"]["workers"]["pid"]
    os.kill(nursery, signal.SIGSTOP)
    try:
        ask(agent, inside)
        await_that(lambda: bool(agent.status()["queue"]["lanes"]), "the snapshot waits for its worker")
    finally:
        agent.kill()
        os.kill(nursery, signal.SIGCONT)
    agent.start()
    assert box.is_frozen()
    assert agent.stoop("undo", "--all").returncode == 0
    assert runs(inside)
