"""Real processes and cgroups, where a test asks for them, are those of tests/real."""

from __future__ import annotations

from tests.real.conftest import make_box, spawn

__all__ = ["make_box", "spawn"]
