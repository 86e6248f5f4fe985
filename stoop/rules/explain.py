"""Why a rule matches an alert, or which condition fails and with what value. Pure.

Each criterion, and each condition, is asked alone of the real matcher: nothing of the language is written twice.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from stoop.alert import Alert, decimal_form
from stoop.rules.match import Hit, Resolved, accepts, compile_rule
from stoop.rules.model import PRIORITIES, Condition, MatchForm, RuleForm


class Answer(enum.StrEnum):
    """What a rule, a criterion or a condition says."""

    YES = "yes"
    NO = "no"
    NEEDS = "needs"  # a field that the alert lacks and the node may tell


class Check(msgspec.Struct, frozen=True):
    """One condition of an `output_fields` entry. `value`: the alert's, as matching sees it; None: it has no such field.

    `told`: whether the value is the node's.
    """

    condition: str
    answer: Answer
    value: str | None
    told: bool = False


class Criterion(msgspec.Struct, frozen=True):
    """One criterion that the rule asks. `wanted`: alternatives as written; `found`: what the alert has.

    `entries`: for `output_fields`, the conditions of each alternative.
    """

    name: str
    answer: Answer
    wanted: tuple[str, ...]
    found: str
    entries: tuple[tuple[Check, ...], ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    """What one rule says to one alert. `needs` and `unproven` as in `Hit`.

    `stopped_by`: an earlier rule that matches and has `continue: false`; then this one is not looked at.
    """

    rule: str
    answer: Answer
    criteria: tuple[Criterion, ...]
    needs: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    stopped_by: str = ""

    @property
    def acts(self) -> bool:
        """Whether its actions are run, or may be."""
        return self.answer is not Answer.NO and not self.stopped_by


def explain(form: RuleForm, alert: Alert, resolved: Resolved | None = None) -> Explanation:
    """Why this rule matches, or not. `resolved`: what the node told of fields that the alert lacks, if it was asked."""
    match = form.match
    criteria = [criterion for criterion in _simple(match, alert) if criterion.wanted]
    hit = compile_rule(form).test(alert, resolved)
    if match.entries:
        criteria.append(_output_fields(form, alert, resolved, hit))
    # A rule that another criterion refuses is not asked for its fields.
    refused = any(criterion.answer is Answer.NO for criterion in criteria)
    return Explanation(
        rule=form.rule,
        answer=Answer.NO if refused else _answer(hit),
        criteria=tuple(criteria),
        needs=() if refused else tuple(sorted(hit.needs)),
        unproven=() if refused else tuple(sorted(hit.unproven)),
    )


def explain_all(forms: Sequence[RuleForm], alert: Alert, resolved: Resolved | None = None) -> tuple[Explanation, ...]:
    """Every rule in order. After one that surely matches and has `continue: false` none is looked at any more."""
    explained: list[Explanation] = []
    stopped_by = ""
    for form in forms:
        explanation = explain(form, alert, resolved)
        explained.append(msgspec.structs.replace(explanation, stopped_by=stopped_by))
        if not stopped_by and explanation.answer is Answer.YES and not form.continue_:
            stopped_by = form.rule
    return tuple(explained)


def _simple(match: MatchForm, alert: Alert) -> tuple[Criterion, ...]:
    """The criteria other than `output_fields`; one that the rule does not ask has no `wanted`."""
    priority = (match.priority,) if match.priority.strip("<>= ") else ()
    known = PRIORITIES[alert.priority - 1] if alert.priority else f"{alert.priority_text!r}, below all"
    source = (match.source,) if match.source else ()
    asked = (
        ("rules", MatchForm(rules=match.rules), match.rules, alert.rule),
        ("priority", MatchForm(priorities=match.priorities), priority, known),
        ("source", MatchForm(source=match.source), source, alert.source),
        ("tags", MatchForm(tag_sets=match.tag_sets), match.tags, ", ".join(alert.tags) or "none"),
    )
    return tuple(
        Criterion(name, Answer.YES if accepts(alone, alert) else Answer.NO, wanted, found)
        for name, alone, wanted, found in asked
    )


def _output_fields(form: RuleForm, alert: Alert, resolved: Resolved | None, hit: Hit) -> Criterion:
    entries = tuple(tuple(_check(condition, alert, resolved) for condition in entry) for entry in form.match.entries)
    return Criterion("output_fields", _answer(hit), form.match.output_fields, "", entries)


def _check(condition: Condition, alert: Alert, resolved: Resolved | None) -> Check:
    alone = compile_rule(RuleForm(rule="", match=MatchForm(entries=((condition,),)), actions=()))
    hit = alone.test(alert, resolved)
    told = (resolved or {}).get(condition.key)
    # The alert's own value counts where it has one: asked without the node, the matcher needs nothing then.
    asks_node = bool(alone.test(alert).needs)
    if asks_node and told is not None:
        return Check(_written(condition), _answer(hit), told, told=True)
    value = decimal_form(alert.fields[condition.key]) if condition.key in alert.fields else None
    return Check(_written(condition), _answer(hit), value)


def _written(condition: Condition) -> str:
    """The condition as a person writes it."""
    return f"{condition.key}{'!=' if condition.negated else '='}{' or '.join(condition.values)}"


def _answer(hit: Hit) -> Answer:
    if hit.certain:
        return Answer.YES
    return Answer.NEEDS if hit.possible else Answer.NO
