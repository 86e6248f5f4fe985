"""What outlives the machine: on the disk itself before it is done, whatever happens while the disk is slow."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import trio

from stoop.holdings import GIVEN_BACK
from stoop.holds import Hold
from stoop.testing import FakeFiles, Workbench
from tests.test_giveback import DONE, Lamp, bench_of, take


class SlowFiles(FakeFiles):
    """A disk whose sync lasts until a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.syncing = threading.Event()
        self.may_end = threading.Event()

    def keep(self, hold: Hold, *, synced: bool) -> str:
        """In a thread when it is synced."""
        if synced:
            self.syncing.set()
            assert self.may_end.wait(10)
        return super().keep(hold, synced=synced)


async def synced(
    bench: Workbench, nursery: trio.Nursery, meanwhile: Callable[[], Awaitable[object]]
) -> tuple[str, SlowFiles]:
    """What `keep_synced` says of a hold with which that happens while the disk is slow."""
    act = await take(bench, nursery)
    slow = SlowFiles()
    slow.kept = dict(bench.files.kept)
    bench.holdings._files = slow
    said: list[str] = []

    async def keep() -> None:
        said.append(await bench.holdings.keep_synced(act, {"file": "x"}))

    async with trio.open_nursery() as keeping:
        keeping.start_soon(keep)
        assert await trio.to_thread.run_sync(slow.syncing.wait, 10)
        await meanwhile()
        slow.may_end.set()
    return said[0], slow


async def nothing() -> None:
    """Nobody does anything."""


async def test_what_outlives_the_machine_is_on_the_disk_before_it_is_done(nursery: trio.Nursery) -> None:
    bench = bench_of(Lamp(DONE, lasting=True))
    assert bench.files.synced == []
    said, files = await synced(bench, nursery, nothing)
    ((act, hold),) = files.kept.items()
    assert (said, files.synced, hold.state) == ("", [act], {"lamp": 1, "more": 2, "file": "x"})


async def test_what_changed_while_the_disk_was_slow_is_written_again(nursery: trio.Nursery) -> None:
    bench = bench_of(Lamp(DONE, lasting=True))

    async def extend() -> None:
        bench.giveback.extend("*", 0)

    said, files = await synced(bench, nursery, extend)
    ((act, hold),) = files.kept.items()
    assert (said, files.synced, hold.until_ns) == ("", [act, act], 0)


async def test_what_was_given_back_meanwhile_is_not_taken(nursery: trio.Nursery) -> None:
    bench = bench_of(Lamp(DONE, lasting=True))
    said, files = await synced(bench, nursery, lambda: bench.giveback.undo("*"))
    assert (said, files.kept) == (GIVEN_BACK, {})


async def test_what_can_t_be_synced_is_not_taken(nursery: trio.Nursery) -> None:
    bench = bench_of(Lamp(DONE, lasting=True))
    act = await take(bench, nursery)
    bench.files.trouble = "No space left on device"
    assert "can't be written down first: No space" in await bench.holdings.keep_synced(act, {})
