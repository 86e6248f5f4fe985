"""SIGKILL at any point, and a disk that is really full or read-only: what the journal says afterwards is true."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stoop
from stoop.history import read
from stoop.journal import ENDED_UNKNOWN, Journal

pytestmark = pytest.mark.real

HERE = Path(__file__).parent
AGENT = HERE / "journal_agent.py"
ROUNDS = 40
SEED = 4
"""The same points of kill in every run, as far as a scheduler allows."""

PATIENCE_S = 30.0


def run_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(stoop.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def quiet(event: str, **fields: object) -> None:
    """For a journal that has nothing to say in the test that opens it."""
    raise AssertionError((event, fields))


# ---------------------------------------------------------------- SIGKILL


class Truth:
    """What the agents that were killed wrote down themselves, by one write(2) a line: it outlives them."""

    def __init__(self, path: Path) -> None:
        lines = [line.split() for line in path.read_text().splitlines()]
        self.accepted = {int(line[1]): int(line[2]) for line in lines if line[0] == "accepted"}
        self.acts = Counter(int(line[1]) for line in lines if line[0] == "act")
        self.stamped = {int(line[1]) for line in lines if line[0] == "stamped"}


def killed_after(agent: subprocess.Popen[str], lines: int) -> dict[str, Any]:
    """Read what it found at its start, then so many lines, then kill it; what it found."""
    assert agent.stdout is not None
    try:
        found: dict[str, Any] = json.loads(agent.stdout.readline())
        for _ in range(lines):
            assert agent.stdout.readline()
    finally:
        agent.kill()
        agent.wait(PATIENCE_S)
        agent.stdout.close()
    return found


def start_agent(state_dir: Path, truth: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, str(AGENT), str(state_dir), str(truth)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=run_environment())


def is_in(at_ns: int, windows: list[dict[str, Any]]) -> bool:
    return any(window["from_ns"] <= at_ns <= window["to_ns"] for window in windows)


def test_killed_at_any_point_it_opens_and_tells_the_truth(tmp_path: Path) -> None:
    state_dir, truth_file = tmp_path / "state", tmp_path / "truth"
    truth_file.touch()
    chance = random.Random(SEED)
    windows: list[dict[str, Any]] = []
    unfinished: set[int] = set()
    for _ in range(ROUNDS):
        # Mostly amid the writer's batches; sometimes right at the start, while the last end is still being written.
        lines = chance.choice((0, 1, chance.randrange(50), chance.randrange(2000)))
        found = killed_after(start_agent(state_dir, truth_file), lines)
        windows += [found["window"]] if found["window"] else []
        unfinished |= set(found["unfinished"])
    journal = Journal(state_dir, max_age_s=0, max_bytes=0, warn=quiet)
    recovery = journal.open()
    journal.close()
    if recovery.window is not None:
        windows.append(
            {"from_ns": recovery.window.from_ns, "to_ns": recovery.window.to_ns, "at_most": recovery.window.at_most}
        )
    unfinished |= {int(record.act, 16) for record in recovery.unfinished}
    assert not recovery.clean
    assert not recovery.notes

    truth = Truth(truth_file)
    told = {int(line["act"], 16): line for line in read(state_dir)}
    assert len(truth.acts) > 1000
    assert max(truth.acts.values()) == 1, "an act was carried out twice"
    assert truth.acts.keys() <= told.keys(), "an act was carried out and is not told"
    unsure = {number for number in truth.acts if told[number]["reason"] == ENDED_UNKNOWN}
    assert unsure <= unfinished - truth.stamped, "the slot said that it was begun"
    assert len(unsure) <= ROUNDS
    lost = truth.accepted.keys() - told.keys()
    assert all(is_in(truth.accepted[number], windows) for number in lost)
    assert len(lost) <= sum(window["at_most"] for window in windows)
    assert unfinished, "no kill met an act under way"
    assert windows, "no kill met an alert under way"


# ---------------------------------------------------------------- an idle journal


def switches(thread: int) -> int:
    """How often this thread went to sleep (proc(5))."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def test_an_idle_journal_never_wakes(tmp_path: Path) -> None:
    before = {thread.native_id for thread in threading.enumerate()}
    journal = Journal(tmp_path, max_age_s=0, max_bytes=0, warn=quiet)
    journal.open()
    (thread,) = {thread.native_id for thread in threading.enumerate()} - before
    assert thread is not None
    asleep = threading.Event()
    asleep.wait(0.2)
    slept = switches(thread)
    asleep.wait(0.5)
    assert switches(thread) == slept
    journal.close()


# ---------------------------------------------------------------- a full disk, a read-only one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[list[str]]:
    """The beginning of a command line that runs the rest where `tmp_path/disk` is a tmpfs of 4 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    script = 'mount -t tmpfs -o size=4m,mode=700 small "$0" && exec "$@"'
    yield ["unshare", "--mount", "sh", "-c", script, str(disk)]
    assert not list(disk.iterdir()), "the mount was not its own"


needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1) to mount a disk of its own"
)


def run_disk_test(argv: list[str]) -> list[str]:
    """Run a scene of `journal_disk.py`; its lines. It checks itself and says `fine` last."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, env=run_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "fine", done.stdout + done.stderr
    return lines


SCENES = [sys.executable, str(HERE / "journal_disk.py")]


@pytest.mark.root
@needs_mounts
@pytest.mark.parametrize("scene", ["full", "full-from-the-start", "read-only"])
def test_on_a_disk_that_is_full_or_read_only_acts_go_on(small_disk: list[str], tmp_path: Path, scene: str) -> None:
    run_disk_test([*small_disk, *SCENES, scene, str(tmp_path / "disk")])


def test_where_files_may_not_grow_acts_go_on(tmp_path: Path) -> None:
    run_disk_test([*SCENES, "limit", str(tmp_path / "state")])
