"""Merged definitions → finished forms, with everything that is wrong with them told.

Talon's order: the structure of all rules first, then what the catalogue says of their actions and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Unpack

from stoop.podmeta import is_metadata
from stoop.rules.criteria import condition_of, is_balanced, is_tag, pieces_of, priority_mask, tags_of
from stoop.rules.items import MATCH_KEYS, RULE_KEYS, advice_on
from stoop.rules.model import ANY_PRIORITY, ActionForm, Condition, MatchForm, OutputForm, RuleForm
from stoop.rules.notes import More, Notes, near, shown
from stoop.rules.params import check_parameters, find_unknown, is_given, parameter_names
from stoop.rules.raw import Place, RawAction, RawMatch, RawParameters, RawRule, Text
from stoop.rules.scalars import Timestamp
from stoop.rules.unread import Unread
from stoop.spec import (
    ActionSpec,
    Catalogue,
    OutputUse,
    ParameterFault,
    Spec,
)

MAX_ASKED = 500
"""The most names, tags and conditions of one rule: the reflex must decode and take in a rule within 200 µs."""

MAX_STEPS = 100
"""The most actions of one rule: an alert runs them in turn, each under a deadline of seconds."""

_LISTABLE = 8
"""How many names fit into a hint."""

_METADATA_HINT = (
    "set pods.source in stoop.yaml: watch or kubelet, or falco where Falco itself puts this field into its alerts"
)

_LITERALS = {"true": True, "false": False}
_LOCAL_FILES = frozenset({"kubernetes:script"})
_FORMER_NAMES = {"kubernetes:labelize": "kubernetes:label"}
_FORMER_PARAMETERS = {"allow": "allow_cidr"}


class Checker:
    """Checks rules one by one against a catalogue; `structure` of all of them first, then `finish` of each."""

    def __init__(
        self, catalogue: Catalogue, notes: Notes, unread: Unread, exists: Callable[[str], bool] | None = None
    ) -> None:
        self._notes = notes
        self._unread = unread
        self._exists = exists
        self._catalogue = catalogue
        self._actionners = {
            name: action.spec
            for action in catalogue.actions.values()
            for name in (action.spec.name, *action.spec.aliases)
        }

    def _is_open(self, definition: RawRule | RawAction, key: str) -> bool:
        """Whether what stands at this key is not known, because it, or more of the definition, could not be read."""
        kind = "rule" if isinstance(definition, RawRule) else "action"
        return not definition.broken.isdisjoint((key, kind)) or self._unread.names(kind, definition.name.text)

    # ------------------------------------------------------------ structure

    def structure(self, rule: RawRule) -> MatchForm:
        """Keywords, names, criteria. Gives the compiled criteria; what is wrong in them is told and left out."""
        tell = _Teller(self._notes, rule.name.text)
        tell.literal("continue-value", "continue", rule.continue_)
        tell.literal("dry-run-value", "dry_run", rule.dry_run)
        tell.literal("allow-host-value", "allow_host", rule.allow_host)
        tell.literal("match-all-value", "match_all", rule.match_all)
        tell.literal("evidence-first-value", "evidence_first", rule.evidence_first)
        if not rule.actions and not self._is_open(rule, "actions"):
            tell.problem("no-action", "the rule has no action", rule.place, hint="give it actions: [{action: NAME}]")
        if len(rule.actions) > MAX_STEPS:
            tell.problem("rule-limit", f"the rule has more than {MAX_STEPS} actions", rule.place)
        for step in rule.actions:
            self._step_structure(_Teller(self._notes, rule.name.text, step.name.text), step)
        return _match(tell, rule)

    def _step_structure(self, tell: _Teller, step: RawAction) -> None:
        if not step.name and "action" not in step.broken:
            tell.problem("action-no-name", "the action has no name", step.place, hint="write '- action: NAME'")
        actionner = step.actionner
        if actionner:
            if not _has_actionner_form(actionner.text):
                message = f"the actionner must be CATEGORY:NAME in lower-case letters, not {shown(actionner.text)}"
                tell.problem("actionner-form", message, actionner.place, detail=actionner.text)
        elif not self._is_open(step, "actionner"):
            hint = "write actionner: CATEGORY:NAME, or define an action of this name at the top level"
            tell.problem("actionner-missing", "the action has no actionner", step.place, hint=hint)
        tell.literal("continue-value", "continue", step.continue_)
        tell.literal("ignore-errors-value", "ignore_errors", step.ignore_errors)
        if step.target and not step.output.values and not self._is_open(step, "output"):
            message = f"output {shown(step.target.text)} has no parameters"
            tell.problem("output-no-parameters", message, step.target.place, hint="give output.parameters")

    # ------------------------------------------------------------ what the catalogue says

    def finish(self, rule: RawRule, match: MatchForm, index: int) -> RuleForm:
        """Actionners, outputs and their parameters. What is returned counts only when nothing was told."""
        name = rule.name.text
        steps = tuple(self._step(_Teller(self._notes, name, step.name.text), step) for step in rule.actions)
        form = RuleForm(
            rule=name,
            match=match,
            actions=steps,
            index=index,
            description=rule.description.text,
            continue_=rule.continue_.text != "false",
            dry_run=rule.dry_run.text == "true",
            notifiers=_plain(rule.notifiers),
            allow_host=rule.allow_host.text == "true",
            match_all=rule.match_all.text == "true",
            evidence_first=rule.evidence_first.text == "true" if rule.evidence_first else None,
        )
        tell = _Teller(self._notes, name)
        self._check_breadth(tell, rule, form)
        for notifier in rule.notifiers:
            if notifier.text not in self._catalogue.notifiers and not self._notes.full:
                message = f"unknown notifier {shown(notifier.text)} is ignored"
                hint = _guess(notifier.text, self._catalogue.notifiers)
                tell.warn("notifier-unknown", message, notifier.place, detail=notifier.text, hint=hint)
        return form

    def _check_breadth(self, tell: _Teller, rule: RawRule, form: RuleForm) -> None:
        if form.match_all or not form.match.is_everything:
            return
        specs = [(step, self._actionners.get(step.actionner)) for step in form.actions]
        destroyer = next((step for step, spec in specs if spec is not None and spec.destroys), None)
        if destroyer is None or "match_all" in rule.broken or self._is_open(rule, "match"):
            return
        stray = rule.match.unknown or rule.unknown
        why = f", for it knows no key {shown(stray[0].text)}" if stray else ""
        message = f"the rule matches every alert{why}, and {destroyer.actionner} destroys"
        advice = advice_on(stray[0].text, MATCH_KEYS if rule.match.unknown else RULE_KEYS) if stray else ""
        meant = f"{advice}{'' if advice.endswith('?') else ';'} if not, " if advice else ""
        hint = f"{meant}give it a match, or match_all: true when every alert is meant"
        tell.problem("match-all", message, stray[0].place if stray else rule.place, hint=hint)

    def _step(self, tell: _Teller, step: RawAction) -> ActionForm:
        spec = self._actionners.get(step.actionner.text)
        if spec is None:
            self._tell_unknown(tell, step.actionner)
        else:
            self._check_values(tell, spec, step, "parameters")
            self._check_script(tell, spec, step)
        output = self._output(tell, spec, step)
        default = spec is None or spec.continue_default
        return ActionForm(
            action=step.name.text,
            actionner=spec.name if spec else step.actionner.text,
            continue_=_LITERALS.get(step.continue_.text, default),
            description=step.description.text,
            parameters=_portable(step.parameters.values),
            output=output,
            ignore_errors=step.ignore_errors.text == "true",
            additional_contexts=_plain(step.contexts),
        )

    def _check_script(self, tell: _Teller, spec: ActionSpec, step: RawAction) -> None:
        """Talon reads a script's file from its own disk and wants it there when rules are loaded."""
        path = step.parameters.values.get("file") if spec.name in _LOCAL_FILES and self._exists is not None else None
        if isinstance(path, str) and path and self._exists is not None and not self._exists(path):
            message = f"the script's file {shown(path)} does not exist"
            tell.problem("script-file-missing", message, step.parameters.places.get("file", step.place))

    def _tell_unknown(self, tell: _Teller, actionner: Text) -> None:
        if not _has_actionner_form(actionner.text):
            return  # told before
        former = _FORMER_NAMES.get(actionner.text)
        hint = f"it is called {former} now" if former else _guess(actionner.text, self._actionners)
        message = f"unknown actionner {shown(actionner.text)}"
        tell.problem("actionner-unknown", message, actionner.place, detail=actionner.text, hint=hint)

    def _output(self, tell: _Teller, spec: ActionSpec | None, step: RawAction) -> OutputForm | None:
        target = step.target
        if not target:
            if spec is not None and spec.output is OutputUse.REQUIRED and not self._is_open(step, "output"):
                known = ", ".join(self._catalogue.outputs)
                message = f"{spec.name} needs an output"
                tell.problem("output-required", message, step.place, hint=f"give output.target, one of {known}")
            return None
        output = self._catalogue.outputs.get(target.text)
        if output is None:
            hint = _guess(target.text, self._catalogue.outputs)
            message = f"unknown output {shown(target.text)}"
            tell.problem("output-unknown", message, target.place, detail=target.text, hint=hint)
        elif step.output.values:  # else told before
            self._check_values(tell, output, step, "output")
        return OutputForm(target.text, _portable(step.output.values))

    def _check_values(self, tell: _Teller, spec: Spec, step: RawAction, key: str) -> None:
        parameters, place = (step.output, step.target.place) if key == "output" else (step.parameters, step.place)
        _, faults = check_parameters(spec, parameters.values)
        for fault in faults:
            if is_given(parameters.values, fault.parameter) or not self._is_open(step, key):
                at = _place_of(parameters, fault, place)
                tell.problem(fault.code, fault.message, at, detail=fault.parameter)
        _warn_unknown(tell, spec, parameters, place)


