"""file:quarantine and whoever knows it: what runs from nowhere, what leads elsewhere, what never answers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.conftest import await_that
from tests.real.containers.node import Node, host_programs
from tests.real.containers.on_node import MakeOnNode, make_on_node, rule, told_of
from tests.real.containers.test_acts_files import ACT, BY_NAME, Scene, look, part, pins, scene
from tests.work.conftest import STUCK

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

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
        assert pins(agent) == [], what
    assert agent.active() == []
    assert look(tmp_path / "node") == before
    assert look(scene.evil) is not None
    read_only = pod.container("sleep", "1000", name="fixed", options=("--read-only",))
    record = agent.answer(told_of(read_only, 0, ACT, fd_name="/bin/busybox", evt_num=99))
    assert (record["outcome"], "read-only" in record["reason"]) == ("refused", True)


def test_odd_names(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule(ACT, **BY_NAME))
    for name in ("a\nb\x1b[31m", "x" * 255):
        scene.drop()
        os.rename(scene.evil, scene.root / "tmp" / name)
        record = agent.answer(scene.alert(fd_name=f"/tmp/{name}"))
        assert (record["outcome"], record["details"]["file"]) == ("done", f"/tmp/{name}"), record
        assert name not in scene.names()
        assert agent.undo()[0]["outcome"] == "done"
        assert name in scene.names()


IN_PLACE = STUCK.replace('call("unshare", 0x20000)\n', "")
"""The FUSE mount that never answers, where its container sees it."""


def test_a_file_system_that_never_answers(make_on_node: MakeOnNode, the_node: Node) -> None:
    """No name leads onto it, so nobody waits for it."""
    agent = make_on_node(rule(ACT, **BY_NAME))
    pod = the_node.pod("web-1", "shop")
    victim = pod.container("sleep", "1000", mounts=host_programs(sys.base_prefix), options=("--privileged",))
    scene = Scene(pod, victim, victim)
    scene.drop()
    victim.run("mkdir", "/tmp/stuck")
    victim.exec(os.path.realpath(sys.executable), "-c", IN_PLACE, "/tmp/stuck", "silent")
    mounts = Path(f"/proc/{victim.init_pid}/mounts")
    await_that(lambda: " /tmp/stuck fuse" in mounts.read_text(), "it is mounted")
    record = agent.answer(scene.alert(fd_name="/tmp/stuck/evil"))
    assert (record["outcome"], "another file system" in record["reason"]) == ("refused", True), record
    record = agent.answer(scene.alert(evt_num=2))
    assert record["outcome"] == "done", record
    assert agent.status()["evidence"]["workers"]["abandoned"] == {}
    assert agent.undo()[0]["outcome"] == "done"


def test_an_image_s_program_that_was_deleted(make_on_node: MakeOnNode, scene: Scene) -> None:
    """It is kept. Its mode can't be changed: an overlay has no place to copy up what has no name."""
    agent = make_on_node(rule(ACT))
    pid = scene.victim.exec("sleep", "600")
    content = (scene.root / "bin/busybox").read_bytes()
    scene.victim.run("rm", "/bin/busybox")
    record = agent.answer(scene.alert(pid))
    assert record["details"]["layer"] == "deleted", record
    assert part(agent, record) == content
    assert scene.sibling.run("echo", "well") == "well\n"
    assert (record["outcome"], "it is kept, but its mode can't be changed" in record["reason"]) == ("failed", True)
    await_that(lambda: agent.active() == [] and pins(agent) == [], "nothing is held")
