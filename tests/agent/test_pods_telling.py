"""What the reflex is told of pods: what is new, in order, and not too often."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from agent.pods.telling import FRESH_S, MAX_PODS, PAUSE_S, Telling
from stoop.podmeta import PodMeta
from stoop.wire import AnyMessage, PodGone, PodKnown, PodsFresh, PodsListed, PodsTrouble

A, B = PodMeta("a", "shop", "web-a"), PodMeta("b", "shop", "web-b")
A2 = PodMeta("a", "shop", "web-a", labels={"app": "web"})


@asynccontextmanager
async def telling() -> AsyncIterator[tuple[Telling, list[AnyMessage]]]:
    said: list[AnyMessage] = []
    made = Telling(lambda *messages: said.extend(messages))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made, said
        nursery.cancel_scope.cancel()


async def passed(seconds: float = PAUSE_S) -> None:
    await trio.sleep(seconds + 0.001)


async def test_only_what_changed_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        made.listed((A, B))
        await passed()
        assert said == [PodKnown(A), PodKnown(B), PodsListed(("a", "b"))]
        said.clear()
        made.put(A)
        made.put(A2)
        made.gone("b")
        made.gone("b")
        await passed()
        assert said == [PodKnown(A2), PodGone("b")]
        said.clear()
        made.listed((A2,))
        await passed()
        assert said == [PodsListed(("a",))]


async def test_what_changes_without_end_is_told_now_and_then(autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        for number in range(1000):
            made.put(PodMeta("a", "shop", "web", labels={"n": str(number)}))
            await trio.sleep(PAUSE_S / 100)
        await passed()
        assert len(said) <= 13
        assert said[-1] == PodKnown(PodMeta("a", "shop", "web", labels={"n": "999"}))


async def test_one_that_went_and_came_between_two_tellings(autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        made.listed((A,))
        await passed()
        said.clear()
        made.gone("a")
        made.put(A2)
        await passed()
        assert said == [PodKnown(A2)]


async def test_that_nothing_is_new_is_told_seldom(autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        made.listed((A,))
        await passed()
        said.clear()
        for _ in range(50):
            made.put(A)
            await trio.sleep(FRESH_S / 20)
        assert said.count(PodsFresh()) == len(said)
        assert 2 <= len(said) <= 3


async def test_more_than_can_be_kept_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        made.listed(PodMeta(str(number), "shop", "web") for number in range(MAX_PODS + 3))
        await passed()
        last = said[-1]
        assert isinstance(last, PodsListed)
        assert (len(last.uids), last.left_out, len(said)) == (MAX_PODS, 3, MAX_PODS + 1)


@pytest.mark.parametrize("error", ["it answers 403", ""])
async def test_trouble_is_told_after_what_is_known(error: str, autojump_clock: trio.testing.MockClock) -> None:
    async with telling() as (made, said):
        made.trouble(error)
        made.put(A)
        await passed()
        assert said == [PodKnown(A), PodsTrouble(error)]
