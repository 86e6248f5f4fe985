"""A child that does what may never end, beside a parent that goes on whatever becomes of it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""include/uapi/linux/prctl.h; prctl(2)."""

STEP_BYTES = 256
"""What a child says it is doing, for whoever finds it hanging."""

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def tie_to_parent(parent: int) -> None:
    """In a child just forked: end when the parent does. Ends at once when it has already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Step:
    """A word shared between parent and child: what the child is about to do. Costs no system call."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, STEP_BYTES)

    def set(self, name: str) -> None:
        """Names are ours, and ASCII: what is cut is cut alike each time."""
        self._shared[:] = name.encode("ascii")[:STEP_BYTES].ljust(STEP_BYTES, b"\0")

    def get(self) -> str:
        """What was set last; "" before."""
        return self._shared[:].rstrip(b"\0").decode("ascii")
