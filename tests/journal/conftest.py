"""What the tests of the journal share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoop import journal as journal_module
from stoop.history import read
from stoop.journal import (
    Intent,
    Journal,
)
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)

PATIENCE_S = 10.0
"""How long the writer's thread may take for what takes it milliseconds; then the test fails."""


class Said:
    """Keeps what was said loudly; `wait` returns once an event was."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self._news = threading.Condition()

    def __call__(self, event: str, **fields: object) -> None:
        with self._news:
            self.events.append((event, fields))
            self._news.notify_all()

    def count(self, part: str) -> int:
        return sum(part in event for event, _ in self.events)

    def wait(self, part: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.count(part), PATIENCE_S), self.events


class Bench:
    """Journals of one state directory, one at a time; the last one is closed after the test."""

    def __init__(self, state_dir: Path) -> None:
        self.dir = state_dir
        self.said = Said()
        self._opened: list[Journal] = []

    def journal(self, **options: Any) -> Journal:
        made = Journal(self.dir, **{"max_age_s": 0, "max_bytes": 0, "warn": self.said, **options})
        self._opened.append(made)
        return made

    def opened(self, **options: Any) -> Journal:
        made = self.journal(**options)
        self.recovery = made.open()
        return made

    def close(self) -> None:
        for made in self._opened:
            made.close()

    def history(self) -> list[dict[str, Any]]:
        return list(read(self.dir))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(journal_module, "FIRST_RETRY_SECONDS", 0.01)
    made = Bench(tmp_path / "state")
    yield made
    made.close()


def record(number: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "alert": f"{number + 2_000_000:032x}",
        "run": f"{number + 1_000_000:032x}",
        "act": f"{number:032x}",
        "rule": "Kill a terminal shell",
        "action": "Kill it",
        "actionner": "process:kill",
        "verdict": Verdict.DONE,
        "reason": "",
        "target": {"pid": 4000 + number},
        "timing": Timing(received_ns=time.time_ns()),
    }
    return Record(**{**values, **changes})


def intent(number: int) -> Intent:
    like = record(number)
    names = (like.act, like.run, like.alert, like.rule, like.action, like.actionner, f"0badcafe:{number}:1")
    return Intent(*names, pid=4000 + number, decided_ns=number + 1)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does: looked at every ms, at most `PATIENCE_S`."""
    pause = threading.Event()
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.001)
