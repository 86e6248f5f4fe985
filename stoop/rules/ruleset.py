"""All rules in force, found by what the alert is: the cost of an alert does not grow with the number of rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from stoop.alert import Alert
from stoop.rules.match import Rule, accepts, compile_rule
from stoop.rules.model import RuleForm

MAX_ROUTES = 2048
"""The most Falco rules whose last alert's candidates are remembered: Falco has some hundred, each with one source, one
priority and one list of tags. When it is full all are forgotten."""

MAX_ROUTE_TEXT = 2048
"""The longest text of a remembered alert, in characters, so that the memory stays below some MiB whatever is sent."""

Candidates: TypeAlias = tuple[Rule, ...]
_Route: TypeAlias = tuple[tuple[str, ...], int, str, Candidates]


class RuleSet:
    """A set of compiled rules. It does not change, but for what it remembers of alerts seen. `digest`: see Loaded."""

    __slots__ = ("_always", "_by_rule", "_by_source", "_by_tag", "_routes", "digest", "rules")

    def __init__(self, builder: Builder, digest: str = "") -> None:
        self.rules: list[Rule] = builder.rules
        self.digest = digest
        self._by_rule = builder.by_rule
        self._by_tag = builder.by_tag
        self._by_source = builder.by_source
        self._always = builder.always
        self._routes: dict[str, _Route] = {}

    @staticmethod
    def empty() -> RuleSet:
        """A set of no rules: no alert matches."""
        return Builder().finish()

    @staticmethod
    def builder() -> Builder:
        """A new builder."""
        return Builder()

    @staticmethod
    def of(forms: Iterable[RuleForm], digest: str = "") -> RuleSet:
        """A set of these rules, built at once."""
        builder = Builder()
        for form in forms:
            builder.add(form)
        return builder.finish(digest)

    def __len__(self) -> int:
        return len(self.rules)

    def route(self, alert: Alert) -> Candidates:
        """The rules, in order, for which every criterion but `output_fields` holds. `Rule.test` decides the rest."""
        known = self._routes.get(alert.rule)
        if known is not None:
            tags, priority, source, found = known
            # Compared, not hashed: what is decoded anew for each alert has no hash yet.
            if tags == alert.tags and priority == alert.priority and source == alert.source:
                return found
        return self._find(alert)

    def _find(self, alert: Alert) -> Candidates:
        places: set[int] = set(self._always)
        places.update(self._by_rule.get(alert.rule, ()), self._by_source.get(alert.source, ()))
        for tag in alert.tags:
            places.update(self._by_tag.get(tag, ()))
        rules = self.rules
        found = tuple(rules[place] for place in sorted(places) if accepts(rules[place].form.match, alert))
        if len(alert.rule) + len(alert.source) + sum(map(len, alert.tags)) + len(alert.tags) <= MAX_ROUTE_TEXT:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[alert.rule] = (alert.tags, alert.priority, alert.source, found)
        return found


class Builder:
    """Builds a RuleSet one rule at a time, so that a busy program can go on working in between.

    Each rule is found by the rarest thing it asks: a Falco rule's name, else a tag, else a source, else always.
    """

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.by_rule: dict[str, list[int]] = {}
        self.by_tag: dict[str, list[int]] = {}
        self.by_source: dict[str, list[int]] = {}
        self.always: list[int] = []

    def add(self, form: RuleForm) -> Rule:
        """Compile one rule and take it in, after those before it."""
        rule = compile_rule(form)
        place = len(self.rules)
        self.rules.append(rule)
        match = form.match
        if match.rules:
            for name in set(match.rules):
                self.by_rule.setdefault(name, []).append(place)
        elif match.tag_sets:
            for tag in {tags[0] for tags in match.tag_sets}:
                self.by_tag.setdefault(tag, []).append(place)
        elif match.source:
            self.by_source.setdefault(match.source, []).append(place)
        else:
            self.always.append(place)
        return rule

    def finish(self, digest: str = "") -> RuleSet:
        """The set. The builder must not be used afterwards: the set holds what it built."""
        return RuleSet(self, digest)
