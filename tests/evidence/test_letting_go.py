"""What the store lets go of while something waits to be sent: that last."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stoop.evidence import manifest as manifests
from stoop.evidence.chain import check_chain
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.evidence.retention import Kept, choose
from stoop.evidence.store import Store

THREE = Limits(max_bytes=0, max_count=3, max_age_s=0, min_free_bytes=0)
BEGUN_S = manifests.begun_of("00000001-20270115T080000Z-none")


def name(sequence: int) -> str:
    return f"{sequence:08}-20270115T080000Z-none"


def gone(
    sequences: list[int], waiting: set[int], limits: Limits, newest: int, lasts: dict[int, int] | None = None
) -> list[int]:
    """First places of those that go. `lasts`: last places, where a bundle has more than one."""
    bundles = [(name(sequence), 10) for sequence in sequences]
    last = {name(first): at for first, at in (lasts or {}).items()}
    kept = Kept(newest, frozenset(map(name, waiting)))
    found = choose(bundles, limits, BEGUN_S + 100.0, lambda one: last.get(one, manifests.sequence_of(one)), kept)
    return [manifests.sequence_of(each.bundle) for each in found]


def test_the_oldest_goes_first_and_who_waits_last() -> None:
    assert gone([1, 2, 3, 4, 5], set(), THREE, 5) == [1, 2]
    assert gone([1, 2, 3, 4, 5], {1}, THREE, 5) == [2, 3]
    assert gone([1, 2, 3, 4, 5], {1, 2, 3}, THREE, 5) == [4, 1]
    assert gone([1, 2, 3, 4, 5], {1, 2, 3, 4, 5}, THREE, 5) == [1, 2]


def test_the_newest_stays_whatever_waits() -> None:
    one_byte = Limits(max_bytes=1, max_count=0, max_age_s=0)
    assert gone([1, 2], {1}, one_byte, 2) == [1]
    assert gone([1, 2, 3], {2, 3}, one_byte, 4, {1: 4}) == [2, 3]  # a capture was just added to the first


def test_what_is_too_old_goes_even_if_it_waits() -> None:
    assert gone([1, 2, 3], {1}, Limits(max_bytes=0, max_count=0, max_age_s=50.0), 3) == [2, 1]
    assert gone([1, 2, 3], {1}, Limits(max_bytes=0, max_count=0, max_age_s=500.0), 3) == []


@given(st.sets(st.integers(1, 20), min_size=1), st.sets(st.integers(1, 20)), st.integers(1, 25))
def test_no_more_than_must_goes(sequences: set[int], waiting: set[int], count: int) -> None:
    limits = Limits(max_bytes=0, max_count=count, max_age_s=0)
    went = gone(sorted(sequences), waiting, limits, max(sequences))
    assert len(went) == max(0, len(sequences) - count)
    left = sequences - set(went)
    assert max(sequences) in left
    if set(went) & waiting:
        assert not (left - waiting - {max(sequences)})


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
        waits.unlink()
        write(store)
        assert first not in store.bundles()
        assert check_chain(store) == []
        os.unlink(f"{store.directory}/{store.bundles()[1]}{SUFFIX}")
        assert check_chain(store) != []
