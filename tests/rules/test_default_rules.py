"""The repo's default rules are good, and touch nothing outside containers."""

from __future__ import annotations

from pathlib import Path

from stoop.catalogue import CATALOGUE
from stoop.rules import load

FILE = Path(__file__).parents[2] / "rules.yaml"


def test_the_default_rules_load_without_a_warning() -> None:
    loaded = load([(FILE.name, FILE.read_bytes())], CATALOGUE)
    assert loaded.rules
    assert loaded.warnings == ()


def test_they_never_touch_the_host_and_never_match_everything() -> None:
    for rule in load([(FILE.name, FILE.read_bytes())], CATALOGUE).rules:
        assert not rule.allow_host
        assert not rule.match_all
        assert rule.match.rules
        assert rule.description
    assert "allow_host:" not in FILE.read_text()
