"""All that the acts of a run keep of a real container is in one bundle, and each record says where its own is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stoop.evidence.manifest import Part
from stoop.evidence.store import Store
from tests.e2e.conftest import Row
from tests.real.conftest import await_that
from tests.real.containers.on_node import AgentOnNode, MakeOnNode, Scene, acts_of, make_on_node, scene, told_of

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]


def download(path: str) -> dict[str, Any]:
    """One act of a rule."""
    return {
        "action": f"Get {path}",
        "actionner": "kubernetes:download",
        "parameters": {"file": path},
        "output": {"target": "local:file", "parameters": {"destination": "/no/such/folder"}},
    }


def records_of(agent: AgentOnNode, steps: list[dict[str, Any]]) -> list[Row]:
    """Those of the rule's acts, in its order: others tell where data went, and lanes end as they do."""
    order = [step["action"] for step in steps]
    found = [row for row in acts_of(agent) if row["action"] in order]
    return sorted(found, key=lambda row: order.index(row["action"]))


def test_log_files_and_snapshot_of_one_run(make_on_node: MakeOnNode, scene: Scene) -> None:
    """Two files of one name, and two logs: each record's part is its own, also that of evidence first."""
    steps = [
        {"action": "Log", "actionner": "kubernetes:log", "output": download("")["output"]},
        download("/tmp/evil"),
        download("/tmp/worse"),
        {"action": "Look", "actionner": "evidence:snapshot"},
        {"action": "Kill", "actionner": "container:kill"},
    ]
    made = {"rule": "All", "match": {"rules": ["All"]}, "actions": steps, "evidence_first": "true"}
    agent = make_on_node("\n- " + json.dumps(made), evidence_deadline="5s")
    container = scene.victim
    container.run("sh", "-c", "echo evil > /tmp/evil; echo worse > /tmp/worse; echo said > /proc/1/fd/1")
    agent.send(told_of(container, rule="All"))
    await_that(lambda: len(records_of(agent, steps)) == len(steps), "a record for each act", 30)
    records = records_of(agent, steps)
    assert [record["outcome"] for record in records] == ["done"] * len(steps), records
    contents: dict[str, bytes] = {}

    def sink(part: Part, data: bytes) -> None:
        contents[part.name] = contents.get(part.name, b"") + data

    with Store(str(agent.state_dir / "evidence")) as store:
        (bundle,) = store.bundles()
        with store.reading(bundle) as reader:
            assert reader.check(sink) == []
            owners = {part.name: part.act for part in reader.manifest.parts}
    assert {record["details"].get("bundle", bundle) for record in records} == {bundle}
    assert records[-1]["details"]["evidence"]["bundle"] == bundle
    wanted = [record["details"]["data"]["part"] for record in records[:3]]
    assert contents[wanted[0]].endswith(b"said\n")
    assert [contents[name] for name in wanted[1:]] == [b"evil\n", b"worse\n"]
    assert [owners[name] for name in wanted] == [record["act"] for record in records[:3]]
    for told in (records[3]["details"], records[4]["details"]["evidence"]):
        assert f"{told['folder']}processes/{container.init_pid}.json" in contents
    assert sorted(set(owners.values())) == sorted(record["act"] for record in records)
    assert agent.stoop("evidence", "verify").returncode == 0
    shown = agent.stoop("evidence", "show", records[0]["run"]).stdout
    assert all(record["act"] in shown for record in records)
