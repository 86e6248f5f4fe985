"""`make demo` shows what it says, with exit 0, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.conftest import pytest_runtest_setup, v2_mount
from tools.demo import ROOT
from tools.demo_container import PROGRAMS

__all__ = ["pytest_runtest_setup"]

LIMIT_S = 60.0

ABSENT = [program for program in PROGRAMS if shutil.which(program) is None]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what it needs: it writes into its checkout."""
    made = tmp_path / "c"
    for name in ("stoop", "agent", "tools"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    return made


def play(checkout: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", **more}
    argv = [sys.executable, "-m", "tools.demo_container"]
    return subprocess.run(
        argv, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
    )


@pytest.mark.root
@pytest.mark.real
@pytest.mark.skipif(bool(ABSENT), reason=f"needs {', '.join(ABSENT)} (Debian: iproute2 nftables util-linux)")
def test_the_demonstration(checkout: Path) -> None:
    links = os.listdir("/sys/class/net")
    ran = play(checkout)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    claims = [line for line in ran.stdout.splitlines() if line.startswith(("✓", "✗"))]
    assert len(claims) == 11
    assert not any(line.startswith("✗") for line in claims)
    for said in (
        "Isolate the pod (network:isolate) done",
        "✓ nothing comes out of it any more",
        "undo: Isolate the pod (network:isolate) done: its time is over",
        "✓ the victim is frozen",
        "Kill the container (container:kill) done",
        "✓ the bystander runs",
    ):
        assert said in " ".join(ran.stdout.split())
    mount = v2_mount()
    assert mount is not None
    assert not list(mount.glob("stoop-demo-*"))
    assert os.listdir("/sys/class/net") == links
    assert not os.path.exists(checkout / "var/control.sock")


def test_without_what_it_needs_it_says_so(checkout: Path, tmp_path: Path) -> None:
    ran = play(checkout, PATH=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "demo: it needs root" in ran.stderr
