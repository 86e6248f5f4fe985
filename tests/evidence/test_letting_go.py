"""What the store lets go of: the oldest, what waits to be sent last, and a chain that knows it."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stoop.evidence.chain import check_chain
from stoop.evidence.letting_go import Kept, Ranges, choose, spent
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.evidence.store import Store

THREE = Limits(max_bytes=0, max_count=3, max_age_s=0, min_free_bytes=0)


def kept(*sequences: int) -> list[Kept]:
    return [Kept(f"b{sequence}", sequence, 10, 0.0) for sequence in sequences]


def names(found: list[Kept]) -> list[str]:
    return [bundle.name for bundle in found]


def test_the_oldest_goes_first_and_who_waits_last() -> None:
    bundles = kept(1, 2, 3, 4, 5)
    assert names(choose(bundles, frozenset(), THREE)) == ["b1", "b2"]
    assert names(choose(bundles, frozenset({"b1"}), THREE)) == ["b2", "b3"]
    assert names(choose(bundles, frozenset({"b1", "b2", "b3"}), THREE)) == ["b4", "b1"]
    assert names(choose(bundles, frozenset(names(bundles)), THREE)) == ["b1", "b2"]


def test_the_newest_stays_and_the_old_go_even_if_they_wait() -> None:
    one_byte = Limits(max_bytes=1, max_count=0, max_age_s=0)
    assert names(choose(kept(1, 2), frozenset({"b2"}), one_byte)) == ["b1"]
    old = [Kept("b1", 1, 10, 100.0), Kept("b2", 2, 10, 1.0), Kept("b3", 3, 10, 0.0)]
    assert names(choose(old, frozenset({"b1"}), Limits(max_age_s=50.0))) == ["b1"]


def test_what_went_is_told_as_ranges_until_all_below_has_gone() -> None:
    assert spent(1, (), [1, 2], [3, 4]) == (3, ())
    assert spent(1, (), [2, 3], [1, 4]) == (1, ((2, 3),))
    assert spent(1, ((2, 3),), [4], [1, 5]) == (1, ((2, 4),))
    assert spent(1, ((2, 4),), [1], [5]) == (5, ())
    assert spent(1, ((2, 2),), [4], [1, 3, 5]) == (1, ((2, 2), (4, 4)))
    assert spent(1, ((2, 2), (4, 4)), [1], [3, 5]) == (3, ((4, 4),))
    assert spent(1, (), [1], [3]) == (2, ())  # somebody else took the second


@given(st.lists(st.sets(st.integers(1, 30)), max_size=5))
def test_nothing_that_went_counts_as_missing(rounds: list[set[int]]) -> None:
    left, oldest = set(range(1, 32)), 1
    gone: Ranges = ()
    for going in rounds:
        going &= left
        left -= going
        if going:
            oldest, gone = spent(oldest, gone, going, left)
        lost = {place for place in range(oldest, 32) if not any(first <= place <= last for first, last in gone)}
        assert lost == {place for place in left if place >= oldest}
        assert all(place >= oldest for place in left)
        assert len(gone) <= len(left) + 1


def test_a_chain_with_a_bundle_that_waits_is_whole(tmp_path: Path) -> None:
    def write(store: Store) -> str:
        with store.draft() as draft:
            draft.writer.add("one", b"1")
            return draft.commit(Origin(run="f" * 32), {}).bundle

    (tmp_path / "deliveries").mkdir()
    with Store(str(tmp_path / "evidence"), THREE) as store:
        first = write(store)
        waits = tmp_path / "deliveries" / f"{first}.{'a' * 32}.json"
        waits.write_text("{}")
        for _ in range(5):
            write(store)
        assert len(store.bundles()) == 3
        assert store.bundles()[0] == first
        assert check_chain(store) == []
        assert store.kept_head() is not None
        waits.unlink()
        write(store)
        assert first not in store.bundles()
        assert check_chain(store) == []
        os.unlink(f"{store.directory}/{store.bundles()[1]}{SUFFIX}")
        (finding,) = check_chain(store)
        assert "missing, and the store did not let go of it" in finding
