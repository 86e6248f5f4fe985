"""What evidence costs: a snapshot of a container beside reading the same files in a loop, and the memory of workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import trio

from agent.jobs import READ, VOLATILE, Box, SnapshotJob
from agent.work.process import LINKS, NAMESPACES
from agent.workers import Workers
from bench.table import Row, ms, percentile
from bench.victims import idle
from stoop.evidence.manifest import Origin

PROCESSES = 50
FDS_EACH = 10
ROUNDS = 30
FILES = ("status", "stat", "cmdline", "environ", "maps", "limits", "cgroup")
TABLES = ("tcp", "tcp6", "udp", "udp6", "unix")
DEADLINE_S = 20.0


@contextlib.contextmanager
def container() -> Iterator[tuple[Box, list[int]]]:
    """A v2 cgroup with 50 processes of 10 descriptors each."""
    mount = next(
        path for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if os.path.exists(f"{path}/cgroup.procs")
    )
    mount = f"{mount}/unified" if os.path.exists(f"{mount}/unified/cgroup.procs") else mount
    identity = uuid.uuid4().hex * 2
    top = Path(mount) / f"stoop-bench-{os.getpid()}"
    directory = top / f"kubepods/pod{uuid.uuid4()}" / identity
    directory.mkdir(parents=True)
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(FDS_EACH - 3)]
    victims = [
        subprocess.Popen(["/bin/sleep", "600"], stdin=subprocess.DEVNULL, pass_fds=extra) for _ in range(PROCESSES)
    ]
    try:
        for victim in victims:
            (directory / "cgroup.procs").write_text(str(victim.pid))
        yield Box(identity, str(directory)), [victim.pid for victim in victims]
    finally:
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.wait()
        for fd in extra:
            os.close(fd)
        for path in (directory, directory.parent, directory.parent.parent, top):
            path.rmdir()


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_all(pids: list[int]) -> None:
    """The floor: the same files of the same processes, read and thrown away."""
    for pid in pids:
        at = f"/proc/{pid}"
        for name in FILES:
            _read(f"{at}/{name}")
        for name in LINKS:
            os.readlink(f"{at}/{name}")
        for name in NAMESPACES:
            os.readlink(f"{at}/ns/{name}")
        for name in os.listdir(f"{at}/fd"):
            os.readlink(f"{at}/fd/{name}")
    for name in TABLES:
        _read(f"/proc/{pids[0]}/net/{name}")
    _read(f"/proc/{pids[0]}/mountinfo")
    _read(f"/proc/{pids[0]}/exe")


def _pss_mib(pid: int) -> float:
    """Its share of the memory in use (proc(5), smaps_rollup), in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


async def _measure(rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each round: the floor, until the target may go on, all was read, it is on disk; PSS in MiB."""
    times: dict[str, list[float]] = {name: [] for name in ("floor", VOLATILE, READ, "kept")}
    workers = Workers()
    with container() as (box, pids), tempfile.TemporaryDirectory() as store:
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.serve)
            for _ in range(rounds):
                begun = time.perf_counter()
                read_all(pids)
                times["floor"].append(time.perf_counter() - begun)
                job = SnapshotJob(
                    key="bench",
                    origin=Origin(),
                    store=f"{store}/evidence",
                    container=box,
                    executable_bytes=2**26,
                    list_upper=False,
                )
                begun = time.perf_counter()
                came: list[tuple[str, float]] = []

                def progress(phase: str, came: list[tuple[str, float]] = came) -> None:
                    came.append((phase, time.perf_counter()))

                result = await workers.run(job, DEADLINE_S, progress=progress)
                times["kept"].append(time.perf_counter() - begun)
                if not result.ok or result.details["parts"] < PROCESSES:
                    raise RuntimeError(f"no snapshot: {result}")
                for phase, at in came:
                    times[phase].append(at - begun)
            idle(0.2)
            pss = _pss_mib(workers.pid)
            nursery.cancel_scope.cancel()
    return times, pss


def snapshot() -> Iterator[Row]:
    """A container of 50 processes with 500 descriptors, and what the nursery of workers keeps in memory."""
    times, pss = trio.run(_measure, ROUNDS)
    floor = percentile(times["floor"], 0.5)
    phases = {name: percentile(values, 0.5) for name, values in times.items()}
    yield Row(
        f"snapshot of {PROCESSES} processes, {PROCESSES * FDS_EACH} fds: may go on, all read, on disk (p50)",
        f"{ms(floor)} (the same files in a loop)",
        f"{ms(phases[VOLATILE])}, {ms(phases[READ])} ({phases[READ] / floor:.2f} ×), {ms(phases['kept'])}",
        "all read ≤ 2 ×",
        phases[READ] <= 2 * floor,
        ROUNDS,
    )
    yield Row("memory of the workers' nursery, idle (PSS)", "-", f"{pss:.1f} MiB", "-", None, 1)
