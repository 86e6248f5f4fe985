"""The catalogue as one value: everything by its name, cheap to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stoop.catalogue
from stoop.actions import ACTIONS
from stoop.catalogue import CATALOGUE, build
from stoop.notifiers import NOTIFIERS
from stoop.outputs import OUTPUTS

# The reflex imports the catalogue before it is ready: these cost it tens of milliseconds and it needs none of them.
HEAVY = {"yaml", "typer", "rich", "click", "structlog", "prometheus_client", "http", "urllib", "asyncio", "sqlite3"}


def test_everything_is_found_by_its_name() -> None:
    assert [(name, action.spec.name) for name, action in CATALOGUE.actions.items()] == [
        (action.spec.name, action.spec.name) for action in ACTIONS
    ]
    assert list(CATALOGUE.outputs.values()) == list(OUTPUTS)
    assert list(CATALOGUE.notifiers.values()) == list(NOTIFIERS)
    assert build(ACTIONS, OUTPUTS, NOTIFIERS) == CATALOGUE


def test_it_brings_nothing_heavy_along() -> None:
    root = Path(stoop.catalogue.__file__).parent.parent
    program = """\
import sys, trio, msgspec
before = set(sys.modules)
import stoop.catalogue
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    brought = set(said.stdout.split())
    assert "stoop" in brought
    assert not brought & HEAVY


@pytest.mark.parametrize("name", ["kubernetes:labelize", "kubernetes", "", "Kubernetes:Terminate"])
def test_other_names_are_not_there(name: str) -> None:
    assert name not in CATALOGUE.actions
