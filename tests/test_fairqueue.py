"""Fair by container, bounded, nothing lost silently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoop.fairqueue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


def test_one_noisy_container_does_not_starve_another() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for number in range(50):
        queue.push(f"noisy{number}", "noisy", ("R", "noisy"))
    queue.push("quiet", "quiet", ("R", "quiet"))
    assert drained(queue)[:3] == ["noisy0", "quiet", "noisy1"]


def test_inside_a_container_the_order_is_kept() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for number in range(5):
        queue.push(str(number), "c", ("R", str(number)))
    assert drained(queue) == list("01234")


def test_when_full_the_newest_of_the_busiest_makes_room() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for number in range(3):
        queue.push(f"busy{number}", "a", ("R", "a"))
    queue.push("other", "b", ("R", "b"))
    assert queue.push("new", "c", ("R", "c")) == "busy2"
    assert len(queue) == 4
    assert sorted(drained(queue)) == ["busy0", "busy1", "new", "other"]


def test_a_flood_of_one_target_drops_its_own_newest() -> None:
    queue: FairQueue[str] = FairQueue(3)
    dropped = [queue.push(str(number), "a", ("R", "a")) for number in range(10)]
    assert dropped == [None, None, None, *"3456789"]
    assert drained(queue) == list("012")


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"))), max_size=200))
def test_every_item_comes_out_once_or_is_named_as_dropped(steps: list[tuple[str, str] | None]) -> None:
    queue: FairQueue[int] = FairQueue(5)
    put, seen = 0, []
    for step in steps:
        if step is None:
            item = queue.pop()
        else:
            item = queue.push(put, step[0], (step[1], step[0]))
            put += 1
        if item is not None:
            seen.append(item)
        assert len(queue) <= 5
    while (item := queue.pop()) is not None:
        seen.append(item)
    assert sorted(seen) == list(range(put))
    assert len(queue) == 0
