"""Workers as real processes: killed, stopped, hung in the kernel, too many; and what is left when the reflex goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from agent.jobs import READ, VOLATILE, LogTail, Result, TidyJob
from agent.node.host import LinuxHost
from agent.workers import MAX_ABANDONED_OF_TARGET, MAX_RUNNING, MAX_RUNNING_OF_TARGET, MAX_WAITING
from stoop.evidence.chain import check_chain
from stoop.evidence.store import Store
from tests.real.conftest import PATIENCE_S, Process, Spawn, alive, await_that, line
from tests.work.conftest import ROOT, Bench, await_exit, child_of, whom

Big = Callable[[int], Process]

DEADLINE_S = 30.0
MIB_FOR_A_WHILE = 200
"""Takes some tenths of a second to be read, hashed and compressed."""


async def test_a_job_is_done_and_its_place_free_again(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn("sleep", "600")
    phases: list[str] = []
    result = await bench.workers.run(bench.snapshot(whom(target.pid, host)), DEADLINE_S, progress=phases.append)
    assert result.ok
    assert phases == [VOLATILE, READ]
    manifest, parts = bench.only()
    assert (manifest.bundle, manifest.origin.rule) == (result.details["bundle"], "A rule")
    assert f"processes/{target.pid}.json" in parts
    await bench.idle()
    assert bench.workers.status()["counts"] == {"done": 1}
    assert bench.leftovers() == []


async def test_a_pidfd_comes_along(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    target = spawn("sleep", "600")
    fd = os.pidfd_open(target.pid)
    try:
        assert (await bench.workers.run(bench.snapshot(whom(target.pid, host)), DEADLINE_S, fds=[fd])).ok
        os.fstat(fd)  # it is still ours
    finally:
        os.close(fd)


async def test_a_killed_worker_is_a_result(bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    results: list[Result] = []

    async def run() -> None:
        results.append(await bench.workers.run(bench.memory(target), DEADLINE_S))

    nursery.start_soon(run)
    (worker,) = await bench.running()
    await bench.until(lambda: bool(Path(f"/proc/{worker}/task/{worker}/children").read_text()), "its reader")
    reader = os.pidfd_open(child_of(worker))
    os.kill(worker, signal.SIGKILL)
    await bench.until(lambda: bool(results), "its result")
    assert results[0] == Result(False, "its worker ended without an answer")
    await_exit(reader)
    await bench.idle()
    assert bench.kept() == []
    with Store(bench.directory) as store:
        assert len(store.tidy()) == 1
    assert bench.leftovers() == []
    assert (await bench.workers.run(bench.snapshot(target), DEADLINE_S)).ok


@pytest.mark.parametrize(
    ("signo", "said"), [(signal.SIGKILL, "its reader ended"), (signal.SIGSTOP, "it did not answer")]
)
async def test_a_reader_that_fails_costs_its_step(
    bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery, signo: int, said: str
) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    results: list[Result] = []

    async def run() -> None:
        results.append(await bench.workers.run(bench.memory(target), DEADLINE_S))

    nursery.start_soon(run)
    (worker,) = await bench.running()
    await bench.until(lambda: bool(Path(f"/proc/{worker}/task/{worker}/children").read_text()), "its reader")
    os.kill(child_of(worker), signo)
    await bench.until(lambda: bool(results), "its result")
    assert results[0].ok
    manifest, _ = bench.only()
    assert any(said in missing.why for missing in manifest.missing)
    assert "memory_bytes" in manifest.notes  # another one went on to the end


async def test_a_killed_nursery_ends_its_workers_and_comes_again(
    bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery
) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    results: list[Result] = []

    async def run() -> None:
        results.append(await bench.workers.run(bench.memory(target), DEADLINE_S))

    nursery.start_soon(run)
    (worker,) = await bench.running()
    first, held = bench.workers.pid, os.pidfd_open(worker)
    os.kill(first, signal.SIGKILL)
    await bench.until(lambda: bool(results), "its result")
    assert results[0].reason in ("the nursery of its worker ended", "its worker ended without an answer")
    await_exit(held)
    assert (await bench.workers.run(bench.snapshot(target), DEADLINE_S)).ok
    assert bench.workers.pid != first
    assert bench.workers.status()["restarts"] == 1
    assert bench.warned[0][0] == "the nursery of workers ended, and is started again"
    assert bench.lives[:2] == [first, 0]


async def test_a_stopped_worker_is_killed_at_its_deadline(
    bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery
) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    results: list[tuple[Result, float]] = []

    async def run() -> None:
        begun = trio.current_time()
        results.append((await bench.workers.run(bench.memory(target), 1.0), trio.current_time() - begun))

    nursery.start_soon(run)
    (worker,) = await bench.running()
    held = os.pidfd_open(worker)
    signal.pidfd_send_signal(held, signal.SIGSTOP)
    await bench.until(lambda: bool(results), "its result")
    result, took = results[0]
    assert result == Result(False, "it was not done within 1 s")
    assert took < 1.5
    await trio.to_thread.run_sync(await_exit, held)
    await bench.idle()
    assert bench.workers.status()["counts"]["late"] == 1


async def test_what_was_read_in_time_is_kept(bench: Bench, big: Big, host: LinuxHost) -> None:
    result = await bench.workers.run(bench.memory(whom(big(300).pid, host), read_s=0.15), DEADLINE_S)
    assert result.ok, result
    manifest, _ = bench.only()
    assert any("the deadline came" in missing.why for missing in manifest.missing)


async def test_cancelled_it_is_killed(bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await bench.workers.run(bench.memory(target), DEADLINE_S)

    nursery.start_soon(run)
    (worker,) = await bench.running()
    held = os.pidfd_open(worker)
    scope.cancel()
    await trio.to_thread.run_sync(await_exit, held)
    await bench.idle()
    assert bench.kept() == []


async def test_bounded_of_a_target_and_in_all(bench: Bench, big: Big, host: LinuxHost, nursery: trio.Nursery) -> None:
    target = whom(big(40).pid, host)
    most: dict[str, int] = {}
    results: list[Result] = []

    def look(_: str) -> None:
        keys = [each["target"] for each in bench.workers.status()["running"]]
        most["all"] = max(most.get("all", 0), len(keys))
        most["one"] = max(most.get("one", 0), *(keys.count(key) for key in keys))

    async def run(key: str) -> None:
        results.append(await bench.workers.run(bench.memory(target, key=key), DEADLINE_S, progress=look))

    for number in range(14):
        nursery.start_soon(run, f"target {number % 7}")
    nursery.start_soon(run, "target 0")
    await bench.until(lambda: len(results) == 15, "all results")
    assert all(result.ok for result in results)
    assert most["one"] <= MAX_RUNNING_OF_TARGET
    assert most["all"] <= MAX_RUNNING


async def test_too_many_that_wait_are_refused(
    bench: Bench, spawn: Spawn, host: LinuxHost, nursery: trio.Nursery
) -> None:
    target = whom(spawn("sleep", "600").pid, host)
    results: list[Result] = []

    async def run() -> None:
        results.append(await bench.workers.run(bench.snapshot(target), DEADLINE_S))

    count = MAX_WAITING + MAX_RUNNING_OF_TARGET + 5
    for _ in range(count):
        nursery.start_soon(run)
    await bench.until(lambda: len(results) == count, "all results")
    refused = [result for result in results if not result.ok]
    assert {result.reason for result in refused} == {f"{MAX_WAITING} other jobs wait already"}
    assert len(refused) == 5


async def test_a_job_too_large_to_be_sent_is_a_result(bench: Bench) -> None:
    result = await bench.workers.run(bench.snapshot(target={"text": "x" * 200_000}), DEADLINE_S)
    assert not result.ok
    assert "the job can't be sent" in result.reason


async def test_a_store_that_can_not_be_written_is_a_result(bench: Bench, spawn: Spawn, host: LinuxHost) -> None:
    job = bench.snapshot(whom(spawn("sleep", "600").pid, host), store="/proc/evidence")
    result = await bench.workers.run(job, DEADLINE_S)
    assert not result.ok
    assert result.reason.startswith("/proc/evidence: the evidence store can't be opened")


@pytest.mark.root
async def test_a_fuse_mount_that_never_answers_costs_one_part(
    bench: Bench, spawn: Spawn, host: LinuxHost, stuck: tuple[str, Process]
) -> None:
    """And one process, which is given up and counted, until the mount's server ends."""
    directory, server = stuck
    target = whom(spawn("sleep", "600").pid, host)
    log = LogTail(directory, "0.log")
    result = await bench.workers.run(bench.snapshot(target, log=log), DEADLINE_S)
    assert result.ok, result
    assert result.details["hung"] == ["log"]
    manifest, parts = bench.only()
    assert f"processes/{target.pid}.json" in parts
    assert any(name.startswith("executables/") for name in parts)  # what comes after the step that hung
    assert [missing.why for missing in manifest.missing if missing.what == "log"] == ["it did not answer"]
    await bench.until(lambda: bench.workers.status()["abandoned"] == {"a": 1}, "it is given up")
    assert bench.workers.status()["running"] == []

    other = await bench.workers.run(bench.snapshot(target, key="b"), DEADLINE_S)
    assert other.ok

    for number in range(1, MAX_ABANDONED_OF_TARGET):
        assert (await bench.workers.run(bench.snapshot(target, log=log), DEADLINE_S)).ok
        await bench.until(lambda: bench.workers.status()["abandoned"] == {"a": number + 1}, "it is given up")  # noqa: B023
    refused = await bench.workers.run(bench.snapshot(target), DEADLINE_S)
    assert "it is not looked into again" in refused.reason
    assert (await bench.workers.run(bench.snapshot(target, key="b"), DEADLINE_S)).ok

    server.kill()
    await bench.until(lambda: bench.workers.status()["abandoned"] == {}, "they have ended")
    assert (await bench.workers.run(bench.snapshot(target), DEADLINE_S)).ok


