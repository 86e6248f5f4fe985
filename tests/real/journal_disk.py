"""For test_journal_kill.py: scenes on a disk that fails. Usage: SCENE DIRECTORY. Says `fine` when all went well."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from stoop.history import read
from stoop.journal import Intent, Journal
from stoop.record import Record, Timing
from stoop.ring import FILE_BYTES
from stoop.spec import (
    Verdict,
)

PATIENCE_S = 15.0
FAILED = "the journal can't be written: acts go on, their records wait"
AGAIN = "the journal is written again"


class Scene:
    """A journal in this directory, and what it said."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.said: list[str] = []
        self.news = threading.Condition()
        self.journal = Journal(directory, max_age_s=0, max_bytes=0, warn=self._warn)
        self.acts = 0

    def _warn(self, event: str, **fields: object) -> None:
        with self.news:
            self.said.append(event)
            self.news.notify_all()

    def wait(self, event: str) -> None:
        with self.news:
            assert self.news.wait_for(lambda: event in self.said, PATIENCE_S), (event, self.said)

    def act(self) -> None:
        """One act, reserved and recorded: nothing of it may fail or wait."""
        self.acts += 1
        name = f"{self.acts:032x}"
        began = time.monotonic()
        slot = self.journal.reserve(Intent(name, name, name, "a rule", "an action", "process:kill", ""))
        self.journal.acted(slot)
        now_ns = time.time_ns()
        output = "x" * 4000
        timing = Timing(0, now_ns)
        names = (name, name, name, "a rule", "an action", "process:kill")
        self.journal.put(Record(*names, Verdict.DONE, "", {}, timing, output=output), slot)
        assert time.monotonic() - began < 1.0

    def fill(self) -> None:
        """Act until the journal says that it can't be written."""
        while FAILED not in self.said:
            assert self.acts < 3000
            for _ in range(20):
                self.act()
            with self.news:
                self.news.wait_for(lambda: FAILED in self.said, 0.03)

    def all_written(self) -> None:
        self.wait(AGAIN)
        self.journal.close()
        status = self.journal.status()
        assert status.lost == 0, status
        assert len(list(read(self.dir))) == self.acts
        assert self.said == [FAILED, AGAIN], self.said


def full(directory: Path) -> None:
    """The disk fills up, then there is room again."""
    ballast = directory / "ballast"
    ballast.write_bytes(bytes(1024 * 1024))
    scene = Scene(directory)
    scene.journal.open()
    scene.fill()
    assert "full" in scene.journal.status().error, scene.journal.status()
    for _ in range(50):
        scene.act()
    ballast.unlink()
    scene.all_written()


def full_from_the_start(directory: Path) -> None:
    """Not even the ring can be made."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    scene = Scene(directory)
    recovery = scene.journal.open()
    assert any("the ring can't be kept in a file" in note for note in recovery.notes), recovery
    scene.act()
    scene.wait(FAILED)
    ballast.unlink()
    scene.all_written()


def read_only(directory: Path) -> None:
    """The file system is read-only at a start; what was there can be read all the same."""
    first = Scene(directory)
    first.journal.open()
    first.act()
    first.journal.close()
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    assert len(list(read(directory))) == 1
    second = Scene(directory)
    recovery = second.journal.open()
    assert recovery.notes, recovery
    second.acts = 1
    second.act()
    second.wait(FAILED)
    subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True)
    second.all_written()


def limit(directory: Path) -> None:
    """Files may not grow any more (setrlimit(2), RLIMIT_FSIZE), then they may."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES + 100_000, most))
    scene = Scene(directory)
    scene.journal.open()
    assert scene.journal.status().ring_lasting
    scene.fill()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    scene.all_written()


SCENES = {"full": full, "full-from-the-start": full_from_the_start, "read-only": read_only, "limit": limit}

if __name__ == "__main__":
    SCENES[sys.argv[1]](Path(sys.argv[2]))
    os.write(1, b"fine\n")
