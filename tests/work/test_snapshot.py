"""Snapshots of real processes and containers: what is in them, and what a hostile target can't make them do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.jobs import Box, Whom
from agent.node.host import LinuxHost
from agent.work.memory import KINDS
from agent.work.process import MAX_FDS, MAX_THREADS
from tests.real.conftest import MakeBox, Spawn, line
from tests.work.conftest import Bench, whom
from tests.work.snapshots import DEADLINE_S, content, executable_in, missing, taken, told


async def test_one_process(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    environment = {"PATH": "/bin", "DB_PASSWORD": "hunter2", "URL": "db://u:hunter2@h/", "BAD": "\udcff"}
    target = spawn("/bin/sleep", "600", env=environment, cwd=tmp_path)
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host), target={"pid": target.pid}))
    found = told(parts, target.pid)
    assert found["cmdline"] == ["/bin/sleep", "600"]
    assert sorted(found["environment"]) == ["BAD=\\xff", "DB_PASSWORD=*** (7 bytes)", "PATH=/bin", "URL=db://u:***@h/"]
    assert b"hunter2" not in b"".join(parts.values())
    assert found["cwd"] == str(tmp_path)
    assert f"Pid:\t{target.pid}" in found["status"]
    assert "[stack]\n" in found["maps"]
    assert found["namespaces"]["net"] == os.readlink(f"/proc/{target.pid}/ns/net")
    assert found["fds"]["0"].startswith("pipe:[")
    assert any(line.startswith("Max open files") for line in found["limits"])
    assert found["cgroup"] == content(f"/proc/{target.pid}/cgroup").decode().splitlines()
    assert "not_read" not in found
    assert b" / / " in parts["mounts.txt"]
    assert json.loads(parts["cgroups.json"])
    (executable,) = (part for part in manifest.parts if part.name.startswith("executables/"))
    assert parts[executable.name] == content(f"/proc/{target.pid}/exe")
    assert executable.about["pids"] == [target.pid]
    assert manifest.target == {"pid": target.pid}
    assert target.poll() is None


THREADS = """
import threading
for number in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


