"""The agent's own processes as targets: an alert may name any of them, and none is ever acted on.

Reflex, helper, nursery of workers, a worker, its reader, the network hands, and the pacemaker.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent, MakeAgent, alert
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that, line, state

pytestmark = [pytest.mark.root, pytest.mark.real]

ACTS: dict[str, dict[str, object]] = {
    "process:kill": {},
    "process:kill of a tree": {"scope": "tree"},
    "process:kill of a container": {"scope": "container"},
    "process:suspend": {},
    "container:kill": {},
    "container:freeze": {},
    "container:limit": {"pids": 64},
    "network:isolate": {},
    "network:block": {"cidr": ["192.0.2.1"]},
    "evidence:snapshot": {},
    "evidence:memory": {},
}

MIB = 400
"""Of the process whose memory is read meanwhile: it takes a second and more."""

LARGE = "import os, signal, sys; held = os.urandom(int(sys.argv[1]) << 20); print('held', flush=True); signal.pause()"


def rules() -> str:
    """One rule an act, named after it, and one that reads memory."""
    made = []
    for name, parameters in ACTS.items():
        action = {"action": name, "actionner": name.partition(" ")[0], "parameters": parameters}
        made.append({"rule": name, "match": {"rules": [name]}, "allow_host": "true", "actions": [action]})
    reading = {"action": "Read", "actionner": "evidence:memory", "parameters": {"max_bytes": "1GiB"}}
    made.append({"rule": "Read", "match": {"rules": ["Read"]}, "allow_host": "true", "actions": [reading]})
    return json.dumps(made)


def children(pid: int) -> dict[int, str]:
    """Pids and command lines, of whichever thread started them."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in file.read_text().split():
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def reading(make_agent: MakeAgent, spawn: Spawn) -> Iterator[tuple[Agent, dict[str, int]]]:
    """An agent with a capture under way, whose worker and reader stand still; and each process that is its own."""
    agent = make_agent(rules(), pacemaker={"rate": 1000}, guard={"reference_pid": os.getpid()})

    def ours(name: str) -> list[int]:
        return [pid for pid, said in children(agent.program.pid).items() if name in said]

    await_that(lambda: len(ours("agent.node.hand")) == 2, f"its hands; log: {agent.said()[-2000:]}")
    await_that(lambda: len(ours("agent.pacing")) == 1, "its pacemaker")
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery")
    nursery = int(agent.status()["evidence"]["workers"]["pid"])
    large = spawn(sys.executable, "-c", LARGE, str(MIB))
    assert line(large) == "held"
    agent.send(alert(large.pid, {"container.id": ""}, rule="Read"))
    await_that(lambda: any(children(child) for child in children(nursery)), "a worker has its reader")
    worker = next(child for child in children(nursery) if children(child))
    reader = next(iter(children(worker)))
    named = {"reflex": agent.program.pid, "helper": agent.status()["helper"]["pid"]}
    named |= {"nursery": nursery, "worker": worker, "reader": reader}
    named |= {f"hand {pid}": pid for pid in ours("agent.node.hand")}
    named |= {"pacemaker": ours("agent.pacing")[0]}
    assert set(children(agent.program.pid)) <= set(named.values())
    for pid in (worker, reader):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield agent, named
    finally:
        for pid in (worker, reader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_none_of_them_is_ever_acted_on(reading: tuple[Agent, dict[str, int]]) -> None:
    agent, named = reading
    assert len(named) == 8
    sent = [(who, pid, act) for who, pid in named.items() for act in ACTS]
    parent = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1]) for pid in named.values()}
    agent.send(*(alert(pid, {"container.id": "", "proc.ppid": parent[pid]}, rule=act) for _, pid, act in sent))

    def told() -> list[dict[str, object]]:
        return [row for row in agent.rows() if row["rule"] in ACTS]

    await_that(lambda: len(told()) >= len(sent), f"{len(sent)} records; log: {agent.said()[-2000:]}", PATIENCE_S)
    answers = {(row["rule"], row["outcome"]) for row in told()}
    assert answers == {(act, "refused") for act in ACTS}, [row for row in told() if row["outcome"] != "refused"]
    assert len(told()) == len(sent)
    for who, pid in named.items():
        assert alive(pid), who
        assert (state(pid) == "T") is (who in ("worker", "reader")), who
    assert json.loads(agent.stoop("status", "--json").stdout)["ready"]
    assert agent.stoop("active", "--json").stdout == ""
