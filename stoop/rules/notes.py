"""Collects what is wrong and what is odd, within bounds, and words hints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypedDict, Unpack

from stoop.errors import Problem
from stoop.rules.raw import Place

MAX_NOTES = 500
"""The most problems, and the most warnings, that one load tells: beyond it nobody reads on."""

_METADATA = "{} is of a pod's metadata, which nothing tells here"

_GUESSABLE = 48
"""The longest text for which a near word is looked for: the search is quadratic in its length."""


class More(TypedDict, total=False):
    """What else a problem can say."""

    rule: str
    action: str
    detail: str
    hint: str


class Notes:
    """Problems and warnings of one load, in the order in which they were found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.metadata: list[Problem] = []
        self.dropped = 0
        self._problems = 0
        self._seen: set[Problem] = set()

    def problem(self, code: str, message: str, place: Place, **more: Unpack[More]) -> None:
        """Something that makes the rules unusable."""
        self._keep(self.problems, Problem(code, message, *place, **more))

    def add(self, problem: Problem) -> None:
        """The same, when it is there already."""
        self._keep(self.problems, problem)

    def warn(self, code: str, message: str, place: Place, **more: Unpack[More]) -> None:
        """Something odd that is loaded nevertheless."""
        self._keep(self.warnings, Problem(code, message, *place, warning=True, **more))

    def metadata_asked(self, field: str, place: Place, **more: Unpack[More]) -> None:
        """A condition on what only a pod's metadata tells. Beyond MAX_NOTES nobody reads on."""
        if len(self.metadata) < MAX_NOTES:
            self.metadata.append(Problem("pod-metadata", _METADATA.format(shown(field)), *place, **more))

    def _keep(self, where: list[Problem], problem: Problem) -> None:
        if where is self.problems:
            self._problems += 1
            if problem in self._seen:
                return  # an alias leads here again
            self._seen.add(problem)
        if len(where) < MAX_NOTES:
            where.append(problem)
        else:
            self.dropped += 1

    @property
    def told(self) -> int:
        """How many problems there are so far: when it has grown, what was read meanwhile is broken."""
        return self._problems

    @property
    def full(self) -> bool:
        """Whether further warnings are dropped, so that nothing dear need be worked out for them."""
        return len(self.warnings) >= MAX_NOTES


def shown(text: str) -> str:
    """A text of the file in a message: quoted, control characters escaped, not too long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def near(word: str, known: Iterable[str]) -> str:
    """The known word that is most like this one, or the empty text."""
    if len(word) > _GUESSABLE:
        return ""
    close = difflib.get_close_matches(word.lower(), tuple(known), n=1, cutoff=0.7)
    return close[0] if close else ""
