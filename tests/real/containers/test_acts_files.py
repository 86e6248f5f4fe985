"""file:quarantine on real containers through the whole agent: before, during and after, and whoever must not notice."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stoop.evidence.store import Store
from tests.e2e.conftest import Row
from tests.real.conftest import await_that
from tests.real.containers.node import Node, host_programs
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
    store = Path(agent.directory) / "state/evidence"
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


# ------------------------------------------------------------ the executable of the alert's process

RUNNING = ("", "mv /tmp/busybox-x /bin/other", "rm /tmp/busybox-x")


@pytest.mark.parametrize("then", RUNNING)
def test_the_executable_of_a_process(then: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    """Wherever it was renamed to since; one that was deleted can't be run again through /proc."""
    agent = make_on_node(rule(ACT))
    scene.victim.run("sh", "-c", "cp /bin/busybox /tmp/busybox-x; chmod 755 /tmp/busybox-x")
    pid = scene.victim.exec("/tmp/busybox-x", "sleep", "600")
    content = (scene.root / "tmp/busybox-x").read_bytes()
    if then:
        scene.victim.run("sh", "-c", then)
    record = agent.answer(scene.alert(pid, proc_exepath="/tmp/busybox-x"))
    assert record["outcome"] == "done", record
    assert record["details"]["layer"] == ("deleted" if then.startswith("rm") else "upper")
    assert part(agent, record) == content
    executable = Path(f"/proc/{pid}/exe")
    assert stat.S_IMODE(executable.stat().st_mode) == 0
    with pytest.raises(PermissionError):
        subprocess.run([executable, "true"], check=False)
    (gone,) = agent.undo()
    assert (gone["outcome"], gone["reason"]) == ("done", "")
    assert stat.S_IMODE(executable.stat().st_mode) == 0o755


MEMFD = """
import os, sys, time
fd = os.memfd_create("evil", os.MFD_CLOEXEC)
os.write(fd, open("/bin/busybox", "rb").read())
os.execve(fd, ["sleep", "600"], {})
"""


def test_one_that_is_in_memory_only(make_on_node: MakeOnNode, the_node: Node) -> None:
    agent = make_on_node(rule(ACT))
    victim = the_node.pod("web-1", "shop").container("sleep", "1000", mounts=host_programs(sys.base_prefix))
    pid = victim.exec(os.path.realpath(sys.executable), "-c", MEMFD)
    executable = Path(f"/proc/{pid}/exe")
    await_that(lambda: "memfd:evil" in os.readlink(executable), "it runs from memory")
    record = agent.answer(told_of(victim, pid, ACT))
    assert (record["outcome"], record["details"]["layer"]) == ("done", "memfd"), record
    assert part(agent, record) == (Path(f"/proc/{victim.init_pid}/root/bin/busybox")).read_bytes()
    assert stat.S_IMODE(executable.stat().st_mode) == 0
    with pytest.raises(PermissionError):
        subprocess.run([executable, "true"], check=False)
    (gone,) = agent.undo()
    assert (gone["outcome"], stat.S_IMODE(executable.stat().st_mode)) == ("done", 0o777)
    record = agent.answer(told_of(victim, pid, ACT, evt_num=2))
    victim.run("kill", "-9", victim.run("pgrep", "-f", "sleep 600").split()[0])
    await_that(lambda: not executable.exists(), "it has ended")
    (gone,) = agent.undo()
    assert (gone["outcome"], "nothing to give back" in gone["reason"]) == ("skipped", True), gone


def test_a_script_s_interpreter_is_left_alone(make_on_node: MakeOnNode, scene: Scene) -> None:
    """The process of a script runs the image's shell: without it the container breaks."""
    agent = make_on_node(rule(ACT))
    pid = scene.victim.exec("sh", "-c", "sleep 600; true")
    record = agent.answer(scene.alert(pid))
    assert record["outcome"] == "refused", record
    assert "it is the image's" in record["reason"]
    assert scene.victim.run("echo", "well") == "well\n"
    assert (agent.active(), pins(agent)) == ([], [])


# ------------------------------------------------------------ a hostile container


def refusals(scene: Scene) -> dict[str, tuple[str, str, str]]:
    """What to do in the container, which file is named, and why it is left alone."""
    return {
        "hostPath": ("true", "/volume/node", "another file system"),
        "link to a hostPath": ("ln -s /volume/node /tmp/l", "/tmp/l", "another file system"),
        "link out": ("ln -s /../../../etc/passwd /tmp/p", "/tmp/p", "No such file"),
        "bind mount": ("touch /tmp/b; mount -o bind /volume/node /tmp/b", "/tmp/b", "another file system"),
        "hard link": ("ln /tmp/evil /tmp/h", "/tmp/evil", "2 names"),
        "fifo": ("mkfifo /tmp/f", "/tmp/f", "no regular file"),
        "device": ("mknod /tmp/z c 1 5", "/tmp/z", "no regular file"),
        "proc": ("true", "/proc/1/environ", "another file system"),
        "sparse": ("truncate -s 100G /tmp/s", "/tmp/s", "are not kept"),
        "image": ("true", "/bin/busybox", "image_files: true"),
        "no path": ("true", "127.0.0.1:80->127.0.0.1:9", "no full path"),
        "no field": ("true", "", "the alert has no value for '${FD_NAME}'"),
    }


def test_what_is_left_alone(make_on_node: MakeOnNode, the_node: Node, tmp_path: Path) -> None:
    agent = make_on_node(rule(ACT, **BY_NAME))
    (tmp_path / "node").write_text("of the node\n")
    volume = f"type=bind,src={tmp_path},dst=/volume,options=rbind:rw"
    pod = the_node.pod("web-1", "shop")
    options = ("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_MKNOD")
    victim = pod.container("sleep", "1000", name="app", mounts=(volume,), options=options)
    scene = Scene(pod, victim, victim)
    scene.drop()
    before = look(tmp_path / "node")
    for number, (what, (script, path, why)) in enumerate(refusals(scene).items()):
        victim.run("sh", "-c", script)
        record = agent.answer(scene.alert(fd_name=path or None, evt_num=number))
        assert record["outcome"] in ("refused", "skipped"), (what, record)
        assert why in record["reason"], (what, record)
        assert (agent.active(), pins(agent)) == ([], []), what
    assert look(tmp_path / "node") == before
    assert look(scene.evil) is not None
    read_only = pod.container("sleep", "1000", name="fixed", options=("--read-only",))
    record = agent.answer(told_of(read_only, 0, ACT, fd_name="/bin/busybox", evt_num=99))
    assert (record["outcome"], "read-only" in record["reason"]) == ("refused", True)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "x" * 255])
def test_odd_names(name: str, make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(ACT, **BY_NAME))
    os.rename(scene.evil, scene.root / "tmp" / name)
    record = agent.answer(scene.alert(fd_name=f"/tmp/{name}"))
    assert record["outcome"] == "done", record
    assert record["details"]["file"] == f"/tmp/{name}"
    assert name not in scene.names()
    assert agent.undo()[0]["outcome"] == "done"
    assert scene.names() == {name}


# ------------------------------------------------------------ SIGKILL at each step


def at_keep(agent: AgentOnNode) -> bool:
    """The copy is under way or there, and nothing else."""
    return any((Path(agent.directory) / "state/held").glob("*.json"))


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
