"""The rules language: text → checked rules → predicates. Pure: names and bytes are handed in, nothing is read.

loaded = load([("rules.yaml", data)], catalogue)    raises RulesError with every problem
rules = RuleSet.of(loaded.rules)
for rule in rules.route(alert):
    hit = rule.test(alert)
"""

from stoop.rules.load import load
from stoop.rules.match import NO, YES, Hit, Resolved, Rule, compile_rule
from stoop.rules.model import (
    RESOLVABLE,
    ActionForm,
    Condition,
    Loaded,
    MatchForm,
    OutputForm,
    RuleForm,
    is_resolvable,
)
from stoop.rules.params import ParametersWrong, check_parameters, typed_parameters
from stoop.rules.ruleset import Builder, RuleSet

__all__ = [
    "NO",
    "RESOLVABLE",
    "YES",
    "ActionForm",
    "Builder",
    "Condition",
    "Hit",
    "Loaded",
    "MatchForm",
    "OutputForm",
    "ParametersWrong",
    "Resolved",
    "Rule",
    "RuleForm",
    "RuleSet",
    "check_parameters",
    "compile_rule",
    "is_resolvable",
    "load",
    "typed_parameters",
]
