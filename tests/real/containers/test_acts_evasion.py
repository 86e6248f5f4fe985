"""Targets that go elsewhere, hide behind files that are none, or let whoever looks at them hang."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stoop.evidence.store import Store
from tests.e2e.test_evidence import bundles
from tests.real.conftest import alive, await_that, state
from tests.real.containers.node import Node, host_programs
from tests.real.containers.on_node import AgentOnNode, MakeOnNode, Scene, look, make_on_node, rule, scene, told_of
from tests.real.containers.pod import Container
from tests.work.conftest import STUCK

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

# ---------------------------------------------------------------- elsewhere

WAYS: dict[str, tuple[str, ...]] = {
    "chroot": ("chroot", "/tmp/new", "/bin/sleep", "3000"),
    "namespaces": ("unshare", "--net", "--uts", "--ipc", "sleep", "3000"),
    "a cgroup below its own": ("sleep", "3000"),
}


def gone(container: Container, way: str) -> int:
    """A process of it that went elsewhere."""
    container.run("sh", "-ec", "mkdir -p /tmp/new/bin; cp /bin/busybox /tmp/new/bin/sleep")
    pid = container.exec(*WAYS[way])
    await_that(lambda: b"3000" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2], "it has gone")
    if way == "a cgroup below its own":
        for directory in container.directories:
            if directory.name == container.id and (directory / "cgroup.procs").exists():
                inner = directory / "inner"
                inner.mkdir()
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if (inner / file).exists():
                        (inner / file).write_text((directory / file).read_text())
                (inner / "cgroup.procs").write_text(str(pid))
    return pid


@pytest.mark.parametrize("way", WAYS)
def test_one_that_went_elsewhere_is_reached_by_each_act(way: str, make_on_node: MakeOnNode, the_node: Node) -> None:
    stranger = the_node.pod("web-2", "shop").container("sleep", "1000", name="app")
    pod = the_node.pod("web-1", "shop")
    victim = pod.container("sleep", "1000", name="app", capabilities=["CAP_SYS_ADMIN"])
    pid = gone(victim, way)
    acts = ("evidence:snapshot", "network:isolate", "process:suspend", "container:freeze", "process:kill")
    agent = make_on_node("".join(rule(act) for act in acts))
    beside = look(stranger)

    def act(actionner: str) -> None:
        record = agent.answer(told_of(victim, pid, actionner))
        assert (record["outcome"], record["target"]["container_id"]) == ("done", victim.id), record

    act("evidence:snapshot")
    act("network:isolate")
    assert look(victim).pod_rules
    assert [each["outcome"] for each in agent.undo()] == ["done"]
    act("process:suspend")
    assert state(pid) == "T"
    assert [each["outcome"] for each in agent.undo()] == ["done"]
    assert state(pid) == "S"
    act("container:freeze")
    assert look(victim, pid).frozen
    assert [each["outcome"] for each in agent.undo()] == ["done"]
    act("process:kill")
    await_that(lambda: not alive(pid), "it is dead")
    assert alive(victim.init_pid)
    assert look(stranger) == beside


# ---------------------------------------------------------------- files that are none

SECRET = "not-for-any-bundle-8c1f"

HOLDER = r"""
use Fcntl;
symlink("/secret", "/tmp/link");
system("mkfifo", "/tmp/fifo");
my $long = "n" x 255;
my $lines = "a\nb\e[31m";
for my $name ("/tmp/$long", "/tmp/$lines") { open(my $made, ">", $name) or die; close($made) }
sysopen(my $fifo, "/tmp/fifo", O_RDWR) or die;
open(my $zero, "<", "/dev/zero") or die;
open(my $sparse, "+>", "/tmp/sparse") or die;
truncate($sparse, 100 * 1024 ** 3) or die;
open(my $bound, "<", "/tmp/link") or die;
open(my $begun, ">", "/tmp/begun") or die;
sleep(3000);
"""
"""Has open: a FIFO, endless zeros, a sparse file of 100 GiB, a file of the host through a symlink and a bind mount."""


def test_fifo_zeros_a_sparse_file_and_a_host_s_file_end_no_capture_and_are_in_none(
    make_on_node: MakeOnNode, the_node: Node, tmp_path: Path
) -> None:
    host_file = tmp_path / "secret"
    host_file.write_text(SECRET)
    victim = the_node.pod("web-1", "shop").container(
        *("sleep", "1000"),
        name="app",
        mounts=[*host_programs("/etc/alternatives"), f"type=bind,src={host_file},dst=/secret,options=rbind:ro"],
    )
    pid = victim.exec("/usr/bin/perl", "-e", HOLDER)
    await_that(lambda: (victim.upper / "tmp/begun").exists(), "it has them open")
    kinds = ("evidence:snapshot", "evidence:memory")
    agent = make_on_node(rule(kinds[0]) + rule(kinds[1], max_bytes="16MiB") + rule("container:kill"))
    for kind in kinds:
        record = agent.answer(told_of(victim, pid, kind))
        assert record["outcome"] == "done", record
        assert record["details"]["bytes"] < 32 * 2**20
        assert "hung" not in record["details"]
    contents = b"".join(everything(agent, bundle) for bundle in bundles(agent))
    assert b"/tmp/sparse" in contents
    assert SECRET.encode() not in contents
    assert host_file.read_text() == SECRET
    assert agent.answer(told_of(victim, pid, "container:kill"))["outcome"] == "done"
    await_that(lambda: not alive(pid), "it is dead")


def everything(agent: AgentOnNode, bundle: str) -> bytes:
    """All parts of a bundle, whole."""
    found: list[bytes] = []
    with Store(str(agent.state_dir / "evidence")) as store, store.reading(bundle) as reader:
        assert reader.check(lambda part, data: found.append(bytes(data))) == []
    return b"".join(found)


# ---------------------------------------------------------------- what never answers


@pytest.fixture
def no_logs(the_node: Node) -> Iterator[Callable[[], Callable[[], None]]]:
    """Mount what never answers (FUSE) where the node has the logs of its containers; what it returns ends that."""
    here = STUCK.replace('call("unshare", 0x20000)\n', "")
    here = here.replace('call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)\n', "")
    ends: list[Callable[[], None]] = []

    def begin() -> Callable[[], None]:
        server = the_node.start(sys.executable, "-c", here, "/var/log/pods", "silent", name="stuck")
        said = the_node.directory / "stuck.log"
        await_that(lambda: "ready" in said.read_text(), "it is mounted")

        def end() -> None:
            if ends:
                ends.clear()
                the_node.run("umount", "--lazy", "/var/log/pods")
                server.kill()
                server.wait(10)

        ends.append(end)
        return end

    yield begin
    for end in list(ends):
        end()


def test_evidence_that_hangs_on_fuse_holds_up_no_kill_and_costs_a_worker_each(
    make_on_node: MakeOnNode, scene: Scene, no_logs: Callable[[], Callable[[], None]]
) -> None:
    agent = make_on_node(rule("container:kill"), evidence_first=True, evidence_deadline="500ms")
    await_that(lambda: bool(agent.status()["evidence"]["workers"]["pid"]), "its nursery runs")
    end = no_logs()
    for number, victim in enumerate((scene.victim, scene.stranger), 1):
        record = agent.answer(told_of(victim, rule="container:kill"))
        assert record["outcome"] == "done", record
        evidence = record["details"]["evidence"]
        assert (evidence["taken"], evidence["late"]) == (False, True), evidence
        assert 500 <= evidence["waited_ms"] < 3000
        await_that(lambda victim=victim: not alive(victim.init_pid), "it is dead")  # type: ignore[misc]
        await_that(lambda number=number: len(bundles(agent)) == number, "a bundle of what could be read")  # type: ignore[misc]
    assert alive(scene.sibling.init_pid)
    assert not look(scene.sibling).frozen
    await_that(lambda: sum(agent.status()["evidence"]["workers"]["abandoned"].values()) == 2, "both are given up")
    assert agent.status()["ready"]
    end()
    await_that(lambda: agent.status()["evidence"]["workers"]["abandoned"] == {}, "they have ended")
    assert agent.stoop("evidence", "verify").returncode == 0
