"""Child processes that never outlive us: PR_SET_PDEATHSIG (prctl(2)), and an orderly end within a bound."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Sequence[str],
    *,
    dies_by: signal.Signals = signal.SIGTERM,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; the kernel sends it `dies_by` when we are gone.

    Its own group, so that Ctrl-C on the terminal reaches only us and we end it in order. The caller ends it (`stop`).
    Raises OSError.
    """
    parent = os.getpid()

    def bind_to_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, dies_by, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(0)

    # Between fork and exec only prctl and getppid run, and no thread of ours is there yet to hold a lock.
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=bind_to_parent,
    )


def stop(child: subprocess.Popen[bytes], grace_s: float) -> int:
    """Ask it to end (SIGTERM), and after `grace_s` seconds make it (SIGKILL). Returns its exit status."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
