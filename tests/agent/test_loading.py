"""The start runs no program but the helper: each kind of process is loaded afresh, and watched by an audit hook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WATCHED = """
import socket, sys
ran = []
sys.addaudithook(lambda event, args: ran.append(args[0]) if event == "subprocess.Popen" else None)
{what}
print(*ran, ctypes.util.find_library.__name__)
"""

REFLEX = """
import agent.app, ctypes.util
from stoop.watching import Watch
Watch().close()
"""

HELPER = """
import agent.helper
ours, theirs = socket.socketpair()
theirs.close()
assert agent.helper.main([str(ours.detach())]) == 0
import ctypes.util
"""


@pytest.mark.parametrize("what", [REFLEX, HELPER], ids=["reflex", "helper"])
def test_nothing_is_run_to_find_a_library(what: str) -> None:
    argv = [sys.executable, "-c", WATCHED.format(what=what)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    # And whoever asks later is answered as ever.
    assert (ended.stdout, ended.stderr) == ("find_library\n", "")
