"""What the tests of the rules language share: loading a text, and the problems of one that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from stoop.alert import Alert, decode
from stoop.catalogue import CATALOGUE
from stoop.errors import Problem, RulesError
from stoop.rules import Loaded, load

LoadText = Callable[..., Loaded]
ProblemsOf = Callable[..., tuple[Problem, ...]]
MakeAlert = Callable[..., Alert]


def _files(texts: tuple[str, ...]) -> list[tuple[str, bytes]]:
    return [(f"{number}.yaml", text.encode()) for number, text in enumerate(texts, 1)]


@pytest.fixture
def load_text() -> LoadText:
    """Load rules files given as texts; they are called 1.yaml, 2.yaml, …"""
    return lambda *texts: load(_files(texts), CATALOGUE)


@pytest.fixture
def problems_of() -> ProblemsOf:
    """The problems of rules files that must be refused."""

    def problems(*texts: str) -> tuple[Problem, ...]:
        with pytest.raises(RulesError) as caught:
            load(_files(texts), CATALOGUE)
        return caught.value.problems

    return problems


@pytest.fixture
def make_alert() -> MakeAlert:
    """An alert as Falco sends it, with what is given beside or instead."""

    def make(fields: dict[str, Any] | None = None, **keys: Any) -> Alert:
        alert = {"rule": "F", "priority": "Warning", "source": "syscall", "tags": ["container", "shell"], **keys}
        return decode(json.dumps({**alert, "output_fields": fields or {}}).encode())

    return make
