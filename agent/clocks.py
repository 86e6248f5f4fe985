"""The node's clocks, as everything in the reflex reads them."""

from __future__ import annotations

import time


class SystemClocks:
    """CLOCK_REALTIME and CLOCK_MONOTONIC (clock_gettime(2))."""

    now_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)
