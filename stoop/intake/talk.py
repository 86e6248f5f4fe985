"""What one piece of a sender's bytes gave: pure, no socket. A talk is one connection's protocol.

`LineTalk` is NDJSON; `HttpTalk` (http1.py) and `SocksTalk` (socks.py) are the others. Each is fed with whatever
arrived, in pieces of any size, and says what came of it.
"""

from __future__ import annotations

import math
from typing import Protocol

from stoop.alert import Alert, decode
from stoop.errors import AlertError


class Haul:
    """What a piece of input gave: alerts, refusals, bytes to answer, and whether the connection ends with them."""

    __slots__ = ("alerts", "answer", "closing", "faults")

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.faults: list[AlertError] = []
        self.answer = b""
        self.closing = False

    def __bool__(self) -> bool:
        return bool(self.alerts or self.faults or self.answer or self.closing)


def bare(error: AlertError) -> AlertError:
    """The same refusal without the frames it came through.

    They hold the list that it goes into: a circle, which is only found by a collector that looks seldom. 200,000 bad
    lines took 70 MiB until then.
    """
    return AlertError(error.reason, error.kind)


class Talk(Protocol):
    """One connection's protocol. It raises nothing, whatever it is fed."""

    def feed(self, data: bytes) -> Haul:
        """Take the next bytes, in pieces of any size."""
        ...

    def end(self) -> Haul:
        """The sender has closed its side."""
        ...

    def patience(self) -> float:
        """Seconds for which the sender may be silent as things are; `inf` for ever."""
        ...

    def close(self) -> None:
        """Let go of what refers back to this object. Idempotent."""
        ...


class Lines:
    """One alert a line, split and decoded. What it keeps is never more than `limit` bytes: the begun line."""

    __slots__ = ("_carry", "_dropping", "_limit", "pending")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._carry = bytearray()  # a bytearray grows in amortized constant time: byte by byte is not quadratic
        self._dropping = False
        self.pending = 0  # bytes since the last newline, thrown away or not

    def feed(self, data: bytes, haul: Haul) -> None:
        """Add what is whole to the haul, keep the begun line."""
        lines = data.split(b"\n")
        last = lines.pop()
        if self.pending and lines:
            self._keep(lines[0], haul)
            lines[0] = self._take()
        if lines:
            self._decode(lines, haul)
        if last:
            self._keep(last, haul)

    def end(self, haul: Haul) -> None:
        """No more comes: a last line without a newline counts if it is whole."""
        if self.pending:
            self._decode([self._take()], haul)

    def _decode(self, lines: list[bytes], haul: Haul) -> None:
        alerts, faults = haul.alerts, haul.faults
        for line in lines:
            try:
                if len(line) > self._limit:
                    raise self._too_large()
                alerts.append(decode(line))
            except AlertError as error:
                if line and not line.isspace():
                    faults.append(bare(error))

    def _keep(self, piece: bytes, haul: Haul) -> None:
        self.pending += len(piece)
        if self._dropping:
            return
        if self.pending > self._limit:
            self._dropping = True
            self._carry = bytearray()
            haul.faults.append(self._too_large())
        else:
            self._carry += piece

    def _take(self) -> bytes:
        line = bytes(self._carry)
        self._carry = bytearray()
        self._dropping = False
        self.pending = 0
        return line

    def _too_large(self) -> AlertError:
        return AlertError(f"a line is longer than {self._limit} bytes; it was thrown away up to its end", "too large")


class LineTalk:
    """NDJSON: one alert a line, no answer. Each bad line is refused, the next is served."""

    __slots__ = ("_lines", "_slow_seconds")

    def __init__(self, alert_bytes: int, slow_seconds: float) -> None:
        self._lines = Lines(alert_bytes)
        self._slow_seconds = slow_seconds

    def feed(self, data: bytes) -> Haul:
        haul = Haul()
        self._lines.feed(data, haul)
        return haul

    def end(self) -> Haul:
        haul = Haul()
        self._lines.end(haul)
        return haul

    def patience(self) -> float:
        return self._slow_seconds if self._lines.pending else math.inf

    def close(self) -> None:
        """Nothing refers back."""
