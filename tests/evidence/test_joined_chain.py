"""The chain over bundles that were added to: what is missed, what is let go, and writers that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stoop.evidence import manifest as manifests
from stoop.evidence.chain import check_chain, let_go
from stoop.evidence.head import HEAD
from stoop.evidence.manifest import SUFFIX
from stoop.evidence.reading import BundleError
from stoop.evidence.store import WRITING, Kept, Store
from stoop.evidence.writing import BundleWriter
from tests.evidence.captures import RUN, SECOND_NS, add, files, read
from tests.evidence.conftest import Clock, MakeStore, keep

# ---------------------------------------------------------------- the chain over what was replaced


def replaced(store: Store) -> tuple[list[Kept], list[Kept]]:
    """Two runs, one added to twice, and others between and after."""
    others = [keep(store)]
    mine = [add(store, "1")]
    others.append(keep(store))
    mine.append(add(store, "2"))
    mine.append(add(store, "3"))
    others.append(keep(store))
    assert check_chain(store) == []
    return mine, others


def test_a_removed_one_is_missed_at_each_of_its_places(store: Store) -> None:
    mine, _ = replaced(store)
    (Path(store.directory) / f"{mine[0].bundle}{SUFFIX}").unlink()
    assert check_chain(store) == [
        "bundle 2 is missing, and the store did not let go of it",
        "bundles 4 to 5 are missing, and the store did not let go of it",
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_an_earlier_version_put_back_is_noticed(store: Store, number: int) -> None:
    versions, kept = [], []
    for act in "123":
        kept.append(add(store, act))
        versions.append((Path(store.directory) / f"{kept[0].bundle}{SUFFIX}").read_bytes())
    (Path(store.directory) / f"{kept[0].bundle}{SUFFIX}").write_bytes(versions[number])
    assert any("missing at the end" in line for line in check_chain(store))


def test_a_base_that_was_changed_before_is_noticed_after(store: Store, tmp_path: Path) -> None:
    """Another bundle of the run in its place, right by itself: adding to it does not make it true."""
    first, _ = add(store, "1"), keep(store)
    with Store(str(tmp_path / "other"), store.limits, store.now_ns) as other:
        forged = add(other, "1", b"forged")
        assert forged.bundle == first.bundle
        os.replace(f"{other.directory}/{forged.bundle}{SUFFIX}", f"{store.directory}/{first.bundle}{SUFFIX}")
    assert add(store, "2").bundle == first.bundle
    (line,) = check_chain(store)
    assert "not the one that it was written after" in line


def test_a_changed_byte_of_a_joined_one_is_noticed(store: Store) -> None:
    """Or changes nothing: zstd has bits without a meaning, and two ways to say one thing."""
    kept = [add(store, act, os.urandom(60)) for act in "123"][-1]
    path = Path(store.directory) / f"{kept.bundle}{SUFFIX}"
    whole, as_written = path.read_bytes(), read(store, kept.bundle)
    noticed = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        findings = check_chain(store)
        if not findings:
            with store.reading(kept.bundle) as reader, contextlib.suppress(BundleError):
                findings = ["a part that can't be read"]
                findings = reader.check()
        noticed += bool(findings)
        assert findings or read(store, kept.bundle) == as_written, at
    assert noticed > len(whole) * 0.9


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_manifest_that_was_changed_is_noticed(store: Store, number: int) -> None:
    """With all that is needed for it to be right by itself; also that of the last bundle, which head.json knows."""
    _, others = replaced(store)
    path = Path(store.directory) / f"{others[number].bundle}{SUFFIX}"
    with store.reading(others[number].bundle) as reader:
        manifest, end = reader.manifest, reader.parts_end
    with path.open("r+b") as file:
        writer = BundleWriter(file.fileno(), 0, 2**40)
        writer.back_to(end)
        writer.seal(manifests.encode(msgspec.structs.replace(manifest, target={"pid": 1})))
    with store.reading(others[number].bundle) as reader:
        assert (reader.check(), reader.manifest.target) == ([], {"pid": 1})
    (line,) = check_chain(store)
    assert ("head.json names" if number == 2 else "not the one that it was written after") in line


def test_two_that_claim_one_place(store: Store, tmp_path: Path) -> None:
    replaced(store)
    with Store(str(tmp_path / "other"), store.limits, store.now_ns) as other:
        for _ in range(2):
            keep(other)
        add(other, "9")
        forged = add(other, "8")  # places 3 and 4
        os.replace(f"{other.directory}/{forged.bundle}{SUFFIX}", f"{store.directory}/{forged.bundle}{SUFFIX}")
    assert any("has its place" in line for line in check_chain(store))


# ---------------------------------------------------------------- bounds of the store


def test_let_go_by_the_newest_place(make_store: MakeStore, clock: Clock) -> None:
    """One that was added to later goes later: what is gone is always the chain's beginning, and no tampering."""
    store = make_store(max_count=3)
    first = add(store, "1")
    second, third = keep(store), keep(store)
    assert add(store, "2").bundle == first.bundle
    assert store.bundles() == [first.bundle, second.bundle, third.bundle]
    keep(store)
    keep(store)
    assert first.bundle in store.bundles()
    assert check_chain(store) == []
    assert let_go(store) == "places 1 to 3 were let go, the store is bounded"
    keep(store)
    assert first.bundle not in store.bundles()
    assert check_chain(store) == []
    assert let_go(store) == "places 1 to 4 were let go, the store is bounded"
    (Path(store.directory) / f"{store.bundles()[0]}{SUFFIX}").unlink()
    assert check_chain(store) == ["bundle 5 is missing, and the store did not let go of it"]


