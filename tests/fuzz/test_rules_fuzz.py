"""Any bytes give Loaded or RulesError, within a second of CPU time, and what loads survives the wire."""

from __future__ import annotations

import contextlib
import json
import lzma
import random
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stoop.catalogue import CATALOGUE
from stoop.errors import RulesError
from stoop.rules import Loaded, RuleForm, RuleSet, load
from stoop.rules.yamldoc import Budget, YamlError, compose

CASES = Path(__file__).parents[1] / "data" / "conformance.jsonl.xz"
PARTS = (
    "- ", "&a ", "*a", "<<: *a\n", "[", "]", "{", "}", ": ", ", ", "\n", "  ", "!!int ", "!!binary ", "!x ", "|\n",
    ">\n", "~", "null", "? ", "'", '"', "%YAML 1.2\n", "---\n", "...\n", '"\\U0011FFFF"', '"\\ud800"', "1e999",
    "2026-01-02", "\x00", "\x85", "\u2028", "0x", ".inf", "rule: R\n", "action: a\n", "actions:\n", "parameters: ",
    "labels: ", "match: ", "output_fields: ", "tags: ", "priority: '>='\n", "actionner: kubernetes:label\n",
    "x", "é", "🙂",
)  # fmt: skip
SLOW_SECONDS = 1.0


def load_or_refuse(data: bytes) -> Loaded | None:
    """Load, and check what every load must keep to."""
    began = time.process_time()
    try:
        loaded = load([("f", data)], CATALOGUE)
    except RulesError as error:
        check_refusal(error)
        return None
    finally:
        assert time.process_time() - began < SLOW_SECONDS
    sent = msgspec.msgpack.encode(loaded.rules)
    again = msgspec.msgpack.decode(sent, type=tuple[RuleForm, ...])
    assert again == loaded.rules or b"nan" in data.lower()
    RuleSet.of(again)
    return loaded


def check_refusal(error: RulesError) -> None:
    """A refusal says what is wrong."""
    assert error.problems
    assert all(problem.message for problem in error.problems)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    load_or_refuse(data)


@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join))
def test_pieces_of_rules_in_any_order(text: str) -> None:
    load_or_refuse(text.encode())


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
def test_the_python_parser_too(text: str) -> None:
    """It is only used where libyaml is not there, and must be as robust."""
    with contextlib.suppress(YamlError):
        compose("f", text.encode(), Budget(), yaml.BaseLoader)


def seeds() -> list[bytes]:
    lines = lzma.decompress(CASES.read_bytes()).splitlines()
    return [case["rules"].encode() for case in map(json.loads, lines) if "rules" in case]


@pytest.mark.parametrize("seed", range(5))
def test_real_rules_damaged(seed: int) -> None:
    chance = random.Random(seed)
    texts = seeds()
    loaded = 0
    for _ in range(300):
        data = bytearray(chance.choice(texts))
        for _ in range(chance.randint(0, 3)):
            damage(chance, data)
        loaded += load_or_refuse(bytes(data)) is not None
    assert loaded > 20  # not all of it is nonsense


def damage(chance: random.Random, data: bytearray) -> None:
    """Insert, cut, flip or repeat somewhere."""
    at = chance.randrange(len(data) + 1)
    match chance.randrange(4):
        case 0:
            data[at:at] = chance.choice(PARTS).encode()
        case 1:
            del data[at : at + chance.randint(1, 10)]
        case 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        case _:
            start = chance.randrange(len(data) + 1)
            data[at:at] = data[start : start + chance.randint(1, 60)]


@pytest.mark.parametrize("size", range(0, 400, 7))
def test_every_cut_of_a_good_file(size: int) -> None:
    text = (
        "- action: t\n  actionner: kubernetes:label\n  parameters: &p {labels: {a: 'b'}}\n"
        '- rule: "R"\n  match:\n    rules: [F]\n    output_fields: ["a=b, c!=d"]\n    priority: ">=Warning"\n'
        "  actions:\n    - action: t\n    - {action: u, actionner: kubernetes:cordon, parameters: {<<: *p}}\n"
    )
    load_or_refuse(text.encode()[:size])
    load_or_refuse(text.encode() + b"\xff" * (size % 5) + text.encode()[:size])
