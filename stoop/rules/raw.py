"""Definitions as they stand in the files: typed, with their places, not yet merged and not yet checked.

They are the only mutable values of the rules language: merging folds later definitions into earlier ones.

`broken` are the keys below which something could not be read (and was told): what seems to be missing may stand there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where something stands; line and column from 1."""

    file: str = ""
    line: int = 0
    column: int = 0


class Text(NamedTuple):
    """A scalar as written, with its place. Empty counts as not given, as in Talon."""

    text: str = ""
    place: Place = Place()

    def __bool__(self) -> bool:
        return bool(self.text)


NO_TEXT = Text()


@dataclass(slots=True, eq=False)
class RawParameters:
    """A `parameters` map: values of any YAML type by name, and the place of each name."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    given: bool = False

    def copy(self) -> RawParameters:
        """A copy whose own entries can be changed."""
        return RawParameters(dict(self.values), dict(self.places), self.given)


@dataclass(slots=True, eq=False)
class RawAction:
    """An action definition: at the top level, or a step of a rule."""

    place: Place
    name: Text = NO_TEXT
    description: Text = NO_TEXT
    actionner: Text = NO_TEXT
    continue_: Text = NO_TEXT
    ignore_errors: Text = NO_TEXT
    contexts: list[Text] = field(default_factory=list)
    parameters: RawParameters = field(default_factory=RawParameters)
    target: Text = NO_TEXT
    output: RawParameters = field(default_factory=RawParameters)
    broken: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class RawMatch:
    """The criteria of a rule. `unknown`: keys that mean nothing here."""

    rules: list[Text] = field(default_factory=list)
    output_fields: list[Text] = field(default_factory=list)
    priority: Text = NO_TEXT
    source: Text = NO_TEXT
    tags: list[Text] = field(default_factory=list)
    unknown: list[Text] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class RawRule:
    """A rule. `unknown`: keys that mean nothing here."""

    place: Place
    name: Text = NO_TEXT
    description: Text = NO_TEXT
    continue_: Text = NO_TEXT
    dry_run: Text = NO_TEXT
    allow_host: Text = NO_TEXT
    match_all: Text = NO_TEXT
    evidence_first: Text = NO_TEXT
    notifiers: list[Text] = field(default_factory=list)
    actions: list[RawAction] = field(default_factory=list)
    match: RawMatch = field(default_factory=RawMatch)
    unknown: list[Text] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
