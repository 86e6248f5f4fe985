"""What the node can't do is said at the start, in `stoop status` and in `stoop actions list`; the rest goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent import programs
from agent.node.host import LinuxHost
from tests.e2e.conftest import KILL_IT, Agent, MakeAgent
from tests.real.conftest import await_that
from tests.real.containers.cgroups import hierarchies

pytestmark = [pytest.mark.root]

NEEDS = "".join(
    f"""
- rule: Needs {actionner}
  match: {{rules: [Terminal shell in container]}}
  actions: [{{action: Do {actionner}, actionner: "{actionner}"}}]
"""
    for actionner in ("network:isolate", "container:freeze")
)

OURS = {"reference_pid": os.getpid()}
"""Where the first process has rights that root has not here, its network can't be told: ours is the same."""

READ_ONLY = 'for place in {}; do mount -o remount,bind,ro "$place"; done; exec "$@"'


def warned(agent: Agent) -> list[tuple[str, str]]:
    """(rule, reason) of each warning."""
    lines = [json.loads(line) for line in agent.said().splitlines() if "can't be done here" in line]
    return [(line["rule"], line["reason"]) for line in lines]


def lacks(agent: Agent) -> dict[str, Any]:
    """What of the hands that act it says can't be used. Programs and directories that captures need are their own
    matter: a machine that is no node has not all of them."""
    found: dict[str, Any] = agent.status()["unavailable"]
    return {
        name: why for name, why in found.items() if name not in (*programs.NEEDS, programs.SYSDIG_ACT, "kubernetes:log")
    }


def children(agent: Agent) -> bytes:
    """The command lines of its children."""
    pids = Path(f"/proc/{agent.program.pid}/task/{agent.program.pid}/children").read_text().split()
    return b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def test_a_healthy_node_lacks_nothing(make_agent: MakeAgent) -> None:
    agent = make_agent(NEEDS, guard=OURS)
    await_that(lambda: b"agent.node.hand" in children(agent), "the hands have started")
    assert lacks(agent) == {}
    told = agent.stoop("actions", "list").stdout.count("unavailable_on_this_node")
    assert told == len(agent.status()["unavailable"])


def test_without_cap_net_admin(make_agent: MakeAgent) -> None:
    agent = make_agent(NEEDS, start=False, guard=OURS)
    agent.prefix = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    agent.start()
    await_that(lambda: bool(warned(agent)), f"a warning; log: {agent.said()}")
    ((rule, reason),) = warned(agent)
    assert (rule, "CAP_NET_ADMIN" in reason) == ("Needs network:isolate", True), reason
    found = lacks(agent)
    assert set(found) == {"network:isolate", "network:block"}
    assert found["network:isolate"] == {"reason": reason, "rules": ["Needs network:isolate"]}
    assert found["network:block"] == {"reason": reason, "rules": []}
    said = agent.stoop("status")
    assert said.returncode == 1
    assert f"network:isolate can't be done on this node: {reason}" in " ".join(said.stdout.split())
    assert agent.stoop("actions", "list").stdout.count("unavailable_on_this_node") == len(agent.status()["unavailable"])


def test_without_a_right_that_tcpdump_needs(make_agent: MakeAgent) -> None:
    rules = NEEDS.replace("network:isolate", "evidence:pcap").replace("container:freeze", "process:kill")
    agent = make_agent(rules, start=False)
    agent.prefix = ("setpriv", "--bounding-set=-net_raw,-kill", "--inh-caps=-all")
    agent.start()
    await_that(lambda: bool(warned(agent)), f"a warning; log: {agent.said()}")
    ((rule, reason),) = warned(agent)
    missing = "the agent has no CAP_NET_RAW, CAP_KILL" if programs.find(programs.TCPDUMP) else "no tcpdump here"
    assert (rule, missing in reason) == ("Needs evidence:pcap", True), reason
    found = agent.status()["unavailable"]
    assert found["evidence:pcap"]["reason"] == found["kubernetes:tcpdump"]["reason"] == reason


def test_cgroups_that_are_mounted_read_only(make_agent: MakeAgent) -> None:
    agent = make_agent(NEEDS.replace("network:isolate", "process:kill"), start=False)
    script = READ_ONLY.format(" ".join(map(str, hierarchies())))
    agent.prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh")
    agent.start()
    await_that(lambda: bool(warned(agent)), f"a warning; log: {agent.said()}")
    ((rule, reason),) = warned(agent)
    assert (rule, reason.startswith("cgroups are mounted read-only: /")) == ("Needs container:freeze", True)
    assert set(lacks(agent)) == {"container:freeze", "container:limit"}


def test_without_any_cgroups(tmp_path: Path) -> None:
    host = LinuxHost(cgroup_root=str(tmp_path))
    assert set(host.unavailable()) == {"container:freeze", "container:limit"}
    host.close()


def test_without_an_agent_the_list_is_the_same_for_all(make_agent: MakeAgent) -> None:
    agent = make_agent(KILL_IT, start=False)
    said = agent.stoop("actions", "list")
    assert (said.returncode, said.stderr) == (0, "")
    assert "--- container:freeze ---" in said.stdout
