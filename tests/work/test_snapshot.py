"""Snapshots of real processes and containers: what is in them, and what a hostile target can't make them do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.jobs import Box, LogTail, Whom
from agent.node.host import LinuxHost
from agent.work.memory import KINDS
from agent.work.process import MAX_FDS, MAX_THREADS
from tests.real.conftest import MakeBox, Spawn, await_that, line
from tests.work.conftest import Bench, whom

DEADLINE_S = 30.0


async def taken(bench: Bench, job: Any) -> tuple[Any, dict[str, bytes]]:
    """Take it; the manifest and the parts."""
    result = await bench.workers.run(job, DEADLINE_S)
    assert result.ok, result
    return bench.only()


def told(parts: dict[str, bytes], pid: int) -> dict[str, Any]:
    """What a snapshot tells of one process."""
    found: dict[str, Any] = json.loads(parts[f"processes/{pid}.json"])
    return found


def executable_in(parts: dict[str, bytes]) -> bytes:
    """The one executable of a bundle."""
    (found,) = (content for name, content in parts.items() if name.startswith("executables/"))
    return found


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def missing(manifest: Any) -> dict[str, str]:
    return {each.what: each.why for each in manifest.missing}


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


async def test_a_deleted_executable(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    program = tmp_path / "evil\n name"
    shutil.copy("/bin/sleep", program)
    target = spawn(str(program), "600")
    await_that(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program), "it runs")
    job = bench.snapshot(whom(target.pid, host))
    program.unlink()
    manifest, parts = await taken(bench, job)
    (executable,) = (part for part in manifest.parts if part.name.startswith("executables/"))
    assert executable.about["path"] == f"{program} (deleted)"
    assert parts[executable.name] == content("/bin/sleep")


# Runs a copy of `sleep` from memory, with no file (memfd_create(2)).
MEMFD = """
import os, sys
fd = os.memfd_create("\\x1b[31mevil", 0)
os.write(fd, open("/bin/sleep", "rb").read())
os.execve(fd, ["kworker/0:1", "600"], {})
"""


async def test_an_executable_that_is_no_file(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn(sys.executable, "-c", MEMFD)
    await_that(lambda: "memfd:" in os.readlink(f"/proc/{target.pid}/exe"), "it runs")
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host)))
    (executable,) = (part for part in manifest.parts if part.name.startswith("executables/"))
    assert executable.about["path"] == "/memfd:\x1b[31mevil (deleted)"
    assert parts[executable.name] == content("/bin/sleep")
    assert told(parts, target.pid)["cmdline"] == ["kworker/0:1", "600"]


async def test_executables_are_bounded(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    size = os.stat("/bin/sleep").st_size
    target = spawn("/bin/sleep", "600")
    manifest, parts = await taken(bench, bench.snapshot(whom(target.pid, host), executable_bytes=1000))
    assert executable_in(parts) == content("/bin/sleep")[:1000]
    assert f"1000 of {size} bytes: the snapshot's bound" in missing(manifest).values()


# An executable script's interpreter can't be sparse, but a program may: 100 GiB behind its last byte.
async def test_a_sparse_executable_of_100_gib(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    program = tmp_path / "sparse"
    shutil.copy("/bin/sleep", program)
    os.truncate(program, 100 * 2**30)
    target = spawn(str(program), "600")
    await_that(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program), "it runs")
    _, parts = await taken(bench, bench.snapshot(whom(target.pid, host), executable_bytes=2**20))
    assert len(executable_in(parts)) == 2**20
    assert executable_in(parts).rstrip(b"\0") == content("/bin/sleep").rstrip(b"\0")


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


# A server and its client in two processes, over each protocol; tells the two ports.
TALK = """
import os, socket, sys
path = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
six = socket.create_server(("::1", 0), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(path.encode() + b"\\xff\\n")
unix.listen()
if os.fork() == 0:
    one = socket.create_connection(listener.getsockname())
    two = socket.create_connection(six.getsockname()[:2])
    for each in (listener, six, udp, unix):
        each.close()
    os.write(1, b"%d\\n" % os.getpid())
    sys.stdin.read()
    os._exit(0)
kept = listener.accept(), six.accept()
os.write(1, b"%d %d %d\\n" % (listener.getsockname()[1], six.getsockname()[1], udp.getsockname()[1]))
sys.stdin.read()
"""


async def test_sockets_with_both_ends(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    server = spawn(sys.executable, "-c", TALK, str(tmp_path / "s"))
    lines = [line(server), line(server)]
    client = int(next(each for each in lines if " " not in each))
    four, six, udp = map(int, next(each for each in lines if " " in each).split())
    _, parts = await taken(bench, bench.snapshot(whom(server.pid, host), whom(client, host)))
    ((network),) = json.loads(parts["sockets.json"])
    assert network["network"] == os.readlink(f"/proc/{server.pid}/ns/net")
    found = network["sockets"]

    def of(**wanted: object) -> list[dict[str, Any]]:
        return [each for each in found if all(each.get(key) == value for key, value in wanted.items())]

    (listening,) = of(kind="tcp", state="listen", local=f"127.0.0.1:{four}")
    assert [pid for pid, _ in listening["held_by"]] == [server.pid]
    (accepted,) = of(kind="tcp", state="established", local=f"127.0.0.1:{four}")
    assert [pid for pid, _ in accepted["held_by"]] == [server.pid]
    assert [pid for pid, _ in accepted["peer_held_by"]] == [client]
    (connected,) = of(kind="tcp", state="established", remote=f"127.0.0.1:{four}")
    assert (connected["inode"], connected["peer"]) == (accepted["peer"], accepted["inode"])
    assert len(of(kind="tcp6", state="established", local=f"[::1]:{six}")) == 1
    assert len(of(kind="udp", local=f"127.0.0.1:{udp}")) == 1
    (unix,) = of(kind="unix", state="listen")
    assert unix["path"].startswith(str(tmp_path / "s"))
    assert unix["type"] == "stream"


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


@pytest.mark.parametrize(
    "name", ["link", "up", "fifo", "zero", "two-names", "folder", "../outside", "/etc/hostname", "gone"]
)
async def test_a_log_that_is_something_else(
    bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path, name: str
) -> None:
    """What a pod with a hostPath of its log directory can put there."""
    logs = tmp_path / "logs"
    (logs / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("a secret")
    (logs / "link").symlink_to(tmp_path / "outside")
    (logs / "up").symlink_to("../outside")
    os.mkfifo(logs / "fifo")
    if os.geteuid() == 0:
        os.mknod(logs / "zero", 0o20666, os.makedev(1, 5))
    (logs / "two-names").hardlink_to(tmp_path / "outside")
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(logs), name))
    manifest, parts = await taken(bench, job)
    assert "log.txt" not in parts
    assert "log.txt" in missing(manifest)
    assert b"a secret" not in b"".join(parts.values())


async def test_the_end_of_a_log(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    (tmp_path / "0.log").write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)))
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(tmp_path), "0.log", 1000))
    _, parts = await taken(bench, job)
    assert len(parts["log.txt"]) == 1000
    assert parts["log.txt"].endswith(b"line 99999\n")


async def test_the_newest_of_a_containers_logs(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    logs = tmp_path / "ns_pod_uid" / "main"
    logs.mkdir(parents=True)
    for name in ("2.log", "10.log", "9.log.20261124", "99.log.gz", "x.log"):
        (logs / name).write_text(name)
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(tmp_path), "ns_pod_uid/main/"))
    _, parts = await taken(bench, job)
    assert parts["log.txt"] == b"10.log"


async def test_a_directory_of_logs_that_is_none(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "0.log").write_text("a secret")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "main").symlink_to(outside)
    target = spawn("sleep", "600")
    job = bench.snapshot(whom(target.pid, host), log=LogTail(str(logs), "main/"))
    manifest, parts = await taken(bench, job)
    assert "log.txt" not in parts
    assert "log.txt" in missing(manifest)


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


@pytest.mark.root
async def test_an_executable_in_a_fuse_mount_is_not_opened(
    bench: Bench, host: LinuxHost, behind_fuse: Callable[[str], int]
) -> None:
    pid = behind_fuse("program")
    await_that(lambda: os.readlink(f"/proc/{pid}/exe").endswith("stuck/file"), "it runs")
    manifest, parts = await taken(bench, bench.snapshot(whom(pid, host)))
    path = told(parts, pid)["exe"]
    assert missing(manifest)[path] == "it lies in a FUSE file system, which need not answer"
    assert "hung" not in manifest.notes


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
