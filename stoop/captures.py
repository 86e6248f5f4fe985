"""What a capture of evidence is to hold, by whose word it is taken, and what came of it. Pure: values.

Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class About(msgspec.Struct, frozen=True):
    """By whose word: the identities of alert, run and act, the names of rule and action."""

    alert: str
    run: str
    act: str
    rule: str
    action: str
    actionner: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline_s`: all of it is done, or given up, so long from now. `target`: whom, for the manifest."""

    about: About
    deadline_s: float
    target: dict[str, Any] = {}


class SnapshotWanted(Wanted, frozen=True, kw_only=True):
    """`executable_bytes`, `log_bytes`: at most so much, 0 for nothing. `changes`: list the upper directory."""

    executable_bytes: int
    log_bytes: int
    changes: bool


class MemoryWanted(Wanted, frozen=True, kw_only=True):
    """`regions`: kinds of regions. `bytes`: of all processes together."""

    regions: tuple[str, ...]
    bytes: int


class Still(msgspec.Struct, frozen=True):
    """A target that was made to stand still: `thaw` has it go on (twice is harmless), after `for_s` at the latest."""

    thaw: Callable[[], object]
    for_s: float


class Captured(msgspec.Struct, frozen=True):
    """What came of it. `details` are kept in the act's record: bundle, path, bytes, manifest (its SHA-256), parts,
    missing, frozen_ms, hung. `reason`: why there is no bundle, "" where there is one."""

    ok: bool
    reason: str = ""
    details: dict[str, Any] = {}