# A reflex with one long job. It tells the pids of the nursery and the worker.
REFLEX = """
import sys, trio
from agent.jobs import MemoryJob, Whom
from agent.workers import Workers
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Limits
async def main():
    workers = Workers()
    pid, birth, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    job = MemoryJob(key="a", origin=Origin(), store=store, limits=Limits(min_free_bytes=0),
                    processes=(Whom(pid, birth),), regions=("anonymous",), bytes=2**30)
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.serve)
        nursery.start_soon(workers.run, job, 60.0)
        while not any(each["pid"] for each in workers.status()["running"]):
            await trio.sleep(0.001)
        print(workers.pid, workers.status()["running"][0]["pid"], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_killed_reflex_leaves_nobody(big: Big, host: LinuxHost, spawn: Spawn, tmp_path: Path) -> None:
    target = whom(big(MIB_FOR_A_WHILE).pid, host)
    directory = str(tmp_path / "evidence")
    words = (str(target.pid), str(target.birth), directory)
    reflex = spawn(sys.executable, "-c", REFLEX, *words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    held = [os.pidfd_open(int(pid)) for pid in line(reflex).split()]
    reflex.kill()
    for pidfd in held:
        await trio.to_thread.run_sync(await_exit, pidfd)
    with Store(directory) as store:

        def is_tidy() -> bool:
            store.tidy()
            return not [name for name in os.listdir(directory) if name.startswith(".writing")]

        await_that(is_tidy, "the reader, which holds the lock too, has ended")
        assert store.bundles() == []
    assert alive(target.pid)


def test_started_without_a_socket_it_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agent.worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 2
    assert "started by stoop-agent" in ran.stderr


@pytest.mark.parametrize("phase", [VOLATILE, READ])
@pytest.mark.parametrize("whose", ["worker", "nursery"])
async def test_killed_in_each_phase_the_store_is_whole(
    bench: Bench, spawn: Spawn, host: LinuxHost, phase: str, whose: str
) -> None:
    """What was told as kept is there, and nothing is there by half."""
    target = whom(spawn("sleep", "600").pid, host)
    held: list[int] = []

    def kill(came: str) -> None:
        (worker,) = (each["pid"] for each in bench.workers.status()["running"])
        if came == phase and worker:
            held.append(os.pidfd_open(worker))
            os.kill(worker if whose == "worker" else bench.workers.pid, signal.SIGKILL)

    result = await bench.workers.run(bench.snapshot(target), DEADLINE_S, progress=kill)
    for pidfd in held:
        await trio.to_thread.run_sync(await_exit, pidfd)
    kept = bench.kept()
    assert len(kept) <= 1
    assert not result.ok or kept[0][0].bundle == result.details["bundle"]
    with trio.fail_after(PATIENCE_S):  # the reader holds the lock too, until it has seen that it is alone
        while bench.leftovers():
            assert (await bench.workers.run(TidyJob(**bench.common(())), DEADLINE_S)).ok
    assert (await bench.workers.run(bench.snapshot(target), DEADLINE_S)).ok
    with Store(bench.directory) as store:
        assert check_chain(store) == []


async def test_the_store_is_put_in_order_by_a_worker(bench: Bench) -> None:
    assert (await bench.workers.run(TidyJob(**bench.common(())), DEADLINE_S)).details == {
        "notes": [],
        "store": {"bytes": 0, "bundles": 0},
    }
    os.close(os.open(f"{bench.directory}/.writing-0123456789abcdef", os.O_CREAT | os.O_WRONLY, 0o600))
    result = await bench.workers.run(TidyJob(**bench.common(())), DEADLINE_S)
    assert result.details["notes"] == [".writing-0123456789abcdef: its writer was killed; it was removed"]


async def test_bundles_of_workers_side_by_side_are_one_chain(
    bench: Bench, spawn: Spawn, host: LinuxHost, nursery: trio.Nursery
) -> None:
    target = whom(spawn("sleep", "600").pid, host)
    results: list[Result] = []

    async def run(key: str) -> None:
        results.append(await bench.workers.run(bench.snapshot(target, key=key), DEADLINE_S))

    for number in range(12):
        nursery.start_soon(run, str(number))
    await bench.until(lambda: len(results) == 12, "all results")
    assert all(result.ok for result in results)
    assert [manifest.sequence for manifest, _ in bench.kept()] == list(range(1, 13))
    with Store(bench.directory) as store:
        assert check_chain(store) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a file system")
    point = str(tmp_path / "small")
    os.mkdir(point)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "stoop-test", point], check=True, timeout=PATIENCE_S)
    yield point
    # A worker that was given up or has just answered may have a file open on it for a moment.
    await_that(lambda: not subprocess.run(["umount", point], timeout=PATIENCE_S).returncode, f"{point} is free")


async def test_a_full_disk_is_a_result_and_leaves_nothing(
    small_disk: str, bench: Bench, big: Big, host: LinuxHost
) -> None:
    target = whom(big(20).pid, host)
    result = await bench.workers.run(bench.memory(target, store=f"{small_disk}/evidence"), DEADLINE_S)
    assert result == Result(False, "the evidence can't be written: No space left on device")
    await_that(lambda: not os.listdir(f"{small_disk}/evidence"), "nothing is left")
    again = await bench.workers.run(bench.snapshot(target, store=f"{small_disk}/evidence"), DEADLINE_S)
    assert again.ok, again
