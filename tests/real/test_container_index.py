"""The index of containers on real cgroups: true after every change, and out of the way where it can't be."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.node import container_index
from agent.node.cgroup import Cgroups, Found
from agent.node.container_index import ContainerIndex
from stoop.errors import TargetRefused
from tests.real.conftest import CGROUP_ROOT, Box, MakeBox, Spawn, line

pytestmark = [pytest.mark.root, pytest.mark.real]


class Counting(Cgroups):
    """Counts the searches through whole hierarchies."""

    searches = 0

    def find(self, container_id: str) -> tuple[Found | None, Found | None]:
        self.searches += 1
        return super().find(container_id)


@pytest.fixture
def cgroups() -> Counting:
    return Counting(str(CGROUP_ROOT))


@pytest.fixture
def index(cgroups: Counting) -> Iterator[ContainerIndex]:
    made = ContainerIndex(cgroups)
    yield made
    made.close()


def where(index: ContainerIndex, container_id: str) -> list[str]:
    return [found.directory for found in index.find(container_id) if found is not None]


def paths(box: Box) -> list[str]:
    return [str(path) for path in box.directories]


@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
def test_what_was_there_before_and_what_came_after(
    kind: str, index: ContainerIndex, cgroups: Counting, make_box: MakeBox
) -> None:
    before = make_box(kind)
    assert where(index, before.container_id) == paths(before)
    after = make_box(kind)
    for box in (before, after):
        assert where(index, box.container_id) == where(index, box.container_id[:12]) == paths(box)
        assert {found.pod_uid for found in index.find(box.container_id) if found} == {box.pod_uid}
    assert cgroups.searches == 0
    for directory in after.directories:
        directory.rmdir()
    assert where(index, after.container_id) == []
    assert where(index, before.container_id) == paths(before)
    for directory in after.directories:
        directory.mkdir()
    assert where(index, after.container_id) == paths(after)
    assert cgroups.searches == 0


SLICE = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8c0e1c3e_5f1d_4a53_9b4f_0d6f6f0b1e77.slice"
ID, UID = "ab" * 32, "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"


@pytest.mark.parametrize("kind", ["v2", "hybrid"])
@pytest.mark.parametrize(
    ("name", "pod_uid"),
    [
        (f"kubepods/besteffort/pod{UID}/{ID}", UID),
        (f"{SLICE}/cri-containerd-{ID}.scope", UID),
        (f"{SLICE}/crio-{ID}.scope", UID),
        (f"{SLICE}/docker-{ID}.scope", UID),
        (
            f"system.slice/containerd.service/kubepods-burstable-pod{UID.replace('-', '_')}.slice:cri-containerd:{ID}",
            UID,
        ),
        (f"docker/{ID}", ""),
        (f"system.slice/docker-{ID}.scope", ""),
        (f"machine.slice/libpod-{ID}.scope", ""),
        (f"docker/{'cd' * 32}/kubelet/kubepods/pod{UID}/{ID}", UID),
    ],
)
def test_the_names_of_each_runtime_and_driver(
    name: str, pod_uid: str, kind: str, index: ContainerIndex, make_box: MakeBox
) -> None:
    index.update()
    box = make_box(kind, name)
    assert where(index, ID[:12]) == paths(box)
    assert {found.pod_uid for found in index.find(ID) if found} == {pod_uid}
    assert [found.directory for found in index.every() if found.container_id == ID] == [str(box.v2)]


def test_conmon_beside_a_container_is_not_it(index: ContainerIndex, make_box: MakeBox) -> None:
    box = make_box("v2", f"{SLICE}/crio-{ID}.scope")
    assert box.v2 is not None
    box.v2.with_name(f"crio-conmon-{ID}.scope").mkdir()
    (box.v2 / "container").mkdir()
    assert where(index, ID) == [str(box.v2)]


def test_a_miss_is_looked_into_once_until_something_changes(
    index: ContainerIndex, cgroups: Counting, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    differing = index._differing

    def look() -> str:
        looks.append(differing())
        return looks[-1]

    monkeypatch.setattr(index, "_differing", look)
    box = make_box("v2")
    for _ in range(3):
        assert index.find("f" * 64) == (None, None)
    assert looks == [""]
    for directory in box.directories:
        directory.rmdir()
    assert index.find("f" * 64) == (None, None)
    assert index.find("e" * 64) == (None, None)
    assert looks == [""] * 3
    assert cgroups.searches == 0


def test_an_index_that_has_missed_something_is_found_out_by_the_next_miss(
    index: ContainerIndex, cgroups: Counting, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box("v2")
    assert where(index, box.container_id) == paths(box)
    prefix = box.container_id[:12]
    index._found.pop(prefix)
    index._below[str(box.directories[0].parent)].clear()
    assert where(index, box.container_id) == paths(box)
    assert cgroups.searches == 1
    monkeypatch.setattr(index, "_again_ns", 0)
    assert where(index, box.container_id) == paths(box)
    assert cgroups.searches == 1


def test_two_directories_of_one_id_are_refused_until_one_goes(index: ContainerIndex, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    assert where(index, box.container_id) == paths(box)
    other = box.v2.parent / f"cri-containerd-{box.container_id}.scope"
    other.mkdir()
    for _ in range(2):
        with pytest.raises(TargetRefused, match=f"two cgroups are container {box.container_id[:12]}"):
            index.find(box.container_id[:12])
    assert {found.directory for found in index.every() if found.container_id == box.container_id} == {
        str(other),
        str(box.v2),
    }
    other.rmdir()
    assert where(index, box.container_id) == paths(box)


def test_what_a_pod_s_container_makes_below_is_not_looked_at(index: ContainerIndex, make_box: MakeBox) -> None:
    victim, liar = make_box("v2"), make_box("v2")
    assert liar.v2 is not None
    assert where(index, liar.container_id) == paths(liar)
    watches = len(index._watched)
    (liar.v2 / "kubepods" / f"pod{victim.pod_uid}" / victim.container_id).mkdir(parents=True)
    assert where(index, victim.container_id) == paths(victim)
    assert len(index._watched) == watches


def test_pods_of_a_node_that_is_a_container(index: ContainerIndex, make_box: MakeBox) -> None:
    node = make_box("v2", f"docker/{'d0' * 32}")
    assert node.v2 is not None
    assert where(index, "d0" * 32) == paths(node)
    inner = node.v2 / "kubelet" / "kubepods" / "burstable" / f"pod{node.pod_uid}" / node.container_id
    inner.mkdir(parents=True)
    assert where(index, node.container_id) == [str(inner)]
    assert where(index, "d0" * 32) == paths(node)


def test_a_container_of_no_pod_can_t_take_all_watches(
    index: ContainerIndex, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_index, "MAX_INSIDE", 5)
    liar, other = make_box("v2", f"docker/{'d0' * 32}"), make_box("v2")
    assert liar.v2 is not None
    assert where(index, other.container_id) == paths(other)
    before = len(index._watched)
    for turn in range(2):
        for number in range(20):
            (liar.v2 / f"{turn}-{number}").mkdir()
        assert where(index, other.container_id) == paths(other)
        assert len(index._watched) <= before + 5
        for number in range(20):
            (liar.v2 / f"{turn}-{number}").rmdir()
        assert where(index, other.container_id) == paths(other)
        assert len(index._watched) == before
    assert not index.fault


def test_more_told_than_is_read_at_once_is_searched_and_then_known(
    index: ContainerIndex, cgroups: Counting, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_box("v2")
    assert first.v2 is not None
    assert where(index, first.container_id) == paths(first)
    monkeypatch.setattr(container_index, "PORTION", 1024)
    for number in range(20):
        (first.v2.parent / f"{number:064x}").mkdir()
    last = f"{19:064x}"
    turns = 0
    while cgroups.searches == turns:
        assert where(index, last) == [str(first.v2.parent / last)]
        turns += 1
    assert 1 < turns < 20
    assert where(index, f"{0:064x}") == [str(first.v2.parent / f"{0:064x}")]


def test_after_an_overflow_all_is_read_anew(
    index: ContainerIndex, cgroups: Counting, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    assert where(index, box.container_id) == paths(box)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    spare = box.v2.parent / "x"
    for _ in range(most // 2 + 10):  # equal events in a row are one: these differ in turn
        spare.mkdir()
        spare.rmdir()
    new = box.v2.parent / ("e1" * 32)
    new.mkdir()  # told to nobody
    monkeypatch.setattr(container_index, "PORTION", 1 << 22)
    assert where(index, "e1" * 32) == [str(new)]
    assert cgroups.searches == 1  # it stands aside, for the last rebuild was just now
    monkeypatch.setattr(index, "_again_ns", 0)
    assert where(index, "e1" * 32) == [str(new)]
    assert cgroups.searches == 1


@pytest.mark.parametrize("limit", ["MAX_WATCHES", "MAX_DIRECTORIES"])
def test_where_it_can_t_watch_every_question_is_a_search(
    limit: str, index: ContainerIndex, cgroups: Counting, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box("v2")
    if limit == "MAX_WATCHES":
        monkeypatch.setattr(container_index, limit, 2)
        for count in (1, 2):
            assert where(index, box.container_id) == paths(box)
            assert cgroups.searches == count
        assert "more than 2 cgroups" in index.fault
    else:
        monkeypatch.setattr("agent.node.cgroup.MAX_DIRECTORIES", 2)
        with pytest.raises(TargetRefused, match="not searched to the end"):
            index.find(box.container_id)
        assert "not searched to the end" in index.fault


@pytest.mark.parametrize("kind", ["v1"])
def test_a_renamed_cgroup(kind: str, index: ContainerIndex, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box(kind)
    assert box.freezer is not None
    assert where(index, box.container_id) == paths(box)
    moved = box.freezer.with_name("e2" * 32)
    box.freezer.rename(moved)
    assert where(index, box.container_id) == []
    monkeypatch.setattr(index, "_again_ns", 0)
    assert where(index, "e2" * 32) == [str(moved)]
    moved.rename(box.freezer)


async def test_following_reads_what_is_told(index: ContainerIndex, cgroups: Counting, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    new = box.v2.parent / ("e3" * 32)
    came: list[Found] = []
    index.heard = came.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(index.follow, trio.lowlevel.checkpoint)
        await trio.testing.wait_all_tasks_blocked()
        new.mkdir()
        # It wakes, pauses and reads; then it sleeps for good.
        await trio.testing.wait_all_tasks_blocked(container_index.PAUSE_S * 4)
        nursery.cancel_scope.cancel()
    assert "e3" * 6 in index._found
    assert [found.directory for found in came if found.container_id == "e3" * 32] == [str(new)]
    assert where(index, "e3" * 32) == [str(new)]
    assert cgroups.searches == 0


def test_closed_twice_and_used_again(index: ContainerIndex, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert where(index, box.container_id) == paths(box)
    index.close()
    index.close()
    assert where(index, box.container_id) == paths(box)


CHURN = """
import os, random, sys
top, seed = sys.argv[1], int(sys.argv[2])
draw = random.Random(seed)
pods = [f"{top}/kubepods/pod{number:032x}" for number in range(6)]
print("ready", flush=True)
for _ in range(3000):
    path = draw.choice(pods)
    if draw.random() < 0.7:
        path += f"/{draw.randrange(120):064x}"
    try:
        os.mkdir(path) if draw.random() < 0.35 else os.rmdir(path)
    except OSError:
        pass
