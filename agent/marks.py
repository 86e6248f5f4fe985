"""The journal as the file intake sees it."""

from __future__ import annotations

from stoop.journal import Journal


class Marks:
    """The journal as the file intake's `Marks`."""

    def __init__(self, journal: Journal) -> None:
        self.load = journal.load_mark
        self.commit = journal.put_mark
