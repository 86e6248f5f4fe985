"""The fixtures of real stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import make_agent
from tests.real.conftest import make_box, pytest_runtest_setup, spawn
from tests.real.stores.servers import TARGETS, Target, running

__all__ = ["make_agent", "make_box", "pytest_runtest_setup", "spawn"]


@pytest.fixture(params=TARGETS, ids=lambda kind: kind.name)
def target(request: Any, tmp_path: Path) -> Iterator[Target]:
    """Each output with what is behind it, started."""
    with running(request.param, tmp_path / "store") as made:
        yield made
