"""The pacemaker's own process: its rate, its rights, its end; and when it rests, on values."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.pacing import AWAKE_SECONDS, BUSY_SWITCHES, CALM_SWITCHES, LEAST_PAUSE, REPORT, Rest, switches_in
from tests.real.conftest import PATIENCE_S, await_that

ROOT = Path(__file__).resolve().parents[2]

STAT = b"cpu  1 2 3\ncpu0 1 2 3\nintr 12 0 0\nctxt 987654321\nbtime 1\nprocesses 5\n"


class TestRest:
    def test_it_takes_two_looks(self) -> None:
        rest = Rest()
        assert not rest.look(10**9, 0.0)
        assert rest.look(10**9 + 5 * (BUSY_SWITCHES + 1), 5.0)

    @pytest.mark.parametrize(
        ("rates", "rests"),
        [
            ([0], [False]),
            ([BUSY_SWITCHES], [False]),
            ([BUSY_SWITCHES + 1, CALM_SWITCHES + 1, CALM_SWITCHES], [True, True, False]),
            ([CALM_SWITCHES + 1, BUSY_SWITCHES + 1], [False, True]),
        ],
    )
    def test_between_busy_and_calm_it_stays_as_it_was(self, rates: list[int], rests: list[bool]) -> None:
        rest, count, found = Rest(), 0, []
        rest.look(0, 0.0)
        for number, rate in enumerate(rates, 1):
            count += rate * 5
            found.append(rest.look(count, number * 5.0))
        assert found == rests

    def test_what_can_t_be_told_is_not_busy(self) -> None:
        rest = Rest()
        rest.look(0, 0.0)
        assert rest.look(10 * BUSY_SWITCHES, 5.0)
        assert not rest.look(None, 10.0)
        assert not rest.look(100 * BUSY_SWITCHES, 15.0)  # the look before it told nothing

    def test_two_looks_at_one_moment_say_nothing(self) -> None:
        rest = Rest()
        rest.look(0, 5.0)
        assert not rest.look(10**9, 5.0)

    def test_a_rest_that_was_felt_ends_and_does_not_come_back_for_a_while(self) -> None:
        rest, rate = Rest(), 2 * BUSY_SWITCHES
        rest.look(0, 0.0)
        assert rest.look(rate * 5, 5.0)
        rest.felt(6.0)
        assert not rest.look(rate * 10, 10.0)
        assert not rest.look(rate * 600, 600.0)
        at = 7.0 + AWAKE_SECONDS
        assert rest.look(int(rate * at), at)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (STAT, 987654321),
        (b"", None),
        (b"ctxt 5\n", None),
        (b"cpu 1\nctxt \n", None),
        (b"cpu 1\nctxt 5x\n", None),
        (b"cpu 1\nctxt -5\n", None),
        (b"cpu 1\nctxt 5", 5),
    ],
)
def test_the_count_of_switches_is_read_from_any_text(text: bytes, count: int | None) -> None:
    assert switches_in(text) == count


def test_this_machines_count_of_switches() -> None:
    first = switches_in(Path("/proc/stat").read_bytes())
    assert first is not None
    await_that(lambda: (switches_in(Path("/proc/stat").read_bytes()) or 0) > first, "a switch")


@contextmanager
def pacing(rate: int, adaptive: bool, cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            words = [str(theirs.fileno()), str(rate), str(int(adaptive))]
            process = subprocess.Popen(
                [sys.executable, "-m", "agent.pacing", *words],
                pass_fds=(theirs.fileno(),),
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def turns(pid: int) -> int:
    """Each turn is one sleep, so one voluntary switch (proc(5))."""
    return int(status_of(pid)["voluntary_ctxt_switches"])


@pytest.mark.real
def test_it_calls_fchdir_at_its_rate(tmp_path: Path) -> None:
    """The call is seen by what it does: the directory that the process is in becomes `/`."""
    with pacing(1000, False, tmp_path) as (process, _):
        await_that(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"), "a call")
        first, begun = turns(process.pid), time.monotonic()
        await_that(lambda: turns(process.pid) >= first + 500, "500 turns")
        span = time.monotonic() - begun
    # A machine that is shared is late, and then it catches up; the rate that it keeps is the bench's affair (`pace`).
    assert span >= 0.5 * LEAST_PAUSE


@pytest.mark.real
def test_it_ends_with_its_socket_and_at_once(tmp_path: Path) -> None:
    with pacing(100, True, tmp_path) as (process, ours):
        await_that(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"), "a call")
        ours.close()
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.real
@pytest.mark.root
def test_it_has_no_rights(tmp_path: Path) -> None:
    with pacing(100, True, tmp_path) as (process, _):
        await_that(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"), "a call")
        status = status_of(process.pid)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert status["NoNewPrivs"] == "1"


@pytest.mark.real
def test_it_reports_what_it_really_did_whoever_does_not_read(tmp_path: Path) -> None:
    with pacing(200, False, tmp_path) as (process, ours):
        ours.settimeout(PATIENCE_S)
        rests, rate, millionths = REPORT.unpack(ours.recv(64))
        assert (rests, process.poll()) == (0, None)
        assert 0 < rate <= 200 / LEAST_PAUSE
        assert 0 < millionths < 500_000


@pytest.mark.real
def test_ctrl_c_is_the_agents_affair(tmp_path: Path) -> None:
    with pacing(100, True, tmp_path) as (process, ours):
        await_that(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == Path("/"), "a call")
        for number in (signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        before = turns(process.pid)
        await_that(lambda: turns(process.pid) > before + 20, "that it goes on")
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("words", [[], ["3"], ["x", "1000", "1"], ["3", "1000", "1", "1"], ["999", "1000", "1"]])
def test_wrongly_started_it_says_so(words: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agent.pacing", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ran.returncode, "is started by stoop-agent" in ran.stderr) == (2, True)
