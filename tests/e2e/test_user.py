"""An agent of a user other than root: its rights end where that user's do, and it says so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import KILL_IT, Agent, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Spawn

pytestmark = [pytest.mark.real, pytest.mark.root]

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
OWN = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
"""For `spawn`: all three, or the kernel lets the agent not look into the process (ptrace(2), access modes)."""


class UsersAgent(Agent):
    """Started as nobody."""

    def command(self, *words: str) -> list[str]:
        return [*AS_NOBODY, *super().command(*words)]


@pytest.fixture
def users_agent() -> Iterator[Agent]:
    """In a directory that nobody owns: what pytest makes is root's alone."""
    within = (
        "import agent.app, subprocess, sys; "
        "subprocess.run([sys.executable, '-P', '-c', 'import agent.helper'], check=True)"
    )
    trial = [*AS_NOBODY, sys.executable, "-c", within]
    if subprocess.run(trial, capture_output=True, timeout=PATIENCE_S, check=False).returncode:
        pytest.skip("other users can't run this interpreter, or can't read this checkout")
    with tempfile.TemporaryDirectory(prefix="stoop-e2e-") as name:
        agent = UsersAgent(Path(name), KILL_IT, {})
        for path in (agent.directory, agent.config, agent.rules):
            os.chown(path, NOBODY, NOBODY)
        try:
            agent.start()
            yield agent
        finally:
            agent.close()


def test_its_own_processes_die_and_root_is_out_of_its_reach(users_agent: Agent, spawn: Spawn) -> None:
    assert os.stat(users_agent.socket_path).st_uid == NOBODY
    victim, roots = spawn("sleep", "1000", **OWN), spawn("sleep", "1000")
    users_agent.send(alert(victim.pid))
    assert was_killed(victim)
    assert users_agent.records(1)[0]["outcome"] == "done"
    users_agent.send(alert(roots.pid))
    row = users_agent.records(2)[-1]
    assert (row["outcome"] in ("refused", "failed"), bool(row["reason"])) == (True, True), row
    assert lives(roots)
    assert users_agent.stop() == 0


def test_who_may_not_send_is_not_heard(users_agent: Agent, spawn: Spawn) -> None:
    """The peer's uid is asked of the kernel (SO_PEERCRED): a socket that all may open is still not everybody's."""
    victim = spawn("sleep", "1000", **OWN)
    os.chmod(users_agent.state_dir, 0o755)
    os.chmod(users_agent.socket_path, 0o666)
    said = alert(victim.pid)
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.stdin.buffer.read()); s.recv(1)"
    )
    subprocess.run(
        ["setpriv", "--reuid=12345", "--clear-groups", sys.executable, "-c", program, users_agent.socket_path],
        input=said,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    users_agent.send(alert(2**40))  # root may; it is heard after the other one was
    (row,) = users_agent.records(1)
    assert row["target"].get("pid") != victim.pid
    assert lives(victim)
