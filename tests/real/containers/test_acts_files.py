"""file:quarantine on real containers through the whole agent: before, during and after, and whoever must not notice."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stoop.evidence.store import Store
from tests.e2e.conftest import Row
from tests.real.conftest import await_that
from tests.real.containers.node import Node
from tests.real.containers.on_node import (
    AgentOnNode,
    MakeOnNode,
    make_on_node,
    rule,
    told_of,
    undone,
)
from tests.real.containers.pod import Container, Pod

__all__ = ["make_on_node"]

pytestmark = [pytest.mark.root, pytest.mark.real]

ACT = "file:quarantine"
DROP = "echo 'echo evil' > /tmp/evil; chown 1000:1001 /tmp/evil; chmod 4755 /tmp/evil"


class File(NamedTuple):
    """All that undo puts back."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes]
    content: bytes


def look(path: Path) -> File | None:
    """The file of now; None where there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return File(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs, path.read_bytes())


class Scene:
    """A victim that dropped a file, and another container of the same image in its pod."""

    def __init__(self, pod: Pod, victim: Container, sibling: Container) -> None:
        self.pod = pod
        self.victim = victim
        self.sibling = sibling
        self.root = Path(f"/proc/{victim.init_pid}/root")
        self.evil = self.root / "tmp/evil"

    def drop(self) -> None:
        """The file."""
        self.victim.run("sh", "-c", DROP)
        os.setxattr(self.evil, "security.stoop-test", b"kept")

    def alert(self, pid: int = 0, **claims: Any) -> bytes:
        """An alert that says who wrote it."""
        return told_of(self.victim, pid, ACT, **({"fd_name": "/tmp/evil"} | claims))

    def names(self, directory: str = "tmp") -> set[str]:
        """What is in a directory of the victim's."""
        return set(os.listdir(self.root / directory))


@pytest.fixture
def scene(the_node: Node) -> Scene:
    """A new one."""
    pod = the_node.pod("web-1", "shop")
    made = Scene(pod, pod.container("sleep", "1000", name="app"), pod.container("sleep", "1000", name="side"))
    made.drop()
    made.sibling.run("sh", "-c", DROP)
    return made


BY_NAME: dict[str, Any] = {"file": "${FD_NAME}"}


def pins(agent: AgentOnNode) -> list[str]:
    """Bundles that are kept for a hold."""
    store = agent.state_dir / "evidence"
    return [name for name in os.listdir(store) if name.startswith(".pin-")] if store.exists() else []


def part(agent: AgentOnNode, record: Row) -> bytes:
    """What was kept of the file."""
    found: list[bytes] = []
    store = str(Path(record["details"]["path"]).parent)
    with Store(store) as opened, opened.reading(record["details"]["bundle"]) as reader:
        assert reader.check(lambda _, data: found.append(data)) == []
    return b"".join(found)


def test_before_during_and_after(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(ACT, **BY_NAME))
    before, beside = look(scene.evil), look(Path(f"/proc/{scene.sibling.init_pid}/root/tmp/evil"))
    assert before is not None
    record = agent.answer(scene.alert())
    assert (record["outcome"], record["reason"]) == ("done", ""), record
    details = record["details"]
    assert {key: details[key] for key in ("file", "layer", "mode", "size", "uid", "gid", "changed")} == {
        "file": "/tmp/evil", "layer": "upper", "mode": "4755", "size": 10, "uid": 1000, "gid": 1001, "changed": False,
    }  # fmt: skip
    assert part(agent, record) == before.content
    aside = f".stoop-quarantine-{record['act']}"
    assert scene.names() == {aside}
    now = look(scene.root / "tmp" / aside)
    assert now == before._replace(mode=stat.S_IFREG)
    with pytest.raises(AssertionError):
        scene.victim.run("/tmp/evil")
    (held,) = agent.active()
    assert (held["act"], held["actionner"], held["trouble"]) == (record["act"], ACT, "")
    assert len(pins(agent)) == 1
    again = agent.answer(scene.alert(evt_num=2))
    assert (again["outcome"], "No such file" in again["reason"]) == ("skipped", True), again
    assert scene.names() == {aside}
    (gone,) = agent.undo()
    assert (gone["act"], gone["outcome"], gone["reason"]) == (record["act"], "done", ""), gone
    assert look(scene.evil) == before
    assert scene.names() == {"evil"}
    assert (agent.active(), pins(agent)) == ([], [])
    assert look(Path(f"/proc/{scene.sibling.init_pid}/root/tmp/evil")) == beside


