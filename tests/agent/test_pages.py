"""What the pages say of a reflex that answers, answers late or never: in virtual time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import trio
import trio.testing

from agent.pages import STUCK_SECONDS, Pages
from agent.reflex_peer import ANSWER_SECONDS, AT_ONCE, FRESH_SECONDS, ReflexPeer
from agent.serve_metrics import Request, Response
from stoop.wire import FrameReader, SnapshotAsk, SnapshotReply


class Reflex:
    """The other end of the stream: answers each ask after `delay` seconds, or not at all."""

    def __init__(self, stream: trio.abc.ReceiveStream, peer: ReflexPeer) -> None:
        self._stream = stream
        self._peer = peer
        self.delay: float | None = 0.0
        self.asks: list[int] = []

    async def run(self) -> None:
        reader = FrameReader()
        async with trio.open_nursery() as nursery:
            async for data in self._stream:
                for message in reader.feed(bytes(data)):
                    assert isinstance(message, SnapshotAsk)
                    self.asks.append(message.id)
                    if self.delay is not None:
                        nursery.start_soon(self._answer, message.id, self.delay)

    async def _answer(self, number: int, delay: float) -> None:
        await trio.sleep(delay)
        self._peer.take(SnapshotReply(number, {"rules": [((), number)]}, True, {"rules": "ok"}))


@contextlib.asynccontextmanager
async def together() -> AsyncIterator[tuple[Pages, Reflex, ReflexPeer]]:
    ours, theirs = trio.testing.memory_stream_pair()
    peer = ReflexPeer(ours)
    reflex = Reflex(theirs, peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        nursery.start_soon(reflex.run)
        yield Pages(peer, "0.1.0", dropped=lambda: 0), reflex, peer
        nursery.cancel_scope.cancel()


async def get(pages: Pages, path: str) -> Response:
    return await pages.handle(Request("GET", path, ""))


async def test_health_fails_when_the_last_answer_is_old(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, reflex, peer):
        assert (await get(pages, "/healthz")).status == 503
        await peer.ask()
        assert (await get(pages, "/healthz")).status == 200
        reflex.delay = None
        await trio.sleep(STUCK_SECONDS - 1)
        assert (await get(pages, "/healthz")).status == 200
        await trio.sleep(2)
        failing = await get(pages, "/healthz")
        assert failing.status == 503
        assert json.loads(failing.body)["reason"] == "the reflex has not answered for 11 s"


async def test_those_who_ask_together_share_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, reflex, _):
        reflex.delay = 0.1
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(get, pages, "/metrics")
        assert reflex.asks == [1]


async def test_who_asks_too_often_is_given_a_fresh_answer_again(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, reflex, _):
        for number in range(1, AT_ONCE):
            assert f"stoop_rules {number}.0".encode() in (await get(pages, "/metrics")).body
        for _ in range(1000):
            await get(pages, "/metrics")
            await get(pages, "/readyz")
            await trio.sleep(0.01)
        assert len(reflex.asks) <= AT_ONCE + 10 / FRESH_SECONDS + 1
        await trio.sleep(FRESH_SECONDS)
        latest = len(reflex.asks) + 1
        assert f"stoop_rules {latest}.0".encode() in (await get(pages, "/metrics")).body


async def test_a_late_answer_is_no_answer_but_counts_for_health(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, reflex, _):
        reflex.delay = ANSWER_SECONDS * 1.5
        assert (await get(pages, "/readyz")).status == 503
        await trio.sleep(1)
        assert (await get(pages, "/healthz")).status == 200
        metrics = (await get(pages, "/metrics")).body
        assert b"stoop_reflex_responding 0.0" in metrics
        assert b"stoop_rules 1.0" in metrics


async def test_a_silent_reflex_is_asked_once_a_second_at_most(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, reflex, _):
        reflex.delay = None
        began = trio.current_time()
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(get, pages, "/metrics")
        assert trio.current_time() - began <= 10 * ANSWER_SECONDS + 0.1
        assert len(reflex.asks) <= 11


async def test_a_reflex_that_does_not_even_read_is_not_piled_up_on(autojump_clock: trio.testing.MockClock) -> None:
    ours, _ = trio.testing.lockstep_stream_pair()
    peer = ReflexPeer(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        for _ in range(20):
            assert await peer.ask() is None
        assert len(peer._outbox) < 100
        nursery.cancel_scope.cancel()


async def test_no_such_page(autojump_clock: trio.testing.MockClock) -> None:
    async with together() as (pages, _, _peer):
        assert (await get(pages, "/")).status == 404
