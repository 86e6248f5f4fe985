"""Files → checked rules: read, merge, check. Pure: whoever calls has read the files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from stoop.errors import Problem, RulesError
from stoop.rules.check import Checker
from stoop.rules.items import Items
from stoop.rules.merge import inherit, merge_actions, merge_rules
from stoop.rules.model import Loaded, RuleForm
from stoop.rules.notes import MAX_NOTES, Notes
from stoop.rules.raw import RawAction, RawRule
from stoop.rules.unread import Unread
from stoop.spec import (
    Catalogue,
)

MAX_FILES = 200
"""The most rules files of one load."""


def load(
    files: Sequence[tuple[str, bytes]],
    catalogue: Catalogue,
    exists: Callable[[str], bool] | None = None,
    *,
    is_partial: bool = False,
) -> Loaded:
    """The rules of these files, (name, content) in the order of merging, checked against the catalogue.

    `exists` tells whether a path names a file where the actions will look for it (a script's); without it that is not
    checked, for looking is not this module's business.

    Raises RulesError with every problem found, each with its place: first what is no YAML or of a wrong type, then the
    structure of all rules, then what the catalogue says of them. Nothing is called missing that may stand in what could
    not be read; with `is_partial`, that other files could not be read at all. Nothing else escapes, whatever the bytes
    are.
    """
    notes = Notes()
    unread = Unread(everything=is_partial)
    items = Items(notes, unread)
    if len(files) > MAX_FILES:
        raise RulesError([Problem("yaml-limit", f"more than {MAX_FILES} rules files", hint="join some")])
    for name, data in files:
        items.read(name, data)
    rules = merge_rules(items.rules)
    _extend(rules, merge_actions(items.actions, notes), notes)
    checker = Checker(catalogue, notes, unread, exists)
    matches = [checker.structure(rule) for rule in rules]
    forms = tuple(
        checker.finish(rule, match, index) for index, (rule, match) in enumerate(zip(rules, matches, strict=True))
    )
    if notes.problems:
        raise RulesError(_told(notes), notes.warnings)
    return Loaded(forms, tuple(notes.warnings), _digest(forms), tuple(notes.metadata))


def _extend(rules: list[RawRule], actions: dict[str, RawAction], notes: Notes) -> None:
    """Give each rule's actions what they inherit."""
    for rule in rules:
        rule.actions = [
            inherit(rule.name.text, step, actions[step.name.text], notes) if step.name.text in actions else step
            for step in rule.actions
        ]


def _told(notes: Notes) -> list[Problem]:
    if not notes.dropped:
        return notes.problems
    message = f"and {notes.dropped} more problems or warnings beyond the first {MAX_NOTES}"
    return [*notes.problems, Problem("too-many", message)]


def _digest(forms: tuple[RuleForm, ...]) -> str:
    """Names what the rules mean: comments, layout and the split into files don't count."""
    return hashlib.blake2b(msgspec.msgpack.encode(forms), digest_size=16).hexdigest()