@pytest.mark.parametrize("how", ["dry_run", "observe"])
def test_trying_changes_nothing(how: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(
        rule(ACT, dry_run=how == "dry_run", **BY_NAME), mode="observe" if how == "observe" else "enforce"
    )
    before = look(scene.evil)
    assert agent.answer(scene.alert())["outcome"] == "would"
    assert (look(scene.evil), agent.active(), pins(agent)) == (before, [], [])


def test_dropped_again_it_is_taken_away_again(make_on_node: MakeOnNode, scene: Scene) -> None:
    """Two holds on one name: the first to be given back gets it, the other's file stays out of use, and is told."""
    agent = make_on_node(rule(ACT, **BY_NAME))
    first = agent.answer(scene.alert())
    scene.victim.run("sh", "-c", "echo 'echo worse' > /tmp/evil; chmod 755 /tmp/evil")
    second = agent.answer(scene.alert(evt_num=2))
    assert (first["outcome"], second["outcome"]) == ("done", "done")
    assert "evil" not in scene.names()
    results = {row["act"]: row for row in agent.undo()}
    assert {row["outcome"] for row in results.values()} == {"done"}
    told = [row["reason"] for row in results.values() if row["reason"]]
    assert len(told) == 1
    assert "another file is called evil by now, and left so" in told[0]
    assert len(scene.names()) == 2
    assert agent.active() == []


def test_it_outlives_sigkill_and_comes_back_on_time(make_on_node: MakeOnNode, scene: Scene) -> None:
    """Also what was changed meanwhile, when the rules name no such act any more."""
    agent = make_on_node(rule(ACT, ttl="4s", **BY_NAME))
    before = look(scene.evil)
    record = agent.answer(scene.alert())
    assert record["outcome"] == "done", record
    agent.kill()
    assert len(pins(agent)) == 1
    scene.victim.run("sh", "-c", "rm /tmp/.stoop-quarantine-*")
    Path(agent.directory, "rules.yaml").write_text(rule("process:kill"))
    agent.start()
    await_that(lambda: len(undone(agent)) == 1, f"given back; log: {agent.said()[-2000:]}")
    (row,) = undone(agent)
    assert (row["outcome"], "was gone: made anew out of bundle" in row["reason"]) == ("done", True), row
    assert look(scene.evil) == before
    assert (agent.active(), pins(agent)) == ([], [])


def test_a_container_that_is_gone_leaves_nothing_held(make_on_node: MakeOnNode, scene: Scene, the_node: Node) -> None:
    agent = make_on_node(rule(ACT, **BY_NAME))
    record = agent.answer(scene.alert())
    the_node.clear()
    (gone,) = agent.undo()
    assert (gone["outcome"], f"the file is in {record['details']['bundle']}" in gone["reason"]) == ("skipped", True)
    assert (agent.active(), pins(agent)) == ([], [])


# ------------------------------------------------------------ SIGKILL at each step


def at_keep(agent: AgentOnNode) -> bool:
    """The copy is under way or there, and nothing else."""
    return any((agent.state_dir / "held").glob("*.json"))


def at_pin(agent: AgentOnNode) -> bool:
    """The copy is there."""
    return bool(pins(agent))


KILLS: dict[str, Callable[[AgentOnNode, Scene], bool]] = {
    "held": lambda agent, scene: at_keep(agent),
    "kept": lambda agent, scene: at_pin(agent),
    "without permissions": lambda agent, scene: not scene.evil.exists() or not scene.evil.stat().st_mode & 0o777,
    "aside": lambda agent, scene: "evil" not in scene.names(),
}


@pytest.mark.parametrize("step", KILLS)
def test_killed_at_each_step(step: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    """The journal knows of it, or nothing was done; and undo has all as it was."""
    agent = make_on_node(rule(ACT, **BY_NAME))
    before = look(scene.evil)
    agent.send(scene.alert())
    await_that(partial(KILLS[step], agent, scene), step)
    agent.kill()
    taken = look(scene.evil) != before
    held = agent.active()
    assert held or not taken
    agent.start()
    results = agent.undo()
    assert {row["outcome"] for row in results} <= {"done", "skipped"}, results
    assert look(scene.evil) == before
    assert scene.names() == {"evil"}
    assert (agent.active(), pins(agent)) == ([], [])


def test_held_by_an_agent_of_another_boot(make_on_node: MakeOnNode, scene: Scene) -> None:
    """A file that was moved is moved still: it is held on, and comes back by the time of day."""
    agent = make_on_node(rule(ACT, ttl="1h", **BY_NAME))
    before = look(scene.evil)
    record = agent.answer(scene.alert())
    agent.kill()
    file = agent.state_dir / "held" / f"{record['act']}.json"
    hold = json.loads(file.read_bytes())
    file.write_text(json.dumps(hold | {"boot_id": "of another boot", "until_mono_ns": 1}))
    agent.start()
    (held,) = agent.active()
    assert (held["act"], 3500 < held["left_s"] <= 3600) == (record["act"], True)
    (gone,) = agent.undo()
    assert (gone["outcome"], look(scene.evil)) == ("done", before)


def test_evidence_first(make_on_node: MakeOnNode, scene: Scene) -> None:
    """It takes something away, so a snapshot can come before it."""
    agent = make_on_node(rule(ACT, **BY_NAME), evidence_first=True)
    record = agent.answer(scene.alert())
    assert (record["outcome"], record["details"]["evidence"]["taken"]) == ("done", True), record
    assert "evil" not in scene.names()
    assert look_frozen(scene) == set()


def look_frozen(scene: Scene) -> set[str]:
    """Freezers of the victim's that are on."""
    files = [path / name for path in scene.victim.directories for name in ("cgroup.freeze", "freezer.state")]
    return {file.read_text().strip() for file in files if file.exists()} - {"0", "THAWED"}
