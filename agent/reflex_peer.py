"""The helper's view of the reflex: sends it frames, asks it for snapshots, knows when it last answered."""

from __future__ import annotations

import trio

from stoop.wire import AnyMessage, SnapshotAsk, SnapshotReply, encode

ANSWER_SECONDS = 1.0
"""How long an answer is waited for: the reflex answers within a millisecond or is in trouble. Scrapers wait 10 s."""


FRESH_SECONDS = 0.5
"""How old an answer may be that is given again to those who ask too often: they cost two answers a second."""

AT_ONCE = 50
"""Answers in a row that are of now, before that holds; two a second come back. A scraper and a person never notice."""


class ReflexPeer:
    """`run` owns the sending half of the stream. Several tasks may post and ask; none of them waits for the socket.

    The outbox is bounded by what is posted: the rules of the newest files, one Serving, and one ask a second until
    there is an answer, none while others wait to be sent.
    """

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream
        self._outbox = bytearray()
        self._posted = trio.Event()
        self._answered = trio.Event()
        self._next_id = 0
        self._left = 0.0
        self._counted_at = float("-inf")
        self.asked_at = float("-inf")
        self.answered_at = float("-inf")
        self.last: SnapshotReply | None = None

    def post(self, *messages: AnyMessage) -> None:
        """Send these in order, as soon as the reflex takes them."""
        for message in messages:
            self._outbox += encode(message)
        self._posted.set()

    async def run(self) -> None:
        """Send what is posted, until cancelled or until the reflex has gone (which the reader sees as well)."""
        while True:
            await self._posted.wait()
            self._posted = trio.Event()
            sending, self._outbox = self._outbox, bytearray()
            try:
                await self._stream.send_all(sending)
            except trio.BrokenResourceError:
                return

    def take(self, reply: SnapshotReply) -> None:
        """An answer has come."""
        self.last = reply
        self.answered_at = trio.current_time()
        self._answered.set()

    async def ask(self) -> SnapshotReply | None:
        """A snapshot of now, or None when the reflex does not answer in time.

        Those who ask together share one; of those who ask too often it is FRESH_SECONDS old at most. An ask that is a
        second old is taken for lost (the reflex drops frames when it is far behind) and repeated.
        """
        if not self._may_ask() and trio.current_time() - self.answered_at < FRESH_SECONDS:
            return self.last
        if self._answered.is_set():
            self._answered = trio.Event()
            self.asked_at = float("-inf")
        if trio.current_time() - self.asked_at >= ANSWER_SECONDS and not self._outbox:
            self._next_id += 1
            self.asked_at = trio.current_time()
            self.post(SnapshotAsk(self._next_id))
        with trio.move_on_after(ANSWER_SECONDS):
            await self._answered.wait()
            return self.last
        return None

    def _may_ask(self) -> bool:
        """Whether the reflex may be asked although its last answer is fresh; counts that it is."""
        now = trio.current_time()
        self._left = min(AT_ONCE, self._left + (now - self._counted_at) / FRESH_SECONDS)
        self._counted_at = now
        may = self._left >= 1
        self._left -= may
        return may
