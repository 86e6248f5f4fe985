"""Definitions of one name become one: top-level actions, then rules, then what a rule's action inherits.

The order is Talon's. Where Talon is plainly not doing what a file's author meant, this does (docs/talon.md, "Merging"):
a rule's own map entries beat inherited ones, `priority`, `source` and `output.target` are overridden only when given
and then are, a list that only an override brings stays a list, and two rules never share a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stoop.rules.notes import Notes, shown
from stoop.rules.raw import Place, RawAction, RawParameters, RawRule
from stoop.rules.scalars import Timestamp


def kind(value: Any) -> str:
    """The kind of a value as merging tells them apart: an integer and a float are different kinds, as in Talon."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer" if value < 2**63 else "a huge integer"
    names = {float: "a float", str: "a text", list: "a list", dict: "a mapping", Timestamp: "a time"}
    return names.get(type(value), "null")


def merge_actions(definitions: Iterable[RawAction], notes: Notes) -> dict[str, RawAction]:
    """Top-level actions by name. The first keeps its place, later ones are folded into it."""
    merged: dict[str, RawAction] = {}
    for definition in definitions:
        first = merged.setdefault(definition.name.text, definition) if definition.name else definition
        if first is not definition:
            _fold_action(first, definition, notes)
    return merged


def _fold_action(first: RawAction, later: RawAction, notes: Notes) -> None:
    first.description = later.description or first.description
    first.actionner = later.actionner or first.actionner
    first.continue_ = later.continue_ or first.continue_
    first.ignore_errors = later.ignore_errors or first.ignore_errors
    first.target = later.target or first.target
    first.contexts = first.contexts + later.contexts
    first.broken |= later.broken
    _override(first.parameters, later.parameters, notes)
    _override(first.output, later.output, notes)


def _override(first: RawParameters, later: RawParameters, notes: Notes) -> None:
    """Later scalars win, lists are appended, maps are merged entry by entry and the later entry wins."""
    first.given = first.given or later.given
    for name, value in later.values.items():
        own = first.values.get(name)
        place = later.places[name]
        if value is None or _is_odd_map(name, own, value, place, notes):
            continue
        if own is not None and kind(own) != kind(value):
            message = f"parameter {shown(name)}: {kind(own)} stays, {kind(value)} in a later definition is ignored"
            notes.warn("param-kind-mismatch", message, place, detail=name)
            continue
        first.places[name] = place
        if isinstance(value, list):
            first.values[name] = (own or []) + value
        elif isinstance(value, dict):
            if value:
                first.values[name] = {**(own or {}), **value}
        else:
            first.values[name] = value


def merge_rules(definitions: Iterable[RawRule]) -> list[RawRule]:
    """Rules in order. The first of a name keeps its place, later ones are folded into it; lists are appended."""
    merged: dict[str | Place, RawRule] = {}
    for definition in definitions:
        # One whose name could not be read is none other's.
        first = merged.setdefault(definition.name.text or definition.place, definition)
        if first is not definition:
            _fold_rule(first, definition)
    return list(merged.values())


def _fold_rule(first: RawRule, later: RawRule) -> None:
    first.description = later.description or first.description
    first.continue_ = later.continue_ or first.continue_
    first.dry_run = later.dry_run or first.dry_run
    first.allow_host = later.allow_host or first.allow_host
    first.match_all = later.match_all or first.match_all
    first.evidence_first = later.evidence_first or first.evidence_first
    first.notifiers.extend(later.notifiers)
    first.actions.extend(later.actions)
    first.unknown.extend(later.unknown)
    first.broken |= later.broken
    match, other = first.match, later.match
    match.priority = other.priority or match.priority
    match.source = other.source or match.source
    match.rules.extend(other.rules)
    match.output_fields.extend(other.output_fields)
    match.tags.extend(other.tags)
    match.unknown.extend(other.unknown)


def inherit(rule: str, step: RawAction, base: RawAction, notes: Notes) -> RawAction:
    """A rule's action with what it leaves open taken from the top-level action of its name. Changes neither."""
    return RawAction(
        step.place,
        name=step.name,
        description=step.description or base.description,
        actionner=step.actionner or base.actionner,
        continue_=step.continue_ or base.continue_,
        ignore_errors=step.ignore_errors or base.ignore_errors,
        contexts=step.contexts or base.contexts,
        parameters=_inherited(rule, step, step.parameters, base.parameters, notes),
        target=step.target or base.target,
        output=_inherited(rule, step, _own_output(rule, step, base, notes), base.output, notes),
        broken=step.broken | base.broken,
    )


def _own_output(rule: str, step: RawAction, base: RawAction, notes: Notes) -> RawParameters:
    """The step's own output parameters. Talon dies when it has none and inherits a list or a map: told, not loaded."""
    if not step.output.given and "output" not in step.broken:
        for name, value in base.output.values.items():
            if isinstance(value, list | dict) and value:
                message = f"output parameter {shown(name)} can't be inherited: no output takes {kind(value)}"
                place = base.output.places[name]
                notes.problem("param-type", message, place, rule=rule, action=step.name.text, detail=name)
    return step.output


def _inherited(rule: str, step: RawAction, own: RawParameters, base: RawParameters, notes: Notes) -> RawParameters:
    """Own scalars win; lists: the inherited items, then the own ones; maps: merged, the own entry wins."""
    result = own.copy()
    for name, value in base.values.items():
        mine = own.values.get(name)
        place = base.places[name]
        if value is None or _is_odd_map(name, mine, value, place, notes):
            continue
        if mine is None:
            if value or not isinstance(value, dict):
                result.values[name], result.places[name] = value, place
        elif kind(mine) != kind(value):
            message = f"parameter {shown(name)}: {kind(mine)} stays, {kind(value)} is not inherited"
            at = own.places[name]
            notes.warn("param-kind-mismatch", message, at, rule=rule, action=step.name.text, detail=name)
        elif isinstance(value, list):
            result.values[name] = value + mine
        elif isinstance(value, dict):
            result.values[name] = {**value, **mine}
    return result


def _is_odd_map(name: str, own: Any, value: Any, place: Place, notes: Notes) -> bool:
    """Tell of maps that are to be merged and have keys other than texts: Talon dies of them."""
    maps = [part for part in (own, value) if isinstance(part, dict)] if isinstance(value, dict) else []
    odd = [key for part in maps for key in part if not isinstance(key, str)]
    if odd:
        message = f"parameter {shown(name)}: the keys of a map that is merged must be texts, not {kind(odd[0])}"
        notes.problem("param-type", message, place, detail=name, hint=f"put quotes round the key: '{odd[0]}'")
    return bool(odd)
