"""Imported before trio and inotify-simple, so that looking for libc runs no program.

Both ask `ctypes.util.find_library` where it is, which runs `/sbin/ldconfig -p`, and where there is none a compiler:
three times at each start, as root. Told "nowhere", inotify-simple uses the libc that this process has loaded anyway,
and trio leaves its threads without names. Whoever has imported the two before has had the programs run already.
"""

from __future__ import annotations

import ctypes.util


def _nowhere(name: str) -> str | None:
    return None


_found = ctypes.util.find_library
ctypes.util.find_library = _nowhere
try:
    import inotify_simple  # noqa: F401
    import trio  # noqa: F401
finally:
    ctypes.util.find_library = _found
