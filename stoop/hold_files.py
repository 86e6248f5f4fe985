"""The holds on disk, in `STATE_DIR/held`: written before the act, removed after its undo.

Not synced for what dies with the machine. Formats and reasons: docs/decisions/0007-giving-back.md.
"""

from __future__ import annotations

from pathlib import Path

from stoop.holds import MAX_HOLDS, Hold
from stoop.small_files import Kind, SmallFiles

HELD_DIR = "held"

MAX_FILE = 256 * 1024
"""Bytes: the largest has the pids of a tree (512) or the rules of a network."""

HOLDS = Kind(
    type=Hold,
    name="a hold",
    lost="what it held is not given back",
    key=lambda hold: hold.act,
    most=MAX_HOLDS,
    max_bytes=MAX_FILE,
)


def hold_files(state_dir: Path) -> SmallFiles[Hold]:
    """Those of one agent."""
    return SmallFiles(state_dir / HELD_DIR, HOLDS)
