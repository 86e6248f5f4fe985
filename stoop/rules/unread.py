"""What could not be read of the rules files, so that nothing is called missing that may stand there."""

from __future__ import annotations

import re

MAX_SEARCHES = 200
"""The most names that are looked for: each costs up to some ms in a file of the largest size. Further ones count as
named."""

_WORDS = re.compile(r"\w+")


class Unread:
    """Texts that could not be read as rules and actions. `everything`: files are not even at hand."""

    def __init__(self, everything: bool = False) -> None:
        self._everything = everything
        self._texts: list[str] = []
        self._answers: dict[tuple[str, str], bool] = {}

    def add(self, text: str) -> None:
        """A text that could not be read. Must come before the first question."""
        self._texts.append(_folded(text))

    def names(self, kind: str, name: str) -> bool:
        """Whether the rule or action (`kind`) of this name may be defined there: the words stand there in a row."""
        if self._everything:
            return True
        if not self._texts:
            return False
        asked = kind, name
        if asked not in self._answers:
            if len(self._answers) >= MAX_SEARCHES:
                return True
            self._answers[asked] = any(_folded(f"{kind} {name}") in text for text in self._texts)
        return self._answers[asked]


def _folded(text: str) -> str:
    """The words alone: quotes, escapes, line breaks and indentation may differ from how the name reads elsewhere."""
    return f" {' '.join(_WORDS.findall(text))} "
