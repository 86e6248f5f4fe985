"""Faults put side by side, in one file or in several: each is told, none hides another, and nothing else is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoop.catalogue import CATALOGUE
from stoop.errors import RulesError
from stoop.rules import load

Fault = tuple[str, tuple[str, ...]]

MATCH = "  match: {rules: [F]}\n"
ITEMS: tuple[Fault, ...] = (
    ("- rule: N\n  match: {rules: T}\n  actions: [{action: N, actionner: kubernetes:terminate}]\n", ("yaml-type",)),
    ("- rule: N\n" + MATCH + "  actions: [{action: N, actionner: kubernetes:nope}]\n", ("actionner-unknown",)),
    ("- rule: N\n  match: {output_fields: ['x>1']}\n  actions: [{action: N, actionner: kubernetes:exec}]\n",
     ("field-key", "param-required")),
    ("- rule: N\n  actions: [{action: N, actionner: kubernetes:terminate}]\n", ("match-all",)),
    ("- rule: N\n" + MATCH + "  continue: maybe\n  actions: [{action: N, actionner: kubernetes:sysdig,"
     " parameters: {duration: z, scope: y}}]\n", ("continue-value", "param-type", "param-value", "output-required")),
    ("- rule: N\n" + MATCH, ("no-action",)),
    ("- rule: N\n" + MATCH + "  actions: [{action: N}]\n", ("actionner-missing",)),
    ("- rule: N\n  rule: M\n  match: {priority: Info}\n", ("yaml-duplicate-key", "priority")),
    ("-\n", ("yaml-type",)),
    ("- [x]\n", ("yaml-type",)),
    ("- action: [N]\n", ("yaml-type",)),
    ("- rule: N\n  match: {tags: ['a-']}\n  actions: [{action: N, actionner: kubernetes:log,"
     " output: {target: a:b, parameters: {c: d}}}]\n", ("tag", "output-unknown")),
    ("- rule: N\n" + MATCH + "  actions: [{action: N, actionner: kubernetes:label, parameters: [a]}]\n",
     ("yaml-type",)),
    ("- rule: N\n" + MATCH + "  actions: [{action: N, actionner: kubernetes:cordon}]\n", ()),
)  # fmt: skip
ENDS: tuple[Fault, ...] = (
    ("", ()),
    ("- rule: N: y\n", ("yaml-syntax",)),
    ("- rule: N\n  match: [a\n", ("yaml-syntax",)),
    ("- rule: N\n  match: {}\n actions: []\n", ("yaml-syntax",)),
    ("- rule: 'N\n", ("yaml-syntax",)),
    ("- rule: *N\n", ("yaml-syntax",)),
)

files_of_faults = st.lists(
    st.tuples(st.lists(st.sampled_from(ITEMS), max_size=5), st.sampled_from(ENDS)), min_size=1, max_size=3
)


@given(files_of_faults)
def test_each_fault_is_told_and_nothing_else(chosen: list[tuple[list[Fault], Fault]]) -> None:
    wanted: list[str] = []
    files: list[tuple[str, bytes]] = []
    number = 0
    for items, end in chosen:
        text = ""
        for item, codes in (*items, end):
            number += 1  # a name of its own for each, so that none completes another
            text += item.replace("N", f"n{number}")
            wanted += codes
        files.append((f"{len(files)}.yaml", text.encode()))
    assert sorted(codes_of(files)) == sorted(wanted)


def codes_of(files: list[tuple[str, bytes]]) -> list[str]:
    try:
        load(files, CATALOGUE)
    except RulesError as error:
        return [problem.code for problem in error.problems]
    return []
