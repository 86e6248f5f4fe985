"""`stoop rules check` of rules that ask for labels: an error where this node's configuration leaves them unknown."""

from __future__ import annotations

from typing import Any

import pytest

from stoop import extras

RULES = """\
- rule: By label
  match: {output_fields: ["k8s.pod.label[app]=web"]}
  actions: [{action: Kill it, actionner: "process:kill"}]
"""
PROBLEM = "rules.yaml:2:27: rule 'By label': 'k8s.pod.label[app]' is of a pod's metadata, which nothing tells here"


def test_where_the_configuration_leaves_them_unknown(stoop: Any, write: Any) -> None:
    rules, config = write("rules.yaml", RULES), write("stoop.yaml", "mode: observe\n")
    ran = stoop("rules", "check", "-r", rules, "-c", config)
    said = " ".join(ran.err.split())
    assert ran.code == 1
    assert f"error: {rules.removesuffix('rules.yaml')}{PROBLEM} (set pods.source in stoop.yaml: watch" in said
    assert said.endswith("1 problem: these rules can't be used")


def test_without_a_configuration_it_is_a_warning(stoop: Any, write: Any) -> None:
    ran = stoop("rules", "check", "-r", write("rules.yaml", RULES))
    assert ran.code == 0
    assert "warning: " in ran.err
    assert PROBLEM in " ".join(ran.err.split())


@pytest.mark.parametrize("pods", ["{source: falco}", "{source: watch, server: 'https://a'}", "{source: kubelet}"])
def test_where_something_tells_them(stoop: Any, write: Any, pods: str) -> None:
    ran = stoop("rules", "check", "-r", write("rules.yaml", RULES), "-c", write("stoop.yaml", f"pods: {pods}\n"))
    assert (ran.code, ran.err) == (0, "")


def test_where_what_asks_is_not_installed(stoop: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "pods", ("json", "no_such_module"))
    config = write("stoop.yaml", "pods: {source: kubelet}\n")
    ran = stoop("rules", "check", "-r", write("rules.yaml", RULES), "-c", config)
    said = " ".join(ran.err.split())
    assert ran.code == 1
    assert "no_such_module is not installed, which pods.source: kubelet needs (pip install 'stoop[pods]')" in said


def test_rules_that_ask_for_none_need_no_configuration(stoop: Any, write: Any) -> None:
    rules = write("rules.yaml", RULES.replace("k8s.pod.label[app]", "k8s.ns.name"))
    ran = stoop("rules", "check", "-r", rules, "-c", "/nonexistent/stoop.yaml")
    assert (ran.code, ran.err) == (0, "")
