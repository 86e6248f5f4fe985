"""Containers that fight back, against the whole agent: fork storms, other names, names that break lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from stoop.actions.process.group import MAX_GROUP
from tests.real.conftest import alive, await_that
from tests.real.containers import cgroups
from tests.real.containers.node import Node, host_programs
from tests.real.containers.on_node import MakeOnNode, Scene, acts_of, look, make_on_node, rule, scene, told_of
from tests.real.containers.pod import Container

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

MANY = 1000
"""Twice what a group holds, and what two processors can take beside the rest: with 2,000 one test failed in one run."""

STORM = "while (1) { defined(fork) or select(undef, undef, undef, 0.01) }"
"""Each forks for ever, and rests only while the container is full."""


Storm = Callable[..., tuple[Container, int]]


@pytest.fixture
def storm(the_node: Node) -> Iterator[Storm]:
    """Start a container in which so many processes fork as fast as they can: it, and the pid of their ancestor.

    Bounded by the pids controller, and by the test's end; the container's first process is none of them.
    """
    started: list[Container] = []

    def start(many: int = MANY) -> tuple[Container, int]:
        victim = the_node.pod("web-1", "shop").container("sleep", "1000", mounts=[*host_programs("/etc/alternatives")])
        limits = [path / "pids.max" for path in victim.directories if (path / "pids.max").exists()]
        assert limits, "no pids controller is mounted here: a fork storm could not be bounded"
        limits[0].write_text(str(many))
        started.append(victim)
        root = victim.exec("/usr/bin/perl", "-e", STORM)
        current = limits[0].with_name("pids.current")
        await_that(lambda: int(current.read_text()) >= many, f"{many} processes")
        return victim, root

    yield start
    for victim in started:
        cgroups.thaw(victim.directories)
        if victim.v2.exists():
            (victim.v2 / "cgroup.kill").write_text("1")
            await_that(partial(is_empty, victim), "the storm is over")


def is_empty(container: Container) -> bool:
    """Whether nobody is left in it."""
    return not container.v2.exists() or not container.pids()


@pytest.mark.parametrize(("actionner", "scope"), [("container:kill", ""), ("process:kill", "container")])
def test_a_fork_storm_is_ended_by_a_kill_of_its_container(
    actionner: str, scope: str, make_on_node: MakeOnNode, the_node: Node, storm: Storm
) -> None:
    beside = the_node.pod("web-2", "shop").container("sleep", "1000")
    agent = make_on_node(rule(actionner, scope=scope) if scope else rule(actionner))
    victim, root = storm()
    record = agent.answer(told_of(victim, root, actionner))
    assert record["outcome"] == "done", record
    await_that(partial(is_empty, victim), "nobody is left")
    assert alive(beside.init_pid)
    assert agent.status()["ready"]


def test_a_fork_storm_is_frozen_and_killed(make_on_node: MakeOnNode, storm: Storm) -> None:
    agent = make_on_node(rule("container:freeze") + rule("container:kill"))
    victim, root = storm()
    assert agent.answer(told_of(victim, root, "container:freeze"))["outcome"] == "done"
    members = victim.pids()
    assert len(members) >= MANY - 1
    assert victim.pids() == members
    assert agent.answer(told_of(victim, root, "container:kill"))["outcome"] == "done"
    await_that(partial(is_empty, victim), "nobody is left")


@pytest.mark.parametrize("many", [MAX_GROUP - 10, MANY])
def test_a_fork_storm_is_ended_by_a_kill_of_its_tree(
    many: int, make_on_node: MakeOnNode, the_node: Node, storm: Storm
) -> None:
    beside = the_node.pod("web-2", "shop").container("sleep", "1000")
    agent = make_on_node(rule("process:kill", scope="tree"))
    victim, root = storm(many)
    bystander = victim.init_pid
    record = agent.answer(told_of(victim, root, "process:kill"))
    assert record["outcome"] == "done", record["reason"]
    assert "unsettled" not in record["details"]
    await_that(lambda: victim.pids() == {bystander}, "only its first process is left")
    assert record["details"]["count"] >= many - 10
    assert not any(look(victim)[1:3])
    assert alive(beside.init_pid)
    assert agent.status()["ready"]


def test_a_fork_storm_with_other_signals_is_said_to_be_too_large(make_on_node: MakeOnNode, storm: Storm) -> None:
    agent = make_on_node(rule("process:kill", scope="tree", signal="TERM") + rule("container:kill"))
    victim, root = storm(MAX_GROUP + 40)
    record = agent.answer(told_of(victim, root, "process:kill"))
    assert record["outcome"] == "failed"
    assert f"more than {MAX_GROUP} processes" in record["details"]["incomplete"]
    assert agent.answer(told_of(victim, victim.init_pid, "container:kill"))["outcome"] == "done"
    await_that(partial(is_empty, victim), "nobody is left")


def stands(container: Container) -> bool:
    """Whether it is frozen; nothing else is looked at, for that takes long beside a storm."""
    files = [path / name for path in container.directories for name in ("cgroup.freeze", "freezer.state")]
    return any(file.read_text().strip() not in ("0", "THAWED") for file in files if file.exists())


def test_killed_amid_a_storm_the_next_agent_lets_the_container_go_on(make_on_node: MakeOnNode, storm: Storm) -> None:
    agent = make_on_node(rule("process:kill", scope="tree"))
    victim, root = storm(MANY)
    agent.send(told_of(victim, root, "process:kill"))
    await_that(lambda: stands(victim), "it stands still")
    agent.kill()
    assert stands(victim), "it was over before the agent was killed"
    assert root in victim.pids()
    agent.start()
    (row,) = acts_of(agent)
    assert (row["outcome"], row["details"]["recovered"]) == ("failed", True)
    assert not stands(victim)
    record = agent.answer(told_of(victim, root, "process:kill"))
    assert record["outcome"] == "done", record
    await_that(lambda: victim.pids() == {victim.init_pid}, "only its first process is left")


# ---------------------------------------------------------------- other names

RENAMED = "echo begun >/tmp/begun; read go </tmp/go; printf evil >/proc/self/comm; exec /tmp/x/sleep 3000"


def test_one_that_renames_itself_and_execs_after_the_alert_is_the_same(
    make_on_node: MakeOnNode, the_node: Node
) -> None:
    victim = the_node.pod("web-1", "shop").container("sleep", "1000")
    victim.run(
        "sh", "-ec", "ln -s /bin/busybox /tmp/sleep; mkdir /tmp/x; ln -s /tmp/sleep /tmp/x/sleep; mkfifo /tmp/go"
    )
    pid = victim.exec("sh", "-c", RENAMED.replace("/tmp/other", "/tmp/x/sleep"))
    await_that(lambda: (victim.upper / "tmp/begun").exists(), "it has begun")
    agent = make_on_node(rule("process:kill"))
    said = told_of(victim, pid, "process:kill")
    victim.run("sh", "-c", "echo go >/tmp/go")
    await_that(lambda: b"3000" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), "it runs another program")
    record = agent.answer(said)
    assert record["outcome"] == "done", record
    await_that(lambda: not alive(pid), "it is dead")
    assert alive(victim.init_pid)


NASTY = "busybox\nb\x1b[31m'\"$(id)"
"""A file name with a line break, a colour of the terminal, quotes and a command."""


def test_names_with_line_breaks_are_data(make_on_node: MakeOnNode, the_node: Node) -> None:
    victim = the_node.pod("web-1", "shop").container("sleep", "1000")
    place = f"/tmp/{NASTY}"
    victim.run("cp", "/bin/busybox", place)
    pid = victim.exec(place, "sleep", "3000")
    assert "\n" in Path(f"/proc/{pid}/comm").read_text()[:-1]
    agent = make_on_node(rule("process:suspend") + rule("process:kill"))
    claims = {"proc_exepath": place, "proc_cmdline": f"{place} sleep 3000", "fd_name": NASTY}
    suspended = agent.answer(told_of(victim, pid, "process:suspend", **claims))
    assert suspended["outcome"] == "done", suspended
    assert suspended["target"]["exe"].endswith(NASTY), suspended["target"]
    for command in (("active",), ("history",), ("status",)):
        said = agent.stoop(*command).stdout
        assert "\x1b[31m" not in said
        assert not any(line.startswith("b") for line in said.splitlines())
    lines = agent.said().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert agent.answer(told_of(victim, pid, "process:kill", **claims))["outcome"] == "done"
    await_that(lambda: not alive(pid), "it is dead")


def test_a_storm_of_alerts_about_one_container_kills_no_other(make_on_node: MakeOnNode, scene: Scene) -> None:
    agent = make_on_node(rule("container:kill"))
    agent.send(*[told_of(scene.victim, rule="container:kill") for _ in range(50)])
    await_that(lambda: len(acts_of(agent)) == 50, f"50 records; log: {agent.said()[-2000:]}")
    outcomes = [row["outcome"] for row in acts_of(agent)]
    # Alerts that came while the first was acted on are told before it is: it has its outcome when the kill is proven.
    assert outcomes.count("done") >= 1
    assert set(outcomes) <= {"done", "skipped", "refused"}
    assert alive(scene.sibling.init_pid)
    assert alive(scene.stranger.init_pid)
