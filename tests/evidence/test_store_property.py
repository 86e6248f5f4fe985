"""Any captures in any order under any bounds: the chain is whole, nothing that must be there is gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoop.evidence.chain import check_chain
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.evidence.store import Kept, Limits, Store
from tests.evidence.conftest import NOW_NS


class Step(NamedTuple):
    """One capture: of which run, how large, how long after the one before; together with one of another run."""

    run: int
    size: int
    after_s: int
    beside: int


STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, 3),
        st.sampled_from([10, 3000, 30_000]),
        st.sampled_from([0, 10, 4000]),
        st.integers(-1, 3),
    ),
    max_size=8,
)
LIMITS = st.builds(
    Limits,
    max_bytes=st.sampled_from([0, 20_000, 100_000]),
    max_count=st.sampled_from([0, 1, 3]),
    max_age_s=st.sampled_from([0.0, 5000.0]),
    max_bundle_bytes=st.sampled_from([0, 40_000]),
    min_free_bytes=st.just(0),
)


def origin(number: int, run: int) -> Origin:
    return Origin(run=f"{run}a" * 16, act=f"{number:04d}" * 8)


def capture(store: Store, number: int, step: Step) -> Kept:
    """What the step says; the capture beside it begins before and ends after."""
    with store.draft(origin(number, step.run)) as draft:
        draft.writer.add("log.txt", os.urandom(step.size))
        if step.beside < 0:
            return draft.commit(origin(number, step.run), {})
        beside = origin(number + 100, step.beside)
        with store.draft(beside) as other:
            other.writer.add("log.txt", b"beside")
            draft.commit(origin(number, step.run), {})
            return other.commit(beside, {})


def is_whole(store: Store) -> None:
    """Every bundle by itself, the chain, and what the store counts."""
    assert check_chain(store) == []
    total = 0
    for bundle in store.bundles():
        with store.reading(bundle) as reader:
            assert reader.check() == []
            total += reader.size
            manifest = reader.manifest
            assert {part.act for part in manifest.parts} == {each.origin.act for each in manifest.captures}
            assert {each.origin.run for each in manifest.captures} == {manifest.origin.run}
    assert store.holds == {"bytes": total, "bundles": len(store.bundles())}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, LIMITS)
def test_any_captures(tmp_path: Path, steps: list[Step], limits: Limits) -> None:
    directory = tmp_path / "evidence"
    shutil.rmtree(directory, ignore_errors=True)
    now = NOW_NS
    with Store(str(directory), limits, lambda: now) as store:
        for number, step in enumerate(steps):
            now += step.after_s * 10**9
            kept = capture(store, number, step)
            is_whole(store)
            assert kept.bundle in store.bundles()  # the newest is never let go
            assert not limits.max_count or len(store.bundles()) <= limits.max_count
            assert not limits.max_bytes or store.holds["bytes"] <= max(limits.max_bytes, kept.bytes)
        assert store.tidy() == []
        for bundle in store.bundles():
            path = directory / f"{bundle}{SUFFIX}"
            path.rename(directory / "away")
            assert check_chain(store) != []
            (directory / "away").rename(path)
        assert check_chain(store) == []
