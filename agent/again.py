"""Acts of which nobody knows whether they were carried out: their agent was killed between the plan and the act.

Each is recorded as failed. When its alert comes again, from a followed file or a sender that repeats, it may be tried
once more if doing it twice is doing it once (`spec.repeatable`). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stoop.engine import act_id
from stoop.record import Record
from stoop.rules import typed_parameters
from stoop.rules.model import RuleForm
from stoop.spec import (
    Catalogue,
    repeatable,
)


def may_be_tried_again(records: Collection[Record], rules: Iterable[RuleForm], catalogue: Catalogue) -> list[Record]:
    """Those of these acts that the rules of now still ask for in the same place, and that may be repeated."""
    names = {record.rule for record in records}
    found: list[Record] = []
    for form in rules:
        if form.rule in names:
            found += (record for record in records if record.rule == form.rule and _may(record, form, catalogue))
    return found


def _may(record: Record, form: RuleForm, catalogue: Catalogue) -> bool:
    for index, step in enumerate(form.actions):
        if act_id(record.run, index) == record.act and step.actionner == record.actionner:
            spec = catalogue.actions[step.actionner].spec
            return repeatable(spec, typed_parameters(spec, step.parameters))
    return False
