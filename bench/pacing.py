"""What the pacemaker costs: calls a second, processor time and memory, against the same loop in C."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.table import Row
from bench.victims import idle

SOURCE = Path(__file__).with_name("pacer.c")
RATES = (1000, 500)
ROUNDS = 5
ROUND_SECONDS = 2.0
"""Both in turn, so that what else the machine does falls on both."""


@dataclass
class Cost:
    """Of all rounds: turns (each ends in one sleep, so in one voluntary switch), seconds of a processor and of time."""

    turns: int = 0
    used: float = 0.0
    span: float = 0.0

    def add(self, pid: int) -> None:
        """Watch a process for a round."""
        turns, used, begun = _turns(pid), _used(pid), time.monotonic()
        idle(ROUND_SECONDS)
        self.turns += _turns(pid) - turns
        self.used += _used(pid) - used
        self.span += time.monotonic() - begun

    def __str__(self) -> str:
        rate, share = self.turns / self.span, self.used / self.span
        return f"{rate:.0f}/s for {share:.2%} of a core ({self.used / max(1, self.turns) * 1e6:.1f} µs each)"


def _turns(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise ValueError("this kernel does not count switches (proc(5))")


def _used(pid: int) -> float:
    """Seconds on a processor, exactly (schedstat, Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def _in_c(rate: int) -> Iterator[int]:
    """The pid of the same loop in C; 0 where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield 0
        return
    with tempfile.TemporaryDirectory(prefix="stoop-bench-") as name:
        program = str(Path(name) / "pacer")
        subprocess.run([compiler, "-O2", "-o", program, str(SOURCE)], check=True)
        with subprocess.Popen([program, str(rate)], stdin=subprocess.PIPE) as process:
            yield process.pid
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def _ours(rate: int) -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        with theirs:
            words = [sys.executable, "-m", "agent.pacing", str(theirs.fileno()), str(rate), "0"]
            process = stack.enter_context(subprocess.Popen(words, pass_fds=(theirs.fileno(),), env=_environment()))
        yield process.pid
        ours.close()


def _environment() -> dict[str, str]:
    """As the agent starts it."""
    return {**os.environ, "PYTHONPATH": str(SOURCE.parent.parent), "MALLOC_ARENA_MAX": "1"}


def _memory(pid: int) -> str:
    sizes = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    pss, private = int(sizes["Pss:"]), int(sizes["Private_Dirty:"]) + int(sizes["Private_Clean:"])
    return f"{pss / 1024:.1f} MiB (its own: {private / 1024:.1f})"


def pacemaker() -> Iterator[Row]:
    """One row a rate, then the memory."""
    memory = ""
    for rate in RATES:
        floor, ours = Cost(), Cost()
        with _in_c(rate) as floor_pid, _ours(rate) as our_pid:
            idle(1.0)
            for _ in range(ROUNDS):
                if floor_pid:
                    floor.add(floor_pid)
                ours.add(our_pid)
            memory = _memory(our_pid)
        share = ours.used / ours.span
        yield Row(
            f"the pacemaker at {rate}/s",
            str(floor) if floor.span else "no compiler",
            str(ours),
            "≤ 1 % of a core",
            share <= 0.01,
            ours.turns,
        )
    yield Row("the pacemaker's memory", "-", memory, "-", None)
