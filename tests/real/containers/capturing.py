"""What the tests of captures share: rules, a pod that talks, what was kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.node.procfs import namespace_inode
from stoop.evidence.store import Store
from tests.e2e.conftest import Row
from tests.real.conftest import await_that, comm
from tests.real.containers.node import Node
from tests.real.containers.on_node import (
    AgentOnNode,
    Scene,
    acts_of,
)
from tests.real.containers.pod import Container, Pod
from tests.work.test_traffic import TCPDUMP

needs_tcpdump = pytest.mark.skipif(not TCPDUMP, reason="needs tcpdump(8) (apt-get install tcpdump)")

TRAFFIC = ("evidence:pcap", "kubernetes:tcpdump")

PARAMETERS: dict[str, dict[str, Any]] = {
    "kubernetes:log": {"tail_lines": 2},
    "kubernetes:download": {"file": "${FD_NAME}"},
    "evidence:pcap": {"duration": 1},
    "kubernetes:tcpdump": {"duration": 1},
    "kubernetes:sysdig": {"duration": 1},
}

ALWAYS = tuple(PARAMETERS)[:4]
"""Those that every node of the tests can do. No sysdig of Debian's has the driver that the last one needs."""

NOWHERE = "/no/such/folder"
"""Nothing is sent in these tests (test_outputs.py has that): a delivery that waits has no record yet."""

OUTPUT = ("kubernetes:download", "kubernetes:tcpdump", "kubernetes:sysdig")
"""Those of which a rule must say where their data goes."""


def capture(actionner: str, *, output: bool | None = None, dry_run: bool = False, **parameters: Any) -> str:
    """A rule named after its act. `output`: None for one where it must be."""
    step: dict[str, Any] = {"action": f"Do {actionner}", "actionner": actionner, "continue": "true"}
    step["parameters"] = PARAMETERS[actionner] | parameters
    if actionner in OUTPUT if output is None else output:
        step["output"] = {"target": "local:file", "parameters": {"destination": NOWHERE}}
    made = {"rule": actionner, "match": {"rules": [actionner]}, "actions": [step]}
    return "\n- " + json.dumps(made | ({"dry_run": "true"} if dry_run else {}))


def kept(agent: AgentOnNode, record: Row) -> tuple[dict[str, Any], bytes]:
    """The manifest's target, and the part that is the act's data; the bundle is whole, and the part by this act."""
    chunks: list[bytes] = []
    wanted = record["details"]["data"]["part"]
    with Store(str(agent.state_dir / "evidence")) as store, store.reading(record["details"]["bundle"]) as reader:
        assert reader.check(lambda part, data: chunks.append(data) if part.name == wanted else None) == []
        (part,) = (part for part in reader.manifest.parts if part.name == wanted)
        assert (part.act or reader.manifest.origin.act) == record["act"]
        return reader.manifest.target, b"".join(chunks)


def bundles(agent: AgentOnNode) -> list[str]:
    """Files in the store, with what writers left."""
    store = agent.state_dir / "evidence"
    return sorted(path.name for pattern in ("*.zst", ".writing*") for path in store.glob(pattern))


def runs_here(agent: AgentOnNode) -> list[int]:
    """tcpdumps below this agent."""
    found, waiting = [], [agent.program.pid]
    for pid in waiting:
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
            found += [child for child in children if comm(child) == "tcpdump"]
            waiting += children
        except OSError:
            continue  # it has ended meanwhile
    return found


def listening(agent: AgentOnNode, pod: Pod) -> int:
    """The tcpdump that captures in this pod, once it does so: it has a packet socket."""
    found: list[int] = []

    def begun() -> bool:
        found[:] = [pid for pid in runs_here(agent) if hears(pid, pod)]
        return bool(found)

    await_that(begun, f"tcpdump captures; log: {agent.said()[-2000:]}; {acts_of(agent)}")
    return found[0]


def hears(pid: int, pod: Pod) -> bool:
    """Whether this process is in the pod's network and has a packet socket there."""
    try:
        sockets = Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
        return os.stat(f"/proc/{pid}/ns/net").st_ino == namespace_inode(pod.netns) and bool(sockets)
    except OSError:
        return False


@pytest.fixture
def talker(the_node: Node) -> Container:
    """A container that says what it is told, and sends a ping to the node again and again."""
    pod = the_node.pod("web-1", "shop")
    return pod.container("sh", "-c", "while :; do ping -c 1 -W 1 -p a5 10.244.0.1 >/dev/null; done", name="app")


def said(container: Container, text: str) -> None:
    """Have it in its log: written as the kubelet's logger does, by a container's first process or by none."""
    file = container.node.directory / container.log.removeprefix("/var/")
    at = "2026-11-24T13:00:00.123456789Z stdout F "
    with file.open("a") as log:
        log.writelines(f"{at}{line}\n" for line in text.split("\n"))


def pod_files(scene: Scene) -> list[list[str]]:
    """What is in each container's upper directory, and who runs in it."""
    parties = (scene.victim, scene.sibling, scene.stranger)
    return [
        sorted(str(path) for path in each.upper.rglob("*")) + [str(pid) for pid in sorted(each.pids())]
        for each in parties
    ]