async def test_threads(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn(sys.executable, "-c", THREADS)
    assert line(target) == "ready"
    _, parts = await taken(bench, bench.snapshot(whom(target.pid, host)))
    threads = told(parts, target.pid)["threads"]
    assert len(threads) == 4
    assert {thread["tid"] for thread in threads} == set(map(int, os.listdir(f"/proc/{target.pid}/task")))
    assert {thread["state"] for thread in threads} <= {"S", "R"}


async def test_a_number_given_anew_is_never_read(
    bench: Bench, spawn: Spawn, host: LinuxHost, respawn: Callable[[int], None]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it chooses a pid")
    first = spawn("sleep", "600")
    meant = whom(first.pid, host)
    first.kill()
    first.wait()
    respawn(first.pid)
    other = spawn("sleep", "600")
    manifest, parts = await taken(bench, bench.snapshot(meant, whom(other.pid, host)))
    assert missing(manifest)[f"process {meant.pid}"] == f"pid {meant.pid} was given anew"
    assert [name for name in parts if name.startswith("processes/")] == [f"processes/{other.pid}.json"]


async def test_who_has_gone_is_said(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    first = spawn("sleep", "600")
    meant = whom(first.pid, host)
    fd = os.pidfd_open(first.pid)
    first.kill()
    first.wait()
    try:
        result = await bench.workers.run(bench.snapshot(meant), DEADLINE_S, fds=[fd])
    finally:
        os.close(fd)
    assert result.ok
    manifest, parts = bench.only()
    assert parts == {}
    assert missing(manifest)["the target"] == "none of its processes is left"


async def test_a_pid_that_dies_while_it_is_read(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    """Many that end at any moment: each is there or told, and the bundle is whole."""
    targets = [spawn("sleep", "600") for _ in range(20)]
    whoms = [whom(target.pid, host) for target in targets]

    def kill(_: str) -> None:
        for target in targets:
            target.kill()

    for target in targets[::2]:
        target.kill()
    result = await bench.workers.run(bench.snapshot(*whoms), DEADLINE_S, progress=kill)
    assert result.ok
    manifest, parts = bench.only()
    for each in whoms:
        assert f"processes/{each.pid}.json" in parts or f"process {each.pid}" in missing(manifest)
    assert executable_in(parts)  # held by descriptor, though all have ended


@pytest.mark.root
async def test_a_container_by_its_members(bench: Bench, make_box: MakeBox, spawn: Spawn, host: LinuxHost) -> None:
    box, other = make_box("v2"), make_box("v2")
    inside = [spawn("sleep", "600") for _ in range(3)]
    neighbour = spawn("sleep", "600")
    for target in inside:
        box.add(target.pid)
    other.add(neighbour.pid)
    facts = host.find_container(box.container_id)
    job = bench.snapshot(container=Box(box.container_id, facts.cgroup_v2, facts.cgroup_freezer, inside[1].pid))
    manifest, parts = await taken(bench, job)
    found = sorted(int(name[10:-5]) for name in parts if name.startswith("processes/"))
    assert found == sorted(target.pid for target in inside)
    values = json.loads(parts["cgroups.json"])
    assert any(directory.endswith(box.container_id) for directory in values)
    assert manifest.notes["processes"] == 3


@pytest.mark.root
async def test_a_directory_that_is_another_containers(bench: Bench, make_box: MakeBox, spawn: Spawn) -> None:
    """Its members are proven by their own cgroups."""
    box, other = make_box("v2"), make_box("v2")
    neighbour = spawn("sleep", "600")
    other.add(neighbour.pid)
    job = bench.snapshot(container=Box(box.container_id, str(other.v2)))
    manifest, parts = await taken(bench, job)
    assert parts == {}
    assert missing(manifest)["the target"] == "none of its processes is left"


async def test_a_process_that_does_not_exist(bench: Bench) -> None:
    result = await bench.workers.run(bench.snapshot(Whom(2**22, 1)), DEADLINE_S)
    assert result.ok
    manifest, _ = bench.only()
    assert "the target" in missing(manifest)


@pytest.mark.root
async def test_a_process_that_hides_its_arguments_behind_fuse(
    bench: Bench, host: LinuxHost, behind_fuse: Callable[[str], int]
) -> None:
    """Of a command line the kernel reads only what is no file's (FOLL_ANON), of memory we read only what is there."""
    hiding = whom(behind_fuse("file"), host)
    result = await bench.workers.run(bench.snapshot(hiding), DEADLINE_S)
    assert result.ok
    assert "hung" not in result.details
    _, parts = bench.only()
    found = told(parts, hiding.pid)
    assert found["cmdline"][1] == "-c"
    assert "stuck/file" in found["maps"]
    result = await bench.workers.run(bench.memory(hiding, regions=tuple(KINDS)), DEADLINE_S)
    assert result.ok
    assert "hung" not in result.details
    _, parts = bench.kept()[-1]
    index = json.loads(parts[f"memory/{hiding.pid}.json"])
    assert any(region["path"] == "[stack]" for region in index)
    assert not any("stuck" in region["path"] for region in index)


# Opens 5,000 descriptors and starts 600 threads.
MANY = """
import os, resource, threading
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 6000), hard))
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(5000)]
threading.stack_size(64 * 1024)
end = threading.Event()
for _ in range(600):
    threading.Thread(target=end.wait, daemon=True).start()
print("ready", flush=True)
end.wait()
"""


async def test_more_descriptors_and_threads_than_are_told(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn(sys.executable, "-c", MANY)
    assert line(target) == "ready"
    _, parts = await taken(bench, bench.snapshot(whom(target.pid, host)))
    found = told(parts, target.pid)
    assert len(found["fds"]) == MAX_FDS
    assert len(found["threads"]) == MAX_THREADS
    assert found["not_read"] == {
        "fd": f"more than {MAX_FDS} descriptors: the rest is not told",
        "task": f"more than {MAX_THREADS} threads: the rest is not told",
    }
