"""Every output against a real store, through the whole agent: what was captured arrives, sooner or later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Agent, MakeAgent, Row, alert
from tests.real.conftest import Spawn, await_that
from tests.real.stores.servers import SECRET, Folder, Minio, Moto, Target, running

pytestmark = [pytest.mark.root]

LATER_S = 40.0
"""A store that is back is tried again within 2 + 10 s, a third more or less, and within a second after a restart."""


def keeping(output: Mapping[str, Any]) -> str:
    """A rule that takes a snapshot and sends it."""
    action = {"action": "Keep it", "actionner": "evidence:snapshot", "output": output}
    rule = {"rule": "Keep and send", "match": {"rules": ["Terminal shell in container"]}, "actions": [action]}
    return json.dumps([rule | {"allow_host": "true"}])


def agent_of(make_agent: MakeAgent, target: Target, *, start: bool = True, **parameters: Any) -> Agent:
    """An agent that sends there."""
    agent: Agent = make_agent(keeping(target.output(**parameters)), start=False, **target.settings)
    agent.more_environment = dict(target.environment)
    if start:
        agent.start()
    return agent


def waiting(agent: Agent) -> list[str]:
    """Files of what is still to be sent."""
    return sorted(path.name for path in (agent.state_dir / "deliveries").glob("*"))


def taken(agent: Agent, spawn: Spawn) -> Row:
    """One snapshot; its record."""
    before = len(agent.rows())
    agent.send(alert(spawn("sleep", "1000").pid, {"container.id": "", "k8s.ns.name": "shop", "k8s.pod.name": "web-0"}))
    await_that(lambda: len(agent.rows()) > before, f"a record; log: {agent.said()[-2000:]}")
    return agent.rows()[before]


def sent(agent: Agent, act: str) -> Row:
    """The record of what became of its delivery."""
    found: list[Row] = []

    def came() -> bool:
        found[:] = [row for row in agent.rows() if row["details"].get("delivers") == act]
        return bool(found)

    await_that(came, f"a delivery of {act}; log: {agent.said()[-3000:]}", LATER_S)
    (row,) = found
    return row


def whole(agent: Agent, record: Row) -> bytes:
    """The bundle's file."""
    return Path(record["details"]["path"]).read_bytes()


def test_what_was_captured_arrives(target: Target, make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = agent_of(make_agent, target)
    record = taken(agent, spawn)
    assert record["outcome"] == "done"
    row = sent(agent, record["act"])
    assert (row["outcome"], row["reason"]) == ("done", "")
    ((key, content),) = target.objects().items()
    assert content == whole(agent, record)
    bundle = record["details"]["bundle"]
    stamp = record["time"][:19].replace(":", "-")
    assert key == f"{stamp}Z_shop_web-0_{record['act'][:12]}_{bundle}.tar.zst"
    assert row["details"]["object"].endswith(f"/{key}")
    assert row["details"]["object"] == record["details"]["delivery"]["object"]
    assert (row["details"]["bytes"], row["details"]["tries"]) == (len(content), 1)
    assert row["details"]["sha256"] == sha256(content).hexdigest()
    if target.metadata(key):
        assert target.metadata(key)["sha256"] == sha256(content).hexdigest()
    await_that(lambda: waiting(agent) == [], "its file goes")
    samples = agent.samples()
    assert samples[f'stoop_deliveries_total{{outcome="done",output="{target.name}"}}'] == 1
    assert samples[f'stoop_delivered_bytes_total{{output="{target.name}"}}'] == len(content)
    assert "evidence of evidence:snapshot" in agent.stoop("history").stdout


@pytest.mark.parametrize("kind", [Folder, Moto, Minio], ids=lambda kind: kind.name)
def test_a_dead_store_is_tried_again_also_by_the_next_agent(
    kind: type[Target], tmp_path: Path, make_agent: MakeAgent, spawn: Spawn
) -> None:
    with running(kind, tmp_path / "store") as target:
        target.stop()
        agent = agent_of(make_agent, target)
        record = taken(agent, spawn)
        await_that(lambda: bool(agent.status()["deliveries"]["trouble"]), "it is told")
        status = agent.status()["deliveries"]
        assert (status["waiting"], len(waiting(agent))) == (1, 1)
        assert "can't be sent" in agent.stoop("status").stdout
        agent.kill()
        assert len(waiting(agent)) == 1
        if isinstance(target, Folder):
            target.start()
            agent.start()
        else:
            agent.start()
            await_that(lambda: bool(agent.status()["deliveries"]["trouble"]), "the next one has tried")
            target.start()
        row = sent(agent, record["act"])
        assert row["outcome"] == "done"
        assert list(target.objects().values()) == [whole(agent, record)]
        await_that(lambda: waiting(agent) == [], "its file goes")
        assert agent.status()["deliveries"]["waiting"] == 0


def test_what_is_not_there_is_told(target: Target, make_agent: MakeAgent, spawn: Spawn) -> None:
    wrong: dict[str, Any] = (
        {"destination": "/nowhere/at/all"} if isinstance(target, Folder) else {"bucket": "no-such-bucket"}
    )
    agent = agent_of(make_agent, target, **wrong)
    record = taken(agent, spawn)
    await_that(lambda: bool(agent.status()["deliveries"]["trouble"]), f"told; log: {agent.said()[-2000:]}")
    ((store, reason),) = agent.status()["deliveries"]["trouble"].items()
    assert store.startswith(f"{target.name} ")
    assert any(word in reason for word in ("NoSuchBucket", "No such file", "AccessDenied")), reason
    assert len(waiting(agent)) == 1
    assert [row["act"] for row in agent.rows()] == [record["act"]]


def test_wrong_credentials_are_told_and_no_secret_is(tmp_path: Path, make_agent: MakeAgent, spawn: Spawn) -> None:
    with running(Minio, tmp_path / "store") as target:
        settings = {"minio": target.settings["minio"] | {"secret_key": "not-the-secret"}}
        agent: Agent = make_agent(keeping(target.output()), **settings)
        taken(agent, spawn)
        await_that(lambda: bool(agent.status()["deliveries"]["trouble"]), "it is told")
        (reason,) = agent.status()["deliveries"]["trouble"].values()
        assert "SignatureDoesNotMatch" in reason
        shown = (
            agent.said() + json.dumps(agent.status()) + json.dumps(agent.rows()) + agent.stoop("config", "print").stdout
        )
        assert "not-the-secret" not in shown
        agent.stop()
        agent.configure(target.settings)
        agent.start()
        await_that(lambda: len(target.objects()) == 1, "the right ones do", LATER_S)
        assert SECRET not in agent.said()
