"""Stores in a test's own folder, and bundles in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from stoop.evidence.manifest import Origin
from stoop.evidence.store import Kept, Limits, Store

NOW_NS = 1_800_000_000 * 10**9
LIMITS = Limits(min_free_bytes=0)


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = NOW_NS

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path, clock: Clock) -> Iterator[MakeStore]:
    """Open the test's store, with these limits."""
    made: list[Store] = []

    def make(**limits: float) -> Store:
        store = Store(str(tmp_path / "evidence"), msgspec.structs.replace(LIMITS, **limits), clock)
        store.open()
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def keep(store: Store, content: bytes = b"content", run: str = "f" * 32) -> Kept:
    """One bundle with one part."""
    with store.draft() as draft:
        draft.writer.add("notes/content.txt", content)
        return draft.commit(Origin(rule="A rule", run=run), {"pid": 4711, "comm": "sh"})
