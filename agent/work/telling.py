"""From the process that reads a target to the one that writes the bundle: parts, piece by piece, over a pipe.

Frames of a 4-byte little-endian length; msgpack arrays, tagged. The reader may be ended amid any of them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from agent.work.aside import Step

PIECE = 256 * 1024
"""Bytes of a part in one frame."""

TOGETHER = 64 * 1024
"""Bytes that are sent at once: each wakes the scribe. What a reader that hangs has not sent is read again."""

_LENGTH = struct.Struct("<I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of every frame."""


class Whole(Frame, frozen=True):
    """A part at once."""

    name: str
    data: bytes
    about: dict[str, Any]


class Begin(Frame, frozen=True):
    """A part of this size; Piece and Gap follow, then End."""

    name: str
    size: int
    about: dict[str, Any]


class Piece(Frame, frozen=True):
    """The next bytes of the part that has begun."""

    data: bytes


class Gap(Frame, frozen=True):
    """So many bytes of it could not be read."""

    length: int


class End(Frame, frozen=True):
    """The part is complete."""


class Lack(Frame, frozen=True):
    """Something is missing or cut."""

    what: str
    why: str


class Phase(Frame, frozen=True):
    """All of a phase was read (`agent.jobs.VOLATILE`)."""

    name: str


class Done(Frame, frozen=True):
    """All was read. `notes` are for the manifest."""

    notes: dict[str, Any]


class No(Frame, frozen=True):
    """Nothing can be read: because of what the target is, or because it has `gone`. Done follows."""

    why: str
    gone: bool


AnyFrame = Whole | Begin | Piece | Gap | End | Lack | Phase | Done | No

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyFrame)


class Teller:
    """The reader's end. What was told by an earlier reader, and steps in which one hung, are left out."""

    def __init__(self, fd: int, step: Step, told: frozenset[str], hung: frozenset[str]) -> None:
        self._fd = fd
        self._step = step
        self.told = told
        self._hung = hung
        self.notes: dict[str, Any] = {}
        self._waiting = bytearray()

    def may(self, step: str) -> bool:
        """Whether to take this step, which may never end. Its name is ASCII; the same step has the same name again."""
        if step in self._hung:
            return False
        self._step.set(step)
        return True

    def whole(self, name: str, data: bytes, about: dict[str, Any] | None = None) -> None:
        """A part at once."""
        if name not in self.told:
            self._send(Whole(name, data, about or {}))

    def begin(self, name: str, size: int, about: dict[str, Any] | None = None) -> bool:
        """Begin a part, to be ended; False when it is there already."""
        if name in self.told:
            return False
        self._send(Begin(name, size, about or {}))
        return True

    def piece(self, data: bytes | memoryview) -> None:
        """The next bytes of it."""
        self._send(Piece(bytes(data)))

    def gap(self, length: int) -> None:
        """So many of them could not be read."""
        self._send(Gap(length))

    def end(self) -> None:
        """It is complete."""
        self._send(End())

    def lacks(self, what: str, why: str) -> None:
        """Something is missing or cut. `what` may be a target's text."""
        self._send(Lack(what, why))

    def no(self, why: str, gone: bool) -> None:
        """Nothing can be read of this target."""
        self._send(No(why, gone))

    def phase(self, name: str) -> None:
        """All of this phase was read."""
        self._send(Phase(name))

    def done(self) -> None:
        """All was read."""
        self._send(Done(self.notes))

    def _send(self, frame: Frame) -> None:
        body = _encoder.encode(frame)
        self._waiting += _LENGTH.pack(len(body))
        self._waiting += body
        if len(self._waiting) >= TOGETHER or isinstance(frame, Phase | Done):
            self._flush()

    def _flush(self) -> None:
        with memoryview(self._waiting) as left:
            sent = 0
            while sent < len(left):
                sent += os.write(self._fd, left[sent:])
        self._waiting.clear()


class Listener:
    """The scribe's end: bytes as they come, whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[AnyFrame]:
        """Frames completed by these bytes."""
        self._buffer += data
        offset = 0
        while len(self._buffer) - offset >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, offset)
            end = offset + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            frame: AnyFrame = _decoder.decode(memoryview(self._buffer)[offset + _LENGTH.size : end].tobytes())
            offset = end
            yield frame
        del self._buffer[:offset]
