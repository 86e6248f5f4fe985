"""One sender's connection: read, answer, act, in this order, and never wait for the sender between answer and act.

Plain non-blocking sockets: a trio stream costs 10 µs a read more than the read itself. Deadlines are looked at once a
second for all connections (`overdue`), because a timer a read would cost as much again.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable

import trio

from stoop.errors import AlertError
from stoop.intake.limits import READ_BYTES, TURN_BYTES, TURN_NS
from stoop.intake.sink import Desk, Peer
from stoop.intake.talk import Haul, Talk

# A read with more newlines than this is fed in small portions, so that a flood of tiny lines or requests (each
# decoded, some refused with a traceback) does not hold up the other senders. Real alerts come at 11 a read.
_MANY_LINES = 256
_PORTION_BYTES = 512


def portions(data: bytes) -> Iterable[bytes]:
    """The same bytes, in one portion or, where they hold very many lines, in many."""
    if data.count(b"\n") <= _MANY_LINES:
        return (data,)
    return (data[at : at + _PORTION_BYTES] for at in range(0, len(data), _PORTION_BYTES))


class Connection:
    """Owns the socket and closes it. `choose` picks the protocol by the first bytes; `known`: may be told at once."""

    __slots__ = (
        "_broken", "_choose", "_desk", "_drained", "_fd", "_opened", "_out", "_patience", "_scope", "_sock", "_talk",
        "_turn_bytes", "_turn_ns", "_why", "deadline", "peer",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, peer: Peer, choose: Callable[[bytes], Talk], desk: Desk) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self.peer = peer
        self._choose = choose
        self._desk = desk
        self._talk: Talk | None = None
        self._scope = trio.CancelScope()
        self._out = b""  # answers that the kernel did not take at once: those of one read at most
        self._broken = False  # no answer can be written any more; what lies unread is served all the same
        self._drained = True  # the last read took all there was
        self._opened = False
        self._why: AlertError | None = None
        self._patience = math.inf
        self._turn_bytes = 0  # read since the others had their turn
        self._turn_ns = 0  # when that began; 0: not yet
        self.deadline = math.inf

    async def run(self, *, known: bool, patience: float = math.inf) -> None:
        """Serve until either side ends it. `patience`: seconds that it may be silent before its first byte."""
        self._patience = patience
        self.deadline = trio.current_time() + patience
        if known:
            self._open()
        try:
            with self._scope:
                await self._serve()
            if self._scope.cancelled_caught and self._why is not None:
                self._desk.sink.refuse(self._why, self.peer)
        finally:
            self._sock.close()
            if self._talk is not None:
                self._talk.close()
            if self._opened:
                self._desk.sink.closed(self.peer)

    @property
    def stranger(self) -> bool:
        """It has not shown yet that it may send."""
        return not self._opened

    def overdue(self, now: float) -> None:
        """Cut the connection when its deadline has passed; `now` as trio.current_time()."""
        if now >= self.deadline:
            self.cut(self._too_slow())

    def cut(self, why: AlertError | None) -> None:
        """End it, which is counted as `why` unless that is None."""
        self._why = why
        self._scope.cancel()

    async def _serve(self) -> None:
        while data := await self._read():
            if self._talk is None:
                self._talk = self._choose(data)
            received_ns = self._desk.now_ns()
            self._turn_ns = self._turn_ns or received_ns
            for portion in portions(data):
                haul = self._talk.feed(portion)
                self._deliver(haul, received_ns)
                if self._out:
                    await self._flush()
                if haul.closing:
                    await self._linger()
                    return
                self._extend(bool(haul))
                await self._give_turn(len(portion))
        if self._talk is not None:
            self._deliver(self._talk.end(), self._desk.now_ns())

    def _deliver(self, haul: Haul, received_ns: int) -> None:
        """Answer, then act. What the socket does not take at once is kept and written after the acts."""
        sink = self._desk.sink
        if haul.alerts:
            sink.taken(len(haul.alerts), received_ns)
        if haul.answer:
            self._send(haul.answer)
        if haul.alerts:
            if not self._opened:
                self._open()
            sink.accept(haul.alerts, received_ns, self.peer)
        for fault in haul.faults:
            sink.refuse(fault, self.peer)

    def _open(self) -> None:
        self._opened = True
        self._desk.sink.opened(self.peer)

    def _extend(self, progress: bool) -> None:
        """A new deadline when something became whole or another patience holds; else the old one runs on."""
        assert self._talk is not None
        patience = self._talk.patience()
        if progress or patience != self._patience:
            self._patience = patience
            self.deadline = trio.current_time() + patience

    # ---------------------------------------------------------------- the socket

    async def _read(self) -> bytes:
        """The next bytes; b"" when the sender has closed or the connection broke."""
        if self._drained:
            await self._wait_readable()
        while True:
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                await self._wait_readable()
            except OSError:  # reset by the sender: what came before it was served
                return b""
            else:
                self._drained = len(data) < READ_BYTES
                return data

    async def _wait_readable(self) -> None:
        self._turn_bytes = self._turn_ns = 0
        await trio.lowlevel.wait_readable(self._fd)

    async def _give_turn(self, size: int) -> None:
        """Let the others run after enough bytes or time without a wait."""
        self._turn_bytes += size
        if self._turn_bytes >= TURN_BYTES or self._desk.now_ns() - self._turn_ns >= TURN_NS:
            self._turn_bytes = self._turn_ns = 0
            await trio.lowlevel.checkpoint()

    def _send(self, answer: bytes) -> None:
        if self._broken:
            return
        try:
            sent = self._sock.send(answer) if not self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # gone without its answer: the alerts are acted on all the same
            self._broken = True
            return
        if sent < len(answer):
            self._out += answer[sent:]

    async def _flush(self) -> None:
        """Write what is left. Nothing is read meanwhile, so a sender that takes no answers holds up itself alone."""
        self._patience = self._desk.limits.write_seconds
        self.deadline = trio.current_time() + self._patience
        while self._out and not self._broken:
            await trio.lowlevel.wait_writable(self._fd)
            out, self._out = self._out, b""
            self._send(out)

    async def _linger(self) -> None:
        """Close our side, then read and throw away until the sender has closed its own, or for a second."""
        self.deadline = math.inf
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # not connected any more
            return
        with trio.move_on_after(self._desk.limits.linger_seconds):
            while await self._read():
                await trio.lowlevel.checkpoint()

    def _too_slow(self) -> AlertError | None:
        if self._out:
            seconds = self._desk.limits.write_seconds
            return AlertError(f"the sender took no answer for {seconds:g} s; the connection was closed", "too slow")
        if self._patience == self._desk.limits.slow_seconds:
            seconds = self._patience
            return AlertError(f"nothing whole was sent for {seconds:g} s; the connection was closed", "too slow")
        return None  # idle between two requests: nothing is lost
