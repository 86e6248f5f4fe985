"""Taking a snapshot in a test, and looking into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.work.conftest import Bench

DEADLINE_S = 30.0


async def taken(bench: Bench, job: Any) -> tuple[Any, dict[str, bytes]]:
    """Take it; the manifest and the parts."""
    result = await bench.workers.run(job, DEADLINE_S)
    assert result.ok, result
    return bench.only()


def told(parts: dict[str, bytes], pid: int) -> dict[str, Any]:
    """What a snapshot tells of one process."""
    found: dict[str, Any] = json.loads(parts[f"processes/{pid}.json"])
    return found


def executable_in(parts: dict[str, bytes]) -> bytes:
    """The one executable of a bundle."""
    (found,) = (content for name, content in parts.items() if name.startswith("executables/"))
    return found


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def missing(manifest: Any) -> dict[str, str]:
    return {each.what: each.why for each in manifest.missing}