def test_the_one_just_added_to_is_never_let_go(make_store: MakeStore, clock: Clock) -> None:
    store = make_store(max_bytes=150_000, max_age_s=3600.0)
    add(store, "1", os.urandom(100_000))
    keep(store, os.urandom(10_000))
    clock.now += 10_000 * SECOND_NS
    kept = add(store, "2", os.urandom(100_000))
    assert store.bundles() == [kept.bundle]
    assert store.holds == {"bytes": kept.bytes, "bundles": 1}
    assert check_chain(store) == []


# ---------------------------------------------------------------- killed

STEPS = (
    os.open,
    os.write,
    os.rename,
    os.fsync,
    os.fdatasync,
    os.ftruncate,
    os.copy_file_range,
    os.unlink,
    os.close,
)
"""Where a process that is killed has done more than before."""


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that SIGKILLs itself before so many steps; False when it was done by then."""
    pid = os.fork()
    if pid == 0:
        left = step

        def count(frame: object, event: str, what: object) -> None:
            nonlocal left
            if event == "c_call" and what in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            work()
        finally:
            sys.setprofile(None)
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("added", [False, True])
def test_killed_between_any_two_steps(tmp_path: Path, clock: Clock, make_store: MakeStore, added: bool) -> None:
    """The bundle is what it was or what it becomes; the chain is whole, at once and with what comes after."""
    seen = set()
    for step in range(100):
        directory = str(tmp_path / f"store-{step}")
        with Store(directory, make_store().limits, clock) as store:
            keep(store)
            before = add(store, "1", b"first") if added else None
            keep(store)

            def work(at: str = directory) -> None:
                with Store(at, make_store().limits, clock) as writing:
                    add(writing, "2", b"second")

            killed = killed_before(step, work)
            assert check_chain(store) == [], step
            bundles = {bundle: read(store, bundle)[1] for bundle in store.bundles()}
            contents = next((found for name, found in bundles.items() if manifests.run_of(name) == RUN[:16]), {})
            seen.add(len(contents))
            assert contents.get("log.txt") == (b"first" if before is not None else contents.get("log.txt"))
            after = add(store, "3", b"third") if step % 2 else keep(store)
            assert check_chain(store) == [], step
            sequences = [read(store, bundle)[0].sequence for bundle in store.bundles()]
            assert read(store, after.bundle)[0].sequence == max(sequences)
            store.tidy()
            assert not [name for name in files(store) if name.startswith(WRITING)], step
            assert check_chain(store) == [], step
        if not killed:
            break
    assert not killed
    assert step > 10
    assert seen == ({1, 2} if added else {0, 1})


def test_a_lost_head_is_found_in_the_bundles(store: Store) -> None:
    add(store, "1")
    keep(store)
    newest = add(store, "2")
    (Path(store.directory) / HEAD).unlink()
    after = keep(store)
    assert read(store, after.bundle)[0].previous == newest.manifest
    assert after.sequence == 4
