"""A compiled rule and what it says to an alert: no, yes, or *needs these fields* before it can say.

All criteria but `output_fields` are decided by `RuleSet.route`; `Rule.test` decides that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from stoop.alert import Alert, decimal_form, text_form
from stoop.rules.model import MISSING, Condition, MatchForm, RuleForm, is_resolvable

NOTHING: frozenset[str] = frozenset()

Resolved: TypeAlias = Mapping[str, str | None]
"""What the node told of fields that the alert lacks: its value, or None where it is known to have none (a process of
the host has no pod). A field that is not in it could not be resolved."""

_ABSENT = object()


class Hit(msgspec.Struct, frozen=True):
    """What a rule says to an alert. NO and YES are single objects, so `is` tells them apart from the rest.

    `possible`: it matches, or may once `needs` are known. `certain`: it matches.
    `unproven`: fields that had to differ from a value (`!=`), of which neither the alert nor the node told anything.
    `undecided`: it does not match, and might have if something were told of these fields.
    """

    possible: bool
    certain: bool
    needs: frozenset[str] = NOTHING
    unproven: frozenset[str] = NOTHING
    undecided: frozenset[str] = NOTHING


NO = Hit(False, False)
YES = Hit(True, True)


class Rule:
    """One rule, ready to be asked. `tests_fields`: whether `test` has anything to decide."""

    __slots__ = ("_entries", "form", "tests_fields")

    def __init__(self, form: RuleForm) -> None:
        self.form = form
        self._entries = form.match.entries
        self.tests_fields = bool(self._entries)

    def __repr__(self) -> str:
        return f"Rule({self.form.rule!r})"

    def test(self, alert: Alert, resolved: Resolved | None = None) -> Hit:
        """Whether `output_fields` hold. The rule must have come from `RuleSet.route` for this alert.

        Without `resolved`, a condition on a resolvable field that the alert lacks makes it *needs*, unless the other
        conditions decide. With it, such a field has the value that it tells; where it tells none, `=` is false and
        `!=` true, and what was not even known to have none is in `unproven`.
        """
        entries = self._entries
        if not entries:
            return YES
        fields = alert.fields
        if resolved is not None:
            return _test_resolved(entries, fields, resolved)
        needs: frozenset[str] = NOTHING
        for entry in entries:
            lacking: list[str] = []
            for condition in entry:
                held = _holds(condition, fields)
                if held is None:
                    lacking.append(condition[0])
                elif not held:
                    break
            else:
                if not lacking:
                    return YES
                needs = needs.union(lacking)
        return Hit(True, False, needs) if needs else NO


def compile_rule(form: RuleForm) -> Rule:
    """The rule of a checked form; cheap, for the form holds everything as it is asked."""
    return Rule(form)


def _holds(condition: Condition, fields: Mapping[str, object]) -> bool | None:
    """Whether the alert's own value decides the condition, and how; None when the node must be asked."""
    key, negated, values = condition
    value = fields.get(key, _ABSENT)
    if type(value) is str:
        if value in MISSING and is_resolvable(key):
            return None
        return (value in values) is not negated
    if (value is None or value is _ABSENT) and is_resolvable(key):
        return None
    return _differs(value, values) is negated


def _differs(value: object, values: tuple[str, ...]) -> bool:
    """Whether a value is none of these texts. Numbers count in decimal and in Talon's exponent form."""
    if value is _ABSENT:
        return True
    return text_form(value) not in values and decimal_form(value) not in values


def _test_resolved(entries: tuple[tuple[Condition, ...], ...], fields: Mapping[str, object], resolved: Resolved) -> Hit:
    best: Hit | None = None
    undecided: set[str] = set()
    for entry in entries:
        unproven: list[str] = []
        unknown: list[str] = []
        for condition in entry:
            held = _holds(condition, fields)
            if held is None:
                held = _holds_resolved(condition, fields, resolved, unproven)
                if not held and condition[0] not in resolved:
                    unknown.append(condition[0])
                    continue
            if not held:
                break
        else:
            if unknown:
                undecided.update(unknown)
            elif not unproven:
                return YES
            elif best is None:
                best = Hit(True, True, unproven=frozenset(unproven))
    if best is not None:
        return best
    return Hit(False, False, undecided=frozenset(undecided)) if undecided else NO


def _holds_resolved(
    condition: Condition, fields: Mapping[str, object], resolved: Resolved, unproven: list[str]
) -> bool:
    """A condition on a field that the alert lacks. Where the node tells nothing, what the alert has in its place
    counts (`""`, `<NA>`, null), as in Talon."""
    key, negated, values = condition
    told = resolved.get(key)
    if told is not None:
        return (told in values) is not negated
    held = _differs(fields.get(key, _ABSENT), values) is negated
    if held and negated and key not in resolved:
        unproven.append(key)
    return held


def accepts(match: MatchForm, alert: Alert) -> bool:
    """Whether every criterion but `output_fields` holds, looked at one by one. `RuleSet.route` answers from indexes."""
    return (
        (not match.rules or alert.rule in match.rules)
        and bool(match.priorities >> alert.priority & 1)
        and (not match.source or alert.source == match.source)
        and (not match.tag_sets or any(set(tags).issubset(alert.tags) for tags in match.tag_sets))
    )
