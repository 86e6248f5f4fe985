"""What an act on a pod's network leaves, and what an undo took away: values. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

Counters = dict[str, dict[str, tuple[int, int]]]
"""Of an act's tables: place → counter → packets and bytes."""


class Applied(msgspec.Struct, frozen=True):
    """What stands now. `weaker`: one line each for what is less than it should be; empty when all is as meant.

    `state` replaces the plan's: it has fingerprints. `again`: tables of this act were there already and were replaced.
    `ended`: connections that were ended. `ms`: milliseconds until both ends stood, and until all was done.
    """

    state: dict[str, Any]
    places: tuple[str, ...]
    weaker: tuple[str, ...] = ()
    again: bool = False
    ended: int = 0
    ms: dict[str, float] = {}


class UndoReport(msgspec.Struct, frozen=True):
    """What was taken away. `failed`: why something of ours may still stand, one line each; empty when nothing does.

    `gone`: what had ended by itself. `removed`: tables taken away, as `place family`. `changed`: those among them that
    were not as we had left them. `missing`: those that somebody else had taken away before. `counters`: what the
    removed ones had seen, place → counter → packets and bytes.
    """

    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    counters: Counters = {}

    @property
    def complete(self) -> bool:
        """Whether nothing of the act stands any more."""
        return not self.failed
