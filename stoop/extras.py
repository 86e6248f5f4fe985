"""What the extras of the distribution bring, and whether it is here. Nothing is imported to find out."""

from __future__ import annotations

import importlib.util

EXTRAS = {"pods": ("httpx",), "outputs": ("obstore",)}
"""By extra (pyproject.toml, optional-dependencies): the modules that it brings."""


def missing(extra: str) -> str:
    """The module of this extra that is not installed, "" when all are."""
    return next((name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None), "")