class _Teller:
    """Tells of one rule or of one of its actions."""

    def __init__(self, notes: Notes, rule: str, action: str = "") -> None:
        self.notes = notes
        self._whom: More = {"rule": rule, "action": action}

    def problem(self, code: str, message: str, place: Place, **more: Unpack[More]) -> None:
        whole: More = {**self._whom, **more}
        self.notes.problem(code, message, place, **whole)

    def warn(self, code: str, message: str, place: Place, **more: Unpack[More]) -> None:
        whole: More = {**self._whom, **more}
        self.notes.warn(code, message, place, **whole)

    def metadata(self, field: str, place: Place) -> None:
        """A condition on what only a pod's metadata tells."""
        whole: More = {**self._whom, "detail": field, "hint": _METADATA_HINT}
        self.notes.metadata_asked(field, place, **whole)

    def literal(self, code: str, key: str, text: Text) -> None:
        """A keyword: exactly true or false, quoted or not."""
        if text and text.text not in _LITERALS:
            message = f"{key} must be true or false, not {shown(text.text)}"
            self.problem(code, message, text.place, detail=text.text, hint="in lower case: true or false")


def _has_actionner_form(text: str) -> bool:
    """As Talon asks: not anchored, so what stands before and after does not count."""
    return re.search(r"[a-z]:[a-z]", text) is not None


