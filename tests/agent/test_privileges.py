"""What the helper gives up, also where it may not become nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

CHECK = """
from agent import privileges
print(privileges.drop())
print(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
def test_without_setuid_it_keeps_the_user_and_no_capability() -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv(1) of util-linux is missing")
    ran = subprocess.run(
        [setpriv, "--bounding-set=-setuid,-setgid", sys.executable, "-c", CHECK],
        capture_output=True,
        text=True,
        check=True,
    )
    told, effective = ran.stdout.splitlines()
    assert "without its capabilities" in told
    assert int(effective, 16) == 0
