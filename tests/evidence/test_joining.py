"""One bundle a run: what a second capture makes of it, also at the same time, and when it has to stay apart."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoop.evidence import joining
from stoop.evidence import manifest as manifests
from stoop.evidence.chain import check_chain
from stoop.evidence.manifest import SUFFIX, Manifest
from stoop.evidence.store import Kept, Store
from tests.evidence.captures import RUN, add, end, origin, read
from tests.evidence.conftest import MakeStore, keep


def test_a_second_capture_is_added(store: Store) -> None:
    first = add(store, "1", b"first")
    between = keep(store)
    second = add(store, "2", b"second")
    third = add(store, "3", b"third", name="memory/1/2.bin")
    assert first.bundle == second.bundle == third.bundle
    assert (second.parts, second.missing, second.apart) == (1, 1, "")
    assert third.bytes == os.stat(f"{store.directory}/{third.bundle}{SUFFIX}").st_size
    manifest, contents = read(store, first.bundle)
    assert contents == {
        "log.txt": b"first",
        "act-22222222/log.txt": b"second",
        "act-33333333/memory/1/2.bin": b"third",
    }
    assert {part.name: part.act[0] for part in manifest.parts} == {
        "log.txt": "1",
        "act-22222222/log.txt": "2",
        "act-33333333/memory/1/2.bin": "3",
    }
    assert [capture.origin.act[0] for capture in manifest.captures] == ["1", "2", "3"]
    assert [capture.notes for capture in manifest.captures] == [{"by": "1"}, {"by": "2"}, {"by": "3"}]
    assert [[part.name for part in manifest.parts_of(capture)] for capture in manifest.captures] == [
        ["log.txt"],
        ["act-22222222/log.txt"],
        ["act-33333333/memory/1/2.bin"],
    ]
    assert (manifest.sequence, manifest.previous, manifest.first) == (4, second.manifest, 1)
    links = [(link.sequence, link.manifest, link.previous) for link in manifest.replaces]
    assert links == [(1, first.manifest, ""), (3, second.manifest, between.manifest)]
    assert store.bundles() == [first.bundle, between.bundle]
    assert check_chain(store) == []
    after = keep(store)
    assert read(store, after.bundle)[0].previous == third.manifest
    assert check_chain(store) == []


def test_what_was_there_is_copied_as_it_is(store: Store) -> None:
    """The bytes of the frames, whatever is in them: nothing is unpacked or packed again."""
    first = add(store, "1", os.urandom(3_000_000))
    path = Path(store.directory) / f"{first.bundle}{SUFFIX}"
    with store.reading(first.bundle) as reader:
        frames = path.read_bytes()[: reader.parts_end]
    add(store, "2")
    assert frames in path.read_bytes()


def test_without_a_run_each_has_its_own(store: Store) -> None:
    with store.draft() as draft:
        draft.writer.add("one", b"1")
        first = draft.commit(origin("1"), {})
    odd = [add(store, "1", run=run) for run in ("", "Not a run", "none", "")]
    assert len({kept.bundle for kept in [first, *odd]}) == 5
    assert check_chain(store) == []


def test_two_runs_whose_names_begin_alike(store: Store) -> None:
    first, second = add(store, "1"), add(store, "2", run="ab" * 8 + "cd" * 8)
    assert first.bundle != second.bundle
    assert "another run's" in second.apart
    assert check_chain(store) == []


def test_one_of_the_earlier_format_is_added_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(manifests, "encode", as_format_1)
        first = add(store, "1", b"first")
    assert read(store, first.bundle)[0].format == 1
    assert add(store, "2", b"second").bundle == first.bundle
    manifest, contents = read(store, first.bundle)
    assert contents == {"log.txt": b"first", "act-22222222/log.txt": b"second"}
    assert [part.act for part in manifest.parts] == ["2" * 32, "1" * 32]
    assert check_chain(store) == []


def as_format_1(manifest: Manifest) -> bytes:
    """The bytes that the first version wrote."""
    raw: dict[str, Any] = msgspec.to_builtins(manifest) | {"format": 1}
    for later in ("further", "replaces", "folder"):
        del raw[later]
    for part in raw["parts"]:
        del part["act"]
    return msgspec.json.encode(raw)


# ---------------------------------------------------------------- at the same time


def test_two_at_a_time(store: Store, make_store: MakeStore) -> None:
    """Both begin, the second is done first: each has its place, and no name is there twice."""
    with store.draft(origin("1")) as one, make_store().draft(origin("2")) as two:
        second = end(two, "2", b"second")
        first = end(one, "1", b"first")
    assert first.bundle == second.bundle
    manifest, contents = read(store, first.bundle)
    assert contents == {"log.txt": b"first", "act-22222222/log.txt": b"second"}
    assert [[part.name for part in manifest.parts_of(capture)] for capture in manifest.captures] == [
        ["act-22222222/log.txt"],
        ["log.txt"],
    ]
    assert check_chain(store) == []


def test_many_at_a_time(make_store: MakeStore) -> None:
    """Threads with their own stores: whoever loses its base copies anew or stays apart; nothing is lost."""
    acts = "123456"
    kept: list[Kept] = []
    together = threading.Barrier(len(acts))

    def capture(act: str) -> None:
        store = make_store()
        with store.draft(origin(act)) as draft:
            draft.writer.add("log.txt", act.encode() * 100_000)
            together.wait(20)
            kept.append(draft.commit(origin(act), {}))

    threads = [threading.Thread(target=capture, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    store = make_store()
    found = [content for bundle in store.bundles() for content in read(store, bundle)[1].values()]
    assert sorted(content[:1] for content in found) == [act.encode() for act in acts]
    assert check_chain(store) == []
    assert all(one.apart for one in kept if one.bundle != store.bundles()[0])


def test_a_base_that_is_replaced_during_the_copy(
    store: Store, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is copied anew; when that happens each time it stays apart, bounded."""
    add(store, "1", b"first")
    copied, copy = [], joining.copy
    acts = iter("456789")

    def interrupted(*args: Any) -> bool:
        copied.append(1)
        if len(copied) <= times:
            with monkeypatch.context() as calm:
                calm.setattr(joining, "copy", copy)
                add(make_store(), next(acts))
        return copy(*args)

    times = 1
    monkeypatch.setattr(joining, "copy", interrupted)
    assert add(store, "2", b"second").apart == ""
    assert len(copied) == 2
    copied.clear()
    times = joining.TRIES
    last = add(store, "3", b"last")
    assert (len(copied), "took their places" in last.apart) == (joining.TRIES, True)
    assert len(store.bundles()) == 2
    assert [read(store, bundle)[0].origin.run for bundle in store.bundles()] == [RUN, RUN]
    assert check_chain(store) == []


