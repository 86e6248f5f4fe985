"""The whole agent on a real node, a victim with neighbours, and the state of the world about each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import TERMINAL_SHELL, Agent, Row, alert
from tests.real.conftest import alive, await_that, state
from tests.real.containers.node import Node
from tests.real.containers.pod import Container, Pod
from tests.real.netlab import rules

ACTS: dict[str, dict[str, Any]] = {
    "process:suspend": {},
    "container:limit": {"pids": 64, "cpu": "10%"},
    "network:isolate": {},
    "network:block": {"cidr": ["10.244.0.1"]},
    "container:freeze": {},
    "process:kill": {},
    "container:kill": {},
    "evidence:snapshot": {"scope": "container"},
    "evidence:memory": {"regions": ["stack"], "max_bytes": "1MiB"},
}
"""Every act that this agent carries out, with parameters that change something. Those not in REVERSIBLE stay done."""

REVERSIBLE = tuple(ACTS)[:5]
POD_WIDE = ("network:isolate", "network:block")


class AgentOnNode(Agent):
    """An agent that runs in the node's mount and network namespaces, as a DaemonSet's pod does."""

    node: Node

    def command(self, *words: str) -> list[str]:
        return self.node.inside(*super().command(*words))

    def answer(self, *alerts: bytes) -> Row:
        """The last of the records that follow these alerts; one each."""
        count = len(acts_of(self)) + len(alerts)
        self.send(*alerts)
        await_that(lambda: len(acts_of(self)) >= count, f"{count} records; log: {self.said()[-2000:]}")
        return acts_of(self)[-1]

    def active(self) -> list[Row]:
        """What `stoop active --json` says."""
        return [json.loads(line) for line in self.stoop("active", "--json").stdout.splitlines()]

    def undo(self) -> list[Row]:
        """What `stoop undo --all --json` says."""
        return [json.loads(line) for line in self.stoop("undo", "--all", "--json").stdout.splitlines()]


def acts_of(agent: Agent) -> list[Row]:
    """Records of acts, in their order."""
    return [row for row in agent.rows() if not row["details"].get("undoes")]


def undone(agent: Agent) -> list[Row]:
    """Records of what was given back."""
    return [row for row in agent.rows() if row["details"].get("undoes")]


def on_node(node: Node, directory: Path, rules: str, **settings: Any) -> AgentOnNode:
    """An agent of that node, not started yet."""
    guard = {"reference_pid": node.pid, "protected_namespaces": ["kube-system"], **settings.pop("guard", {})}
    made = AgentOnNode(directory, rules, {"guard": guard, **settings})
    made.node = node
    return made


MakeOnNode = Callable[..., AgentOnNode]


@pytest.fixture
def make_on_node(the_node: Node, tmp_path: Path) -> Iterator[MakeOnNode]:
    """`make_on_node(rules, **settings)`: a started agent; it ends before the node's pods do."""
    made: list[AgentOnNode] = []

    def make(rules: str, **settings: Any) -> AgentOnNode:
        directory = tmp_path / f"agent{len(made)}"
        directory.mkdir()
        agent = on_node(the_node, directory, rules, **settings)
        made.append(agent)
        agent.start()
        return agent

    yield make
    for agent in made:
        agent.close()


def rule(actionner: str, *, dry_run: bool = False, **parameters: Any) -> str:
    """A rule named after its act, for alerts whose rule is named so too."""
    given = {**ACTS.get(actionner, {}), **parameters}
    return f"""
- rule: {json.dumps(actionner)}
  match: {{rules: [{json.dumps(actionner)}]}}
  {"dry_run: true" if dry_run else "continue: true"}
  actions: [{{action: Do it, actionner: {json.dumps(actionner)}, parameters: {json.dumps(given)}}}]
"""


def told_of(container: Container, pid: int = 0, rule: str = "", **claims: Any) -> bytes:
    """What Falco sends when it had no answer from the runtime's socket in time: an id, and nulls.

    `pid`: who did it, the container's first process when 0. `claims`: fields, `_` for `.`.
    """
    fields = {"container.id": container.id[:12], "k8s.ns.name": None, "k8s.pod.name": None, "container.name": None}
    more = fields | {key.replace("_", "."): value for key, value in claims.items()}
    return alert(pid or container.init_pid, more, rule=rule or TERMINAL_SHELL)


class World(NamedTuple):
    """How it stands with one process and its container and pod; nothing of it is what the agent says."""

    alive: bool
    stopped: bool
    frozen: bool
    pids_max: str
    cpu_quota: str
    pod_rules: str
    host_rules: bool  # whether any are about the host's end of its link


def look(container: Container, pid: int = 0) -> World:
    """The world of now. `pid`: the container's first process when 0."""
    pid = pid or container.init_pid
    node, pod = container.node, container.pod
    freezers = [path / name for path in container.directories for name in ("cgroup.freeze", "freezer.state")]
    return World(
        alive=alive(pid),
        stopped=state(pid) == "T",
        frozen=any(file.read_text().strip() not in ("0", "THAWED") for file in freezers if file.exists()),
        pids_max=_control(container, "pids.max"),
        cpu_quota=_control(container, "cpu.cfs_quota_us") or _control(container, "cpu.max"),
        pod_rules=rules(pod.sandbox.init_pid),
        host_rules=bool(pod.host_link) and f'"{pod.host_link}"' in rules(node.pid),
    )


def _control(container: Container, name: str) -> str:
    found = [path / name for path in container.directories if (path / name).exists()]
    return found[0].read_text().strip() if found else ""


@dataclass
class Scene:
    """A victim with a process beside its first one, a sibling in its pod, and a stranger in another pod."""

    pod: Pod
    victim: Container
    pid: int
    sibling: Container
    stranger: Container

    def target(self, actionner: str) -> int:
        """Who an alert names: acts on one process are to leave the container's first one alone."""
        return self.pid if actionner.startswith("process:") else self.victim.init_pid

    def alert(self, actionner: str) -> bytes:
        """The alert for the rule of this act."""
        return told_of(self.victim, self.target(actionner), actionner)

    def whole(self) -> dict[str, World]:
        """Everybody's world."""
        return {
            "victim": look(self.victim),
            "its process": look(self.victim, self.pid),
            "sibling": look(self.sibling),
            "stranger": look(self.stranger),
        }


@pytest.fixture
def scene(the_node: Node) -> Scene:
    """A new one; all of it runs."""
    pod, other = the_node.pod("web-1", "shop"), the_node.pod("web-2", "shop")
    victim = pod.container("sleep", "1000", name="app")
    sibling = pod.container("sleep", "1000", name="side")
    return Scene(pod, victim, victim.exec("sleep", "2000"), sibling, other.container("sleep", "1000", name="app"))