def _match(tell: _Teller, rule: RawRule) -> MatchForm:
    match = rule.match
    if len(match.rules) + sum(entry.text.count(",") + 1 for entry in match.tags + match.output_fields) > MAX_ASKED:
        tell.problem("rule-limit", f"match asks more than {MAX_ASKED} things", rule.place, hint="make two rules of it")
        return MatchForm(priorities=0)
    mask = _priorities(tell, match)
    tag_sets = tuple(_tags(tell, entry) for entry in match.tags)
    entries = tuple(_entry(tell, entry) for entry in match.output_fields)
    return MatchForm(
        rules=_plain(match.rules),
        output_fields=_plain(match.output_fields),
        priority=match.priority.text,
        source=match.source.text,
        tags=_plain(match.tags),
        priorities=mask,
        tag_sets=tag_sets,
        entries=entries,
    )


def _priorities(tell: _Teller, match: RawMatch) -> int:
    text, place = match.priority
    mask = priority_mask(text)
    if mask is None:
        hint = "write Informational" if text.lower().lstrip("<>=") == "info" else "such as Warning or '>=Warning'"
        tell.problem("priority", f"unknown priority {shown(text)}", place, detail=text, hint=hint)
    elif text and mask == ANY_PRIORITY:
        tell.warn("priority", f"priority {shown(text)} names none: it takes every alert", place, hint="name one")
    return mask or 0


