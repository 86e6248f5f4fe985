"""What an agent that was killed amid an act left standing goes on after the next start."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.node.host import LinuxHost
from agent.resume import resume
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)

pytestmark = pytest.mark.real


def record_of(target: dict[str, Any]) -> Record:
    return Record("a", "r", "c", "R", "kill", "process:kill", Verdict.FAILED, "", target, Timing())


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_left_stopped_goes_on(host: LinuxHost, spawn: Callable[..., subprocess.Popen[Any]]) -> None:
    victim = spawn("sleep", "1000")
    os.kill(victim.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WNOWAIT)
    with host.hold(victim.pid) as held:
        identity = held.facts.identity
    told = resume(host, [record_of({"pid": victim.pid, "identity": identity, "container_id": ""})])
    assert told == [f"pid {victim.pid} was left stopped: continued"]
    assert state(victim.pid) in "SR"


def test_another_process_with_that_pid_stays_as_it_is(
    host: LinuxHost, spawn: Callable[..., subprocess.Popen[Any]]
) -> None:
    other = spawn("sleep", "1000")
    os.kill(other.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
    assert resume(host, [record_of({"pid": other.pid, "identity": "another", "container_id": ""})]) == []
    assert state(other.pid) == "T"


def test_what_is_gone_is_nothing_to_resume(host: LinuxHost) -> None:
    gone = record_of({"pid": 0, "identity": "x", "container_id": ""})
    assert resume(host, [gone, record_of({"pid": 4_194_000, "identity": "x", "container_id": "0" * 12})]) == []
