"""Captures of a pod as acts, on real containers through the whole agent: nothing of the pod changes, nothing stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real.conftest import alive, await_that
from tests.real.containers.capturing import (
    ALWAYS,
    NOWHERE,
    PARAMETERS,
    bundles,
    capture,
    kept,
    needs_tcpdump,
    pod_files,
    runs_here,
    said,
)
from tests.real.containers.on_node import (
    MakeOnNode,
    Scene,
    acts_of,
    make_on_node,
    rule,
    scene,
    told_of,
)
from tests.work.test_traffic import packets

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("how", ["dry_run", "observe"])
def test_trying_keeps_nothing(how: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    rules = "".join(capture(actionner, dry_run=how == "dry_run") for actionner in PARAMETERS)
    agent = make_on_node(rules, mode="observe" if how == "observe" else "enforce")
    before = scene.whole()
    for actionner in PARAMETERS:
        record = agent.answer(told_of(scene.victim, rule=actionner, fd_name="/etc/passwd"))
        assert (record["actionner"], record["outcome"]) == (actionner, "would"), record
    assert scene.whole() == before
    assert bundles(agent) == []
    assert runs_here(agent) == []


@needs_tcpdump
def test_it_keeps_and_changes_nothing_also_twice(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node("".join(map(capture, ALWAYS)))
    said(scene.victim, "one\ntwo\nthree")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    before, inside = scene.whole(), pod_files(scene)
    for number, actionner in enumerate((*ALWAYS, *ALWAYS)):
        record = agent.answer(told_of(scene.victim, rule=actionner, fd_name="/tmp/evil"))
        assert (record["actionner"], record["outcome"], record["reason"]) == (actionner, "done", ""), record
        assert record["target"]["container_id"] == scene.victim.id
        target, data = kept(agent, record)
        assert (target["container_id"], target["pod"]) == (scene.victim.id, "web-1")
        assert len(bundles(agent)) == number + 1
        if actionner == "kubernetes:log":
            assert (data, record["details"]["log"]) == (b"two\nthree\n", ["two", "three"])
        elif actionner == "kubernetes:download":
            assert (data, record["details"]["file"]) == (b"evil\n", "/tmp/evil")
            assert record["details"]["data"] == {"part": "file.bin", "name": "/tmp/evil"}
        else:
            assert not any(b"\xa5" * 8 in sent for _, sent in packets(data))  # nobody pings here
            assert record["details"]["data"] == {"part": "tcpdump.pcap", "name": "tcpdump.pcap"}
    assert (scene.whole(), pod_files(scene)) == (before, inside)
    assert runs_here(agent) == []
    assert agent.stoop("evidence", "verify").returncode == 0


def test_its_data_is_what_is_sent(make_on_node: MakeOnNode, scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    agent = make_on_node(capture("kubernetes:download").replace(NOWHERE, str(folder)))
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    agent.send(told_of(scene.victim, rule="kubernetes:download", fd_name="/tmp/evil"))
    await_that(lambda: len(agent.rows()) == 2, f"the act, and that it was sent; {agent.said()[-2000:]}")
    record, sent = agent.rows()
    assert (sent["outcome"], sent["details"]["delivers"]) == ("done", record["act"])
    (file,) = folder.iterdir()
    assert file.name.endswith(f"Z_shop_web-1_{record['act'][:12]}__tmp_evil")
    assert file.read_bytes() == b"evil\n"


def test_the_captures_of_one_run_are_in_one_bundle(make_on_node: MakeOnNode, scene: Scene) -> None:
    rules = json.loads(capture("kubernetes:log").removeprefix("\n- "))
    rules["actions"] += json.loads(capture("kubernetes:download").removeprefix("\n- "))["actions"]
    agent = make_on_node(json.dumps([rules]))
    said(scene.victim, "one")
    scene.victim.run("sh", "-c", "echo evil > /tmp/evil")
    agent.send(told_of(scene.victim, rule="kubernetes:log", fd_name="/tmp/evil"))
    await_that(lambda: len(acts_of(agent)) == 2, "two records")
    first, second = acts_of(agent)
    assert (first["outcome"], second["outcome"]) == ("done", "done"), (first, second)
    assert first["details"]["bundle"] == second["details"]["bundle"]
    assert second["details"]["data"]["part"] == f"act-{second['act'][:8]}/file.bin"
    assert kept(agent, first)[1] == b"one\n"
    assert kept(agent, second)[1] == b"evil\n"
    assert len(bundles(agent)) == 1


# ---------------------------------------------------------------- the log


def test_the_log_of_a_container_that_was_killed_and_of_the_pods_first(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log") + rule("container:kill"))
    said(scene.sibling, "of the sibling")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["details"]["log"] == ["of the sibling"]
    said(scene.victim, "of its own")
    assert agent.answer(told_of(scene.victim, rule="container:kill"))["outcome"] == "done"
    record = agent.answer(told_of(scene.sibling, rule="kubernetes:log"))
    assert record["details"]["log"] == ["of the sibling"]
    assert alive(scene.sibling.init_pid)


NASTY = "\x1b[2J\x1b]0;owned\x07 \u202ereversed\u2066 \x00 \x9b31m tab\tend\r"


def test_what_a_log_says_is_data(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log"))
    said(scene.victim, "x" * 100_000)
    said(scene.victim, NASTY)
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["details"]["log"] == ["\\x1b[2J\\x1b]0;owned\\x07 \\u202ereversed\\u2066 \\x00 \\x9b31m tab\\tend\\r"]
    assert record["details"]["log_cut"] is True
    _, data = kept(agent, record)
    assert data == b"x" * 100_000 + b"\n" + NASTY.encode() + b"\n"
    for words in (("history",), ("history", "--json"), ("evidence", "list")):
        assert not set("\x1b\x07\x9b\u202e") & set(agent.stoop(*words).stdout)


def test_with_an_output_the_log_is_not_in_the_record(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(capture("kubernetes:log", output=True))
    said(scene.victim, "token=1234")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["outcome"] == "done"
    assert not {"log", "text"} & record["details"].keys()
    assert record["details"]["data"] == {"part": "log.txt", "name": "log"}
    assert "token=1234" not in agent.said()


def test_a_log_that_leads_elsewhere_is_none(make_on_node: MakeOnNode, scene: Scene) -> None:
    """As a pod with a hostPath of the log directory can have it."""
    agent = make_on_node(capture("kubernetes:log"))
    file = scene.victim.node.directory / scene.victim.log.removeprefix("/var/")
    file.unlink()
    file.symlink_to("/etc/shadow")
    record = agent.answer(told_of(scene.victim, rule="kubernetes:log"))
    assert record["outcome"] == "failed"
    assert "0.log" in record["reason"]
    assert bundles(agent) == []
