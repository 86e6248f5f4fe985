"""The text of match criteria → what they ask: priorities, tags, conditions on output fields.

Talon's grammar, with what its authors plainly meant where Talon does something else (docs/talon.md, "Matching"):
the first operator of a condition counts, a quoted value may hold commas, keys may hold `_`, `-` and `/`, tags `-`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator

from stoop.rules.model import ANY_PRIORITY, PRIORITIES, Condition

# What Go takes for [a-z] in any case: `ſ` and the Kelvin sign fold to s and k. Python's IGNORECASE has İ and ı besides.
_LETTERS = "a-zA-Zſ\u212a"
_PRIORITY = re.compile(r"([<>]?=?)(.*)", re.DOTALL)
_TAG = re.compile(rf"[{_LETTERS}0-9_.-]*[{_LETTERS}0-9]")
_KEY = rf"[{_LETTERS}0-9._/\[\]-]*"
_CONDITION = re.compile(rf"({_KEY})(!?=)")
_QUOTED = re.compile(rf'{_KEY}!?="[^"]*"(?=,|$)')

_COMPARISONS = {
    "": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def priority_mask(text: str) -> int | None:
    """The priorities that `>=Warning` and the like accept, bit n for priority n; None when the text is none.

    A comparison without a name, and no text at all, accept every priority.
    """
    match = _PRIORITY.fullmatch(text)
    assert match is not None  # it takes any text
    compare, name = _COMPARISONS[match[1]], match[2].lower()
    if not name:
        return ANY_PRIORITY
    if name not in PRIORITIES:
        return None
    level = PRIORITIES.index(name) + 1
    return sum(1 << priority for priority in range(len(PRIORITIES) + 1) if compare(priority, level))


def tags_of(entry: str) -> tuple[str, ...]:
    """The tags of one entry, all of which an alert must have. Blanks don't count."""
    return tuple(entry.replace(" ", "").split(","))


def is_tag(text: str) -> bool:
    """Whether a tag can be written in a rule."""
    return _TAG.fullmatch(text) is not None


def pieces_of(entry: str) -> Iterator[str]:
    """The conditions of one entry as texts: split at commas outside quoted values, one blank after each cut off."""
    start = 0
    while True:
        quoted = _QUOTED.match(entry, start)
        comma = entry.find(",", quoted.end() if quoted else start)
        if comma < 0:
            yield entry[start:]
            return
        yield entry[start:comma]
        start = comma + 1 + entry.startswith(" ", comma + 1)


def condition_of(piece: str) -> Condition | None:
    """One condition, or None when the text is none. Everything after the first operator is the value.

    A value in double quotes is taken without them. Talon drops every quote of a value, so a value with quotes inside
    is met both with and without them.
    """
    match = _CONDITION.match(piece)
    if match is None:
        return None
    value = piece[match.end() :]
    values = {value.replace('"', ""): None}
    is_enclosed = len(value) >= 2 and value[0] == value[-1] == '"'
    values[value[1:-1] if is_enclosed else value] = None
    return Condition(match[1], match[2] == "!=", tuple(values))


def is_balanced(key: str) -> bool:
    """Whether the brackets of a field's key are closed and not nested: Falco's `proc.aname[2]`."""
    return re.fullmatch(r"[^\[\]]*(\[[^\[\]]*\])?[^\[\]]*", key) is not None