def _tags(tell: _Teller, entry: Text) -> tuple[str, ...]:
    tags = tags_of(entry.text)
    for tag in tags:
        if not is_tag(tag):
            message = f"{shown(tag)} is no tag" if tag else "a tag is empty"
            hint = "letters, digits, '_', '.' and '-', the last one a letter or digit"
            tell.problem("tag", message, entry.place, detail=tag, hint=hint)
    return tags


def _entry(tell: _Teller, entry: Text) -> tuple[Condition, ...]:
    found = []
    for piece in pieces_of(entry.text):
        condition = condition_of(piece)
        if condition is None:
            _tell_no_condition(tell, piece, entry)
            continue
        found.append(condition)
        if is_metadata(condition.key):
            tell.metadata(condition.key, entry.place)
        if not condition.key or not is_balanced(condition.key):
            message = f"no alert has a field {shown(condition.key)}, so this condition is always " + (
                "true" if condition.negated else "false"
            )
            tell.warn("field-key", message, entry.place, detail=piece)
    return tuple(found)


def _tell_no_condition(tell: _Teller, piece: str, entry: Text) -> None:
    hint = "write FIELD=VALUE or FIELD!=VALUE, without blanks round the operator"
    if "," in entry.text and "=" not in piece:
        hint = 'put double quotes round a value with commas: FIELD="A, B"'
    elif any(sign in piece for sign in "<>"):
        hint = "only = and != can be used"
    message = f"{shown(piece)} is no condition" if piece else "a condition is empty"
    tell.problem("field-key", message, entry.place, detail=piece, hint=hint)


def _warn_unknown(tell: _Teller, spec: Spec, parameters: RawParameters, place: Place) -> None:
    for name in find_unknown(spec, parameters.values):
        if tell.notes.full:
            return
        known = parameter_names(spec)
        renamed = _FORMER_PARAMETERS.get(name, "")
        guess = renamed if renamed in known else near(name, known)
        hint = f"did you mean {guess}?" if guess else f"it takes: {', '.join(known) or 'none'}"
        message = f"{spec.name} has no parameter {shown(name)}: it is ignored"
        tell.warn("parameter-unknown", message, parameters.places.get(name, place), detail=name, hint=hint)


def _place_of(parameters: RawParameters, fault: ParameterFault, default: Place) -> Place:
    places = (place for name, place in parameters.places.items() if name.lower() == fault.parameter)
    return next(places, default)


def _guess(word: str, known: Iterable[str]) -> str:
    names = tuple(known)
    guess = near(word, names)
    if guess:
        return f"did you mean {guess}?"
    return f"known: {', '.join(names)}" if len(names) <= _LISTABLE else "`stoop actions list` names them"


def _plain(texts: Iterable[Text]) -> tuple[str, ...]:
    return tuple(text.text for text in texts)


def _portable(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters as they go over the wire: times become RFC 3339 texts, in keys too."""
    return {name: _portable_value(value) for name, value in values.items()}


def _portable_value(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.text
    if isinstance(value, list):
        return [_portable_value(item) for item in value]
    if isinstance(value, dict):
        return {_portable_value(key): _portable_value(item) for key, item in value.items()}
    return value
