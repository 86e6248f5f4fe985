"""A loop that is stuck ends the program, with the stacks of every thread on standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import threading, trio
from agent import app
app.WATCHDOG_SECONDS = 0.2
app.TICK_SECONDS = {tick}
class Reflex:
    ticks = 0
    def tick(self):
        self.ticks += 1
        if self.ticks == {stuck_at}:
            self.never_comes_round()
    def never_comes_round(self):
        threading.Event().wait(60)
async def main():
    with trio.move_on_after(2):
        await app._tick(Reflex())
trio.run(main)
"""


def run(**values: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(**values)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_loop_that_does_not_come_round_ends_the_program_and_shows_where_it_is() -> None:
    ended = run(tick=0.01, stuck_at=3)
    assert ended.returncode == 1
    assert "never_comes_round" in ended.stderr
    assert "Timeout" in ended.stderr


def test_a_loop_that_comes_round_is_left_alone() -> None:
    ended = run(tick=0.01, stuck_at=0)
    assert (ended.returncode, ended.stderr) == (0, "")
