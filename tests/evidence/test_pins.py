"""Bundles that a hold needs: they stay, within half of the store, and are no gap in the chain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoop.errors import TargetRefused
from stoop.evidence.chain import check_chain
from stoop.evidence.manifest import Origin
from stoop.evidence.pins import PIN, pin, pinned, unpin
from stoop.evidence.store import Kept, Store
from tests.evidence.conftest import NOW_NS, MakeStore, keep

ACT = "a" * 32
LATER_NS = 2**62


def keep_pinned(store: Store, act: str = ACT, size: int = 100) -> Kept:
    with store.draft() as draft:
        draft.writer.add("file.bin", os.urandom(size))
        return draft.commit(Origin(run="f" * 32, act=act), {}, pinned=True)


def numbers(store: Store) -> list[int]:
    return [int(name[:8]) for name in store.bundles()]


def test_it_stays_until_it_is_not_needed_and_the_chain_is_whole(make_store: MakeStore) -> None:
    store = make_store(max_count=3)
    keep(store)
    keep_pinned(store)
    for _ in range(4):
        keep(store)
    assert numbers(store) == [2, 5, 6]
    assert check_chain(store) == []
    unpin(store.directory, ACT)
    unpin(store.directory, ACT)
    keep(store)
    assert numbers(store) == [5, 6, 7]
    assert check_chain(store) == []
    head = store.kept_head()
    assert head is not None
    assert head.oldest == 5
    os.unlink(Path(store.directory, f"{store.bundles()[1]}.tar.zst"))
    assert "bundle 6 is missing, and the store did not let go of it" in check_chain(store)


def test_old_ones_stay_too(make_store: MakeStore) -> None:
    store = make_store(max_age_s=3600.0)
    keep_pinned(store)
    keep(store)
    store.now_ns = lambda: NOW_NS + 7200 * 10**9
    keep(store)
    assert numbers(store) == [1, 3]


def test_half_of_the_store_by_bytes_and_by_number(make_store: MakeStore) -> None:
    store = make_store(max_bytes=20_000)
    assert store.room_for_pins() == 10_000
    keep_pinned(store, size=6000)
    assert 3000 < store.room_for_pins() < 4000
    with pytest.raises(TargetRefused, match="half of it"):
        keep_pinned(store, "b" * 32, size=6000)
    assert numbers(store) == [1]
    assert sorted(name for name in os.listdir(store.directory) if name.startswith(PIN)) == [PIN + ACT]
    few = make_store(max_count=3)
    assert few.room_for_pins() == 0
    assert make_store(max_bytes=0, max_count=0).room_for_pins() > 2**60


def test_what_a_kill_left_is_cleared_and_what_is_held_or_newer_is_not(store: Store) -> None:
    for act in ("a", "b", "c"):
        keep_pinned(store, act * 32)
    made_ns = os.stat(f"{store.directory}/{PIN}{'c' * 32}").st_mtime_ns
    assert len(store.unpin_others(["a" * 32], made_ns)) == 1
    assert len(pinned(store.fd)) == 2
    assert store.unpin_others(["a" * 32], LATER_NS) == [store.bundles()[2]]
    assert pinned(store.fd) == {store.bundles()[0]}


@pytest.mark.parametrize("act", ["", "../head.json", "A", "a/b", "a" * 65, "a\n"])
def test_what_is_no_act_s_id(act: str, store: Store) -> None:
    before = os.listdir(store.directory)
    with pytest.raises(ValueError, match="no act's id"):
        pin(store.fd, "00000001-20270115T080000Z-none", act)
    unpin(store.directory, act)
    assert os.listdir(store.directory) == before


def test_what_is_no_pin_pins_nothing(store: Store) -> None:
    directory = Path(store.directory)
    (directory / f"{PIN}{'a' * 32}").write_text("../../etc/passwd")
    (directory / f"{PIN}{'b' * 32}").symlink_to("/etc/passwd")
    os.mkfifo(directory / f"{PIN}{'c' * 32}")
    assert pinned(store.fd) == frozenset()
