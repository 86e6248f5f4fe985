"""One bundle a run: what a second capture makes of it, whoever is killed, and when it has to stay apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoop.evidence import joining
from stoop.evidence import manifest as manifests
from stoop.evidence.chain import check_chain, let_go
from stoop.evidence.draft import Draft
from stoop.evidence.head import HEAD
from stoop.evidence.manifest import SUFFIX, Manifest, Origin
from stoop.evidence.store import WRITING, Kept, Store
from tests.evidence.conftest import Clock, MakeStore, keep

RUN, OTHER = "ab" * 16, "cd" * 16
SECOND_NS = 10**9


def origin(act: str, run: str = RUN) -> Origin:
    return Origin(rule="A rule", run=run, act=act * 32, actionner="evidence:snapshot")


def add(store: Store, act: str, content: bytes = b"content", run: str = RUN, name: str = "log.txt") -> Kept:
    """One capture of a run with one part."""
    with store.draft(origin(act, run)) as draft:
        return end(draft, act, content, run, name)


def end(draft: Draft, act: str, content: bytes = b"content", run: str = RUN, name: str = "log.txt") -> Kept:
    draft.writer.add(name, content)
    draft.writer.lacks("upper", "no overlay")
    return draft.commit(origin(act, run), {"pid": 4711}, {"by": act})


def read(store: Store, bundle: str) -> tuple[Manifest, dict[str, bytes]]:
    """A bundle that is as it was written."""
    contents: dict[str, bytes] = {}

    def sink(part: manifests.Part, data: bytes) -> None:
        contents[part.name] = contents.get(part.name, b"") + data

    with store.reading(bundle) as reader:
        assert reader.check(sink) == []
        return reader.manifest, contents


def files(store: Store) -> set[str]:
    return set(os.listdir(store.directory))


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
