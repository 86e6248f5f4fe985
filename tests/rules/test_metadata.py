"""Rules that ask for labels, annotations and owners: needed when the alert lacks them, and told with their places."""

from __future__ import annotations

import msgspec

from stoop.catalogue import CATALOGUE
from stoop.rules import NO, YES, Hit, is_resolvable, load
from stoop.rules.model import Loaded
from tests.rules.conftest import MakeAlert
from tests.rules.test_match import RuleOf, rule_of

__all__ = ["rule_of"]

APP = "k8s.pod.label[app]"

RULES = b"""\
- rule: One
  match:
    output_fields:
      - "k8s.pod.label[app]=web, proc.name=sh"
      - k8s.ns.name!=kube-system, k8s.deployment.name!=db
  actions: [{action: Kill it, actionner: "process:kill"}]
- rule: Two
  match: {rules: [Shell], output_fields: ["k8s.ns.name=shop"]}
  actions: [{action: Kill it, actionner: "process:kill"}]
"""


def test_it_is_needed_when_the_alert_lacks_it(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    assert is_resolvable(APP)
    for fields in ({}, {APP: None}, {APP: ""}, {APP: "<NA>"}):
        for entry in (f"{APP}=web", f"{APP}!=web"):
            assert rule_of(entry).test(make_alert(fields)) == Hit(True, False, needs=frozenset({APP}))
    assert rule_of(f"{APP}=web").test(make_alert({APP: "web"})) is YES
    assert rule_of(f"{APP}!=web").test(make_alert({APP: "web"})) is NO


def test_another_alternative_that_holds_needs_nothing(rule_of: RuleOf, make_alert: MakeAlert) -> None:
    alert = make_alert({"p": "sh"})
    assert rule_of(f"{APP}=web", "p=sh").test(alert, {}) is YES
    assert rule_of(f"{APP}=web", "p=zsh").test(alert, {}) == Hit(False, False, undecided=frozenset({APP}))
    assert rule_of(f"{APP}=web, p=zsh").test(alert, {}) is NO
    hit = rule_of(f"{APP}=web", "k8s.ns.name!=x").test(alert, {})
    assert hit == Hit(True, True, unproven=frozenset({"k8s.ns.name"}))


def test_each_condition_is_told_with_its_place() -> None:
    loaded = load([("rules.yaml", RULES)], CATALOGUE)
    assert loaded.warnings == ()
    assert list(map(str, loaded.metadata)) == [
        f"rules.yaml:{line}:9: rule 'One': '{field}' is of a pod's metadata, which nothing tells here "
        "(set pods.source in stoop.yaml: watch or kubelet, or falco where Falco itself puts this field into its alerts)"
        for line, field in ((4, APP), (5, "k8s.deployment.name"))
    ]


def test_many_are_bounded_and_survive_the_wire() -> None:
    entries = ", ".join(f"k8s.pod.label[l{number}]=x" for number in range(400))
    actions = '[{action: a, actionner: "process:kill"}]'
    rules = "".join(
        f'- rule: R{number}\n  match: {{output_fields: ["{entries}"]}}\n  actions: {actions}\n' for number in range(3)
    )
    loaded = load([("rules.yaml", rules.encode())], CATALOGUE)
    assert len(loaded.metadata) == 500
    assert isinstance(loaded, Loaded)
    assert msgspec.msgpack.encode(loaded.rules)
