"""The store: bounded, in a chain, whole or not at all, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stoop.errors import ActFailed, StartRefused
from stoop.evidence.chain import check_chain
from stoop.evidence.manifest import SUFFIX, Origin
from stoop.evidence.store import HEAD, WRITING, Store
from tests.evidence.conftest import Clock, MakeStore, keep

ROOT = Path(__file__).parents[2]
DAY_NS = 24 * 3600 * 10**9


def files(store: Store) -> list[str]:
    return sorted(os.listdir(store.directory))


def test_for_its_owner_only(store: Store) -> None:
    kept = keep(store)
    assert os.stat(store.directory).st_mode & 0o777 == 0o700
    for name in files(store):
        assert os.stat(f"{store.directory}/{name}").st_mode & 0o077 == 0
    assert kept.bundle == "00000001-20270115T080000Z-ffffffffffffffff"


def test_opened_wider_it_is_closed(store: Store, make_store: MakeStore) -> None:
    os.chmod(store.directory, 0o755)
    make_store()
    assert os.stat(store.directory).st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_store_of_another_user_is_refused(store: Store, make_store: MakeStore) -> None:
    os.chown(store.directory, 65534, -1)
    with pytest.raises(StartRefused, match="belongs to uid 65534"):
        make_store()


def test_a_link_is_no_store(tmp_path: Path, make_store: MakeStore) -> None:
    (tmp_path / "evidence").symlink_to("/tmp")
    with pytest.raises(ActFailed, match="can't be opened"):
        make_store()


def test_what_was_not_committed_is_gone(store: Store) -> None:
    with store.draft() as draft:
        draft.writer.add("one", b"1")
        assert [name for name in files(store) if name.startswith(WRITING)]
    assert files(store) == []


def test_a_chain(store: Store, make_store: MakeStore) -> None:
    first, second = keep(store), keep(make_store())
    with store.reading(second.bundle) as reader:
        assert (reader.manifest.sequence, reader.manifest.previous) == (2, first.manifest)
    assert check_chain(store) == []


@pytest.mark.parametrize("limit", [{"max_count": 3}, {"max_age_s": 4 * 24 * 3600.0}, {"max_bytes": 3 * 100_400 + 200}])
def test_bounded_oldest_first_and_the_chain_goes_on(make_store: MakeStore, clock: Clock, limit: dict[str, Any]) -> None:
    store = make_store(**limit)
    for number in range(6):
        keep(store, os.urandom(99_000))
        clock.now += 2 * DAY_NS
        assert len(store.bundles()) == min(number + 1, 3)
    assert [int(name[:8]) for name in store.bundles()] == [4, 5, 6]
    assert check_chain(store) == []


def test_the_newest_stays_however_large_or_old(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(max_bytes=10, max_age_s=1.0)
    keep(store)
    clock.now += DAY_NS
    assert store.tidy() == []
    assert len(store.bundles()) == 1


def test_age_is_seen_at_a_start(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(max_age_s=3600.0)
    keep(store)
    clock.now += DAY_NS
    assert len(store.bundles()) == 1
    new = keep(store)
    assert store.bundles() == [new.bundle]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("remove 1", "bundle 1 is missing"),
        ("remove 2", "bundle 2 is missing"),
        ("remove 3", "bundle 3 is missing at the end"),
        ("swap 2", "its manifest says that it is"),
        ("cut 2", "does not end as a bundle does"),
        ("head", "head.json is missing"),
    ],
)
def test_a_broken_chain_is_found(store: Store, harm: str, said: str) -> None:
    kept = [keep(store, bytes([number])) for number in range(3)]
    what, _, number = harm.partition(" ")
    path = Path(store.directory) / f"{kept[int(number or 1) - 1].bundle}{SUFFIX}"
    if what == "remove":
        path.unlink()
    elif what == "swap":
        path.write_bytes((Path(store.directory) / f"{kept[2].bundle}{SUFFIX}").read_bytes())
    elif what == "cut":
        os.truncate(path, 40)
    else:
        (Path(store.directory) / HEAD).unlink()
    assert any(said in line for line in check_chain(store)), check_chain(store)


def test_another_bundle_in_its_place_is_found(store: Store, make_store: MakeStore, tmp_path: Path) -> None:
    """One that is right by itself, of the same name, but not the one that the next was written after."""
    first = keep(store)
    keep(store)
    other = Store(str(tmp_path / "other"), now_ns=lambda: 1_800_000_000 * 10**9)
    with other:
        forged = keep(other, b"forged")
    assert forged.bundle == first.bundle
    os.replace(f"{other.directory}/{forged.bundle}{SUFFIX}", f"{store.directory}/{first.bundle}{SUFFIX}")
    assert any("not the one that it was written after" in line for line in check_chain(store))


def test_a_head_that_was_not_reached_is_put_right(store: Store) -> None:
    first = keep(store)
    head = (Path(store.directory) / HEAD).read_bytes()
    second = keep(store)
    (Path(store.directory) / HEAD).write_bytes(head)  # as killed between the two renames
    assert store.tidy() == []
    found = store.kept_head()
    assert found is not None
    assert (found.sequence, found.manifest) == (2, second.manifest)
    (Path(store.directory) / HEAD).write_bytes(b"{")
    third = keep(store)
    with store.reading(third.bundle) as reader:
        assert reader.manifest.previous == second.manifest != first.manifest


def test_a_nearly_full_disk_takes_no_evidence(make_store: MakeStore) -> None:
    store = make_store(min_free_bytes=2**60)
    with pytest.raises(ActFailed, match="MiB are free"):
        store.draft()
    assert files(store) == []


def test_one_being_written_is_never_removed(store: Store, make_store: MakeStore) -> None:
    with store.draft() as draft:
        other = make_store(max_count=1)
        assert other.tidy() == []
        draft.writer.add("one", b"1")
        kept = draft.commit(Origin(), {})
    assert store.bundles() == [kept.bundle]


# Writes bundles until it is killed; each name told once it is kept.
WRITER = """
import os, sys
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Limits, Store
store = Store(sys.argv[1], Limits(min_free_bytes=0))
store.open()
while True:
    with store.draft() as draft:
        for number in range(4):
            draft.writer.add(f"parts/{number}", os.urandom(30000))
        print(draft.commit(Origin(), {}).bundle, flush=True)
"""


@pytest.mark.parametrize("after", range(1, 9))
def test_killed_writers_leave_whole_bundles_only(make_store: MakeStore, tmp_path: Path, after: int) -> None:
    """Three at a time, killed once the first has told of so many."""
    directory = tmp_path / "evidence"
    argv = [sys.executable, "-c", WRITER, str(directory)]
    writers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    told = []
    for writer in writers:
        assert writer.stdout is not None
        told.append(writer.stdout.readline().strip())
    first = writers[0].stdout
    assert first is not None
    told += [first.readline().strip() for _ in range(after)]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    for writer in writers:
        assert writer.stdout is not None
        told += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.wait(10)
        writer.stdout.close()
    store = make_store(max_count=0, max_bytes=0, max_age_s=0.0)
    store.tidy()
    assert not [name for name in files(store) if name.startswith(WRITING)]
    bundles = store.bundles()
    assert set(told) <= set(bundles)
    assert check_chain(store) == []
    for bundle in bundles:
        with store.reading(bundle) as reader:
            assert reader.check() == []
