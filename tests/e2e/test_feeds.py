"""The other ways in, through the whole agent: a followed file over rotation and a restart, HTTP with a token."""

from __future__ import annotations

import collections
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.agent import alert_line, running
from bench.victims import Victim
from stoop.history import read

pytestmark = pytest.mark.real

PATIENCE_S = 10.0
CURL = ("curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", "--data-binary", "@-")
GUARD = {"pid_namespace": "agent", "max_targets": 0, "max_targets_total": 0}


def is_dead(victim: Victim) -> bool:
    return bool(select.select([victim.pidfd], [], [], PATIENCE_S)[0])


def test_a_followed_file_over_rotation_and_a_restart(tmp_path: Path) -> None:
    found = [Victim() for _ in range(4)]
    feed = tmp_path / "events.json"

    def write(victim: Victim) -> None:
        with feed.open("ab") as file:
            file.write(alert_line(victim.pid, os.getpid()))

    try:
        with running(guard=GUARD, intake={"unix": None, "file": {"path": str(feed)}}) as agent:
            write(found[0])
            assert is_dead(found[0])
            feed.rename(tmp_path / "events.json.1")
            write(found[1])
            assert is_dead(found[1])
            agent.process.send_signal(signal.SIGTERM)
            assert agent.process.wait(PATIENCE_S) == 0
            write(found[2])
            command = [sys.executable, "-m", "agent.app", "-c", str(agent.directory / "stoop.yaml")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as again:
                assert is_dead(found[2])
                write(found[3])
                assert is_dead(found[3])
                again.terminate()
                assert again.wait(PATIENCE_S) == 0
            rows = list(read(agent.directory / "state"))
    finally:
        for victim in found:
            victim.end()
    assert collections.Counter(row["target"]["pid"] for row in rows) == {victim.pid: 1 for victim in found}
    assert {row["outcome"] for row in rows} == {"done"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: a foreign sender can't be tried")
def test_http_asks_for_the_token_as_falco_sends_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    victim = Victim()
    try:
        http = {"address": "127.0.0.1", "port": 0, "token_file": str(token)}
        with running(guard=GUARD, intake={"http": http}) as agent:
            bound = agent.status()["intakes"]["http"]
            codes = []
            for login in ("falco:wrong", "falco:s3cret"):
                sent = subprocess.run(
                    [
                        "curl",
                        "-sS",
                        "-o",
                        os.devnull,
                        "-w",
                        "%{http_code}",
                        "--data-binary",
                        "@-",
                        f"http://{login}@{bound}/",
                    ],
                    input=alert_line(victim.pid, os.getpid()),
                    capture_output=True,
                    check=True,
                    timeout=PATIENCE_S,
                )
                codes.append(sent.stdout)
            assert is_dead(victim)
        assert codes == [b"401", b"200"]
    finally:
        victim.end()