# Joins two captures of so many MiB that can't be compressed, then verifies; tells by how much its memory grew.
GROW = """
import os, resource, sys
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Limits, Store
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
store = Store(sys.argv[1], Limits(min_free_bytes=0))
store.open()
def capture(act, mib):
    origin = Origin(run="ab" * 16, act=act * 32)
    with store.draft(origin) as draft:
        part = draft.writer.begin("memory.bin", mib << 20)
        for _ in range(mib):
            part.write(os.urandom(1 << 20))
        part.end()
        return draft.commit(origin, {})
capture("0", 1)
before = peak()
kept = [capture(act, mib) for act, mib in (("1", int(sys.argv[2])), ("2", 1))]
with store.reading(kept[-1].bundle) as reader:
    assert reader.check() == []
    parts = len(reader.manifest.parts)
print(peak() - before, parts, len(store.bundles()))
"""


def test_memory_does_not_grow_with_what_is_copied(tmp_path: Path) -> None:
    """256 MiB are captured, copied as they are for the next capture, and verified."""
    argv = [sys.executable, "-c", GROW, str(tmp_path / "evidence"), "256"]
    ran = subprocess.run(argv, cwd=Path(__file__).parents[2], check=True, timeout=60, capture_output=True)
    grown, parts, bundles = map(int, ran.stdout.split())
    assert (parts, bundles) == (3, 1)
    assert grown <= 16 * 1024 * 1024


# ---------------------------------------------------------------- apart


def test_over_the_limit_it_stays_apart(make_store: MakeStore) -> None:
    store = make_store(max_bundle_bytes=250_000)
    first = add(store, "1", os.urandom(200_000))
    second = add(store, "2", os.urandom(100_000))
    assert "the limit is" in second.apart
    manifest, contents = read(store, second.bundle)
    assert (list(contents), manifest.notes["apart"]) == (["act-22222222/log.txt"], second.apart)
    third = add(store, "3", b"small")  # to the newest of the run
    assert (third.bundle, third.apart) == (second.bundle, "")
    assert read(store, first.bundle)[0].captures[0].origin.act == "1" * 32
    assert check_chain(store) == []


def test_without_time_it_stays_apart(store: Store) -> None:
    first = add(store, "1")
    with store.draft(origin("2")) as draft:
        draft.writer.add("log.txt", b"second")
        second = draft.commit(origin("2"), {}, join_s=-1.0)
    assert (second.bundle != first.bundle, "no time" in second.apart) == (True, True)
    assert [read(store, bundle)[1] for bundle in store.bundles()] == [
        {"log.txt": b"content"},
        {"act-22222222/log.txt": b"second"},
    ]
    assert check_chain(store) == []


def test_a_full_disk_keeps_it_apart(make_store: MakeStore) -> None:
    store = make_store()
    first = add(store, "1", os.urandom(1_000_000))
    nearly = make_store(min_free_bytes=store.free_bytes() - 500_000)
    with nearly.draft(origin("2")) as draft:
        second = end(draft, "2")
    assert (second.bundle != first.bundle, "too full" in second.apart) == (True, True)


@pytest.mark.parametrize("bound", ["MAX_PARTS", "MAX_REPLACED", "MAX_MANIFEST"])
def test_bounds_of_a_manifest(store: Store, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    first = add(store, "1")
    assert add(store, "2").apart == ""
    monkeypatch.setattr(joining, bound, 1)
    third = add(store, "3")
    assert third.bundle != first.bundle
    assert third.apart
    assert check_chain(store) == []


def test_one_act_twice(store: Store) -> None:
    """What an act keeps after its own evidence first is in the same folder. A name that is there stays apart."""
    first = add(store, "1")
    assert add(store, "2", name="processes/1.json").bundle == add(store, "2", name="file.bin").bundle == first.bundle
    again = add(store, "2", name="file.bin")
    assert (again.bundle != first.bundle, "the same name" in again.apart) == (True, True)
    assert check_chain(store) == []


@pytest.mark.parametrize("harm", ["cut", "removed", "foreign"])
def test_a_base_that_is_damaged_is_left_as_it_is(store: Store, harm: str) -> None:
    first = add(store, "1")
    path = Path(store.directory) / f"{first.bundle}{SUFFIX}"
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif harm == "removed":
        path.unlink()
    else:
        path.write_bytes(b"not a bundle at all, however long it is")
    second = add(store, "2")
    assert (second.bundle != first.bundle, bool(second.apart)) == (True, harm != "removed")
    assert read(store, second.bundle)[1]
    assert any(("bundle 1 is missing" if harm == "removed" else first.bundle) in line for line in check_chain(store))
