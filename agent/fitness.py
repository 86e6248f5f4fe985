"""What can't be done on this node, and which rules would need it: said when rules are taken, and in `stoop status`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stoop.rules import RuleSet

Unavailable = Callable[[], Mapping[str, str]]
"""By actionner, or by category with its colon (`network:`): why it can't be done here."""


class Fitness:
    """Compares what rules need (actions, outputs) with what the node has.

    `say` gets a warning and its fields, once a rule and reason.
    """

    def __init__(self, unavailable: Unavailable, actionners: Iterable[str], say: Callable[..., None]) -> None:
        self._unavailable = unavailable
        self._actionners = tuple(actionners)
        self._say = say
        self._rules: dict[str, list[str]] = {}
        self._said: set[tuple[str, str, str]] = set()

    def use(self, rules: RuleSet) -> None:
        """The rules of now."""
        self._rules, self._said = {}, set()
        for rule in rules.rules:
            actions = rule.form.actions
            outputs = [step.output.target for step in actions if step.output is not None]
            for actionner in dict.fromkeys([*(step.actionner for step in actions), *outputs]):
                self._rules.setdefault(actionner, []).append(rule.form.rule)
        self.tell()

    def tell(self) -> None:
        """Say what rules need and can't have, unless it was said."""
        for actionner, reason in self.reasons().items():
            for rule in self._rules.get(actionner, ()):
                if (actionner, rule, reason) not in self._said:
                    self._said.add((actionner, rule, reason))
                    self._say("a rule needs what can't be done here", rule=rule, actionner=actionner, reason=reason)

    def reasons(self) -> dict[str, str]:
        """Why not, by actionner; those that can be done, or of which it is not known yet, are left out."""
        why = self._unavailable()
        found = {name: why.get(name) or why.get(f"{name.partition(':')[0]}:", "") for name in self._actionners}
        return {name: reason for name, reason in found.items() if reason}

    def status(self) -> dict[str, Any]:
        """For `stoop status`: by actionner, the reason and the rules that need it."""
        return {name: {"reason": reason, "rules": self._rules.get(name, [])} for name, reason in self.reasons().items()}
