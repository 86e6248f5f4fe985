"""container:limit on the machine's own v1 cgroups, and on files of v2's form (no v2 controllers are to be had here)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.node.disks import block_devices
from agent.node.host import LinuxHost
from stoop.actions.container import limit
from stoop.errors import ActFailed, TargetGone
from stoop.node import ContainerFacts
from stoop.spec import (
    ActContext,
    Begun,
    Outcome,
    Reversal,
    Verdict,
)
from tests.real.conftest import CGROUP_ROOT, PATIENCE_S, Box, MakeBox, Process, Spawn, await_that, line, say, v1_mount


def nobody(facts: object) -> str:
    """Nothing is protected here."""
    return ""


CONTROLLERS = ("cpu", "pids", "blkio")

needs_v1 = pytest.mark.skipif(
    any(v1_mount(controller) is None for controller in CONTROLLERS),
    reason="this machine has no v1 hierarchies of cpu, pids and blkio",
)


def context(host: LinuxHost, container: ContainerFacts, **parameters: Any) -> ActContext:
    params = msgspec.convert(parameters, limit.LimitParameters)
    return ActContext(
        host=host, params=params, process=None, container=container, protects=nobody, protects_container=nobody
    )


async def limited(host: LinuxHost, container: ContainerFacts, **parameters: Any) -> tuple[Outcome, Reversal]:
    """Plan, begin, verify."""
    ctx = context(host, container, **parameters)
    reversal = limit.plan(ctx)
    assert isinstance(reversal, Reversal), reversal
    ctx = msgspec.structs.replace(ctx, reversal=reversal)
    begun = limit.begin(ctx)
    assert isinstance(begun, Begun), begun
    return await limit.verify(ctx, begun), reversal


@pytest.fixture
def v1_box(make_box: MakeBox, spawn: Spawn) -> Iterator[tuple[Box, Process]]:
    """A container with a directory in each of the three hierarchies, as runtimes make them, and a shell in it."""
    box = make_box("v1")
    assert box.freezer is not None
    below = box.freezer.relative_to(CGROUP_ROOT / "freezer")
    directories = [CGROUP_ROOT / controller / below for controller in CONTROLLERS]
    for directory in directories:
        directory.mkdir(parents=True)
    shell = spawn("sh", preexec_fn=box.enter, stderr=subprocess.STDOUT)
    for directory in directories:
        (directory / "cgroup.procs").write_text(str(shell.pid))
    yield box, shell
    shell.kill()
    shell.wait()
    for directory in directories:
        await_that(lambda found=directory: not (found / "cgroup.procs").read_text(), "it is empty")  # type: ignore[misc]
        for part in (directory, *list(directory.parents)[: len(below.parts) - 1]):
            part.rmdir()


@pytest.mark.root
@needs_v1
class TestV1:
    async def test_processes_are_limited_and_the_old_limit_comes_back(
        self, host: LinuxHost, v1_box: tuple[Box, Process]
    ) -> None:
        box, _ = v1_box
        container = host.find_container(box.container_id)
        outcome, reversal = await limited(host, container, pids=1, cpu="10%", io="1MiB")
        assert (outcome.verdict, outcome.details["limits"]["pids.max"]) == (Verdict.DONE, ["max", "1"])
        assert outcome.details["limits"]["cpu.cfs_quota_us"] == ["-1", "10000"]
        device = block_devices()[0]
        assert outcome.details["limits"][f"blkio.throttle.read_bps_device {device}"] == ["0", "1048576"]
        assert await limit.drift(host, reversal.state) == ""
        undone = await limit.undo(host, reversal.state)
        assert (undone.verdict, "pids.max max" in undone.reason) == (Verdict.DONE, True)
        assert host.read_control(container, "pids", "pids.max").strip() == "max"
        assert host.read_control(container, "cpu", "cpu.cfs_quota_us").strip() == "-1"
        assert host.read_control(container, "blkio", "blkio.throttle.read_bps_device") == ""

    async def test_a_shell_can_start_nothing_more(self, host: LinuxHost, v1_box: tuple[Box, Process]) -> None:
        box, shell = v1_box
        _, reversal = await limited(host, host.find_container(box.container_id), pids=1)
        say(shell, "sleep 1000")
        assert "fork" in line(shell)
        assert shell.wait(PATIENCE_S) != 0
        await limit.undo(host, reversal.state)

    async def test_what_somebody_else_set_meanwhile_is_left(self, host: LinuxHost, v1_box: tuple[Box, Process]) -> None:
        box, _ = v1_box
        container = host.find_container(box.container_id)
        _, reversal = await limited(host, container, pids=10, cpu="10%")
        host.write_control(container, "pids", "pids.max", "20")
        assert await limit.drift(host, reversal.state) == "pids.max is 20, not 10"
        undone = await limit.undo(host, reversal.state)
        assert (undone.verdict, "pids.max is 20" in undone.reason) == (Verdict.DONE, True)
        assert host.read_control(container, "pids", "pids.max").strip() == "20"
        again = await limit.undo(host, reversal.state)
        assert (again.verdict, "left" in again.reason) == (Verdict.SKIPPED, True)

    async def test_what_is_tighter_already_stays(self, host: LinuxHost, v1_box: tuple[Box, Process]) -> None:
        box, _ = v1_box
        container = host.find_container(box.container_id)
        host.write_control(container, "pids", "pids.max", "5")
        answer = limit.plan(context(host, container, pids=10))
        assert isinstance(answer, Outcome)
        assert (answer.verdict, answer.reason) == (Verdict.SKIPPED, "it is limited more already: pids.max 5")
        outcome, _ = await limited(host, container, pids=10, cpu="50%")
        assert outcome.details["tighter"] == ["pids.max 5"]

    def test_memory_is_refused(self, host: LinuxHost, v1_box: tuple[Box, Process]) -> None:
        box, _ = v1_box
        answer = limit.plan(context(host, host.find_container(box.container_id), memory="64MiB", pids=5))
        assert answer == Outcome(Verdict.REFUSED, limit.MEMORY_NEEDS_V2)
        assert host.read_control(host.find_container(box.container_id), "pids", "pids.max").strip() == "max"


class TestV2Form:
    """Files of v2's form: the kernel's own answers are missing here, so what it refuses is not seen."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """A mount of v2 with one container, whose only process is this one."""
        (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
        directory = tmp_path / "kubepods.slice" / f"cri-containerd-{'a' * 64}.scope"
        directory.mkdir(parents=True)
        for name, content in {
            "cgroup.procs": f"{os.getpid()}\n",
            "cgroup.events": "populated 1\nfrozen 0\n",
            "cpu.max": "max 100000\n",
            "pids.max": "max\n",
            "memory.high": "max\n",
            "io.max": "",
        }.items():
            (directory / name).write_text(content)
        return directory

    @pytest.fixture
    def there(self, tree: Path) -> Iterator[LinuxHost]:
        """A node with this tree."""
        made = LinuxHost(cgroup_root=str(tree.parents[1]))
        yield made
        made.close()

    async def test_each_limit_has_its_file_and_comes_back(self, there: LinuxHost, tree: Path) -> None:
        container = there.find_container("a" * 64)
        outcome, reversal = await limited(there, container, cpu="0.25", pids=32, memory="1MiB")
        assert outcome.verdict is Verdict.DONE
        written = [(tree / name).read_text() for name in ("cpu.max", "pids.max", "memory.high")]
        assert written == ["25000 100000", "32", "1048576"]
        (tree / "memory.high").write_text("2097152\n")
        undone = await limit.undo(there, reversal.state)
        assert "memory.high is 2097152" in undone.reason
        assert [(tree / name).read_text().split()[0] for name in ("cpu.max", "pids.max")] == ["max", "max"]

    async def test_a_file_that_is_gone_amid_it_fails_the_act(self, there: LinuxHost, tree: Path) -> None:
        container = there.find_container("a" * 64)
        ctx = context(there, container, cpu="0.25", pids=32)
        reversal = limit.plan(ctx)
        assert isinstance(reversal, Reversal)
        (tree / "pids.max").unlink()
        with pytest.raises(ActFailed, match=r"pids\.max"):
            limit.begin(msgspec.structs.replace(ctx, reversal=reversal))

    async def test_a_container_that_is_gone_has_nothing_to_come_back_to(self, there: LinuxHost, tree: Path) -> None:
        _, reversal = await limited(there, there.find_container("a" * 64), cpu="0.25")
        shutil.rmtree(tree)
        with pytest.raises(TargetGone):
            await limit.undo(there, reversal.state)