print("done", flush=True)
"""
"""Makes and removes pods and containers as fast as it can, some ids in several pods."""


def answer(find: Callable[[str], object], container_id: str) -> object:
    try:
        return find(container_id)
    except TargetRefused:
        return "refused"


@pytest.mark.parametrize("seed", range(3))
def test_amid_changes_it_ends_up_with_what_a_search_finds(
    seed: int, index: ContainerIndex, cgroups: Counting, make_box: MakeBox, spawn: Spawn
) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    top = box.v2.parents[3]
    program = spawn(sys.executable, "-c", CHURN, str(top), str(seed))
    assert line(program) == "ready"
    ids = [f"{number:064x}" for number in range(120)]
    ended = False
    while not ended:
        ended = program.poll() is not None
        for container_id in ids:
            answer(index.find, container_id)
    assert line(program) == "done"
    assert where(index, box.container_id) == paths(box)
    searches = cgroups.searches
    answers = [answer(index.find, container_id) for container_id in ids]
    assert cgroups.searches == searches
    assert answers == [answer(cgroups.find, container_id) for container_id in ids]
    assert "refused" in answers
    assert len({str(found) for found in answers}) > 10
    present = {f"{path}/{name}" for path, names, _ in os.walk(top) for name in names}
    assert {mount + path for mount, path in index._watches if str(top) in mount + path} <= present | {str(top)}


def test_too_many_that_came_at_once_are_a_fault_and_no_error(
    index: ContainerIndex, make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box("v2")
    assert box.v2 is not None
    assert where(index, box.container_id) == paths(box)
    for number in range(5):
        (box.v2.parents[2] / "burst" / f"{number}").mkdir(parents=True)
    monkeypatch.setattr("agent.node.cgroup.MAX_DIRECTORIES", 3)
    assert not index.update()
    assert "not searched to the end" in index.fault
    monkeypatch.undo()
    assert where(index, box.container_id) == paths(box)  # by a search
    monkeypatch.setattr(index, "_again_ns", 0)
    assert where(index, box.container_id) == paths(box)
    assert index.fault == ""


@pytest.mark.parametrize("kind", ["v2", "v1", "hybrid"])
def test_whoever_wants_to_is_told_of_each_new_one(kind: str, index: ContainerIndex, make_box: MakeBox) -> None:
    assert index.update()
    heard: list[Found] = []
    index.heard = heard.append
    box = make_box(kind)
    assert index.update()
    assert {found.directory for found in heard} == set(paths(box))
    assert {(found.container_id, found.pod_uid) for found in heard} == {(box.container_id, box.pod_uid)}
    index.heard = lambda found: None
    make_box(kind)
    assert index.update()
    assert len(heard) == len(paths(box))


def test_built_anew_it_tells_of_all(index: ContainerIndex, make_box: MakeBox) -> None:
    box = make_box("v2")
    assert index.update()
    heard: list[Found] = []
    index.heard = heard.append
    index.close()
    assert index.update()
    assert box.container_id in {found.container_id for found in heard}
