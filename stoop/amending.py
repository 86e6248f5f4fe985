"""Acts that missed their deadline, watched on: one that works after all amends its record."""

from __future__ import annotations

from typing import Protocol

import trio

from stoop.runs import Doing, Run
from stoop.spec import (
    Outcome,
)

AMEND_SECONDS = 600.0
"""How long an act that missed its deadline is watched, to amend its record."""

MAX_AMENDING = 64
"""Acts watched so at a time; each holds a pidfd."""


class Done(Protocol):
    """Records that an act which was begun ended so."""

    def __call__(self, run: Run, doing: Doing, outcome: Outcome, *, amends: bool) -> None: ...


class Amending:
    """Watches them, each in a task of its own."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._count = 0

    def later(self, nursery: trio.Nursery | None, run: Run, doing: Doing) -> bool:
        """Watch it from now on; False when too many are watched already."""
        if self._count >= MAX_AMENDING or nursery is None:
            return False
        self._count += 1
        run.subject.retain()
        nursery.start_soon(self._watch, run, doing)
        return True

    async def _watch(self, run: Run, doing: Doing) -> None:
        try:
            with trio.move_on_after(AMEND_SECONDS):
                self._done(run, doing, await doing.outcome(), amends=True)
        finally:
            self._count -= 1
            doing.let_go()
            run.subject.release()
