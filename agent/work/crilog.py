"""The log files of the container runtimes (CRI): lines into text as `kubectl logs` shows it, of which the end is kept.

    2026-11-24T13:00:00.123456789Z stdout P the beginning of a long line
    2026-11-24T13:00:00.123456790Z stdout F and its end
Format: kubelet-cri-logging.md of Kubernetes' design proposals. `P`: the line goes on in the next one; further tags may
follow a `:`. Pure.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

MAX_LINE = 1024 * 1024
"""Bytes of one line of a file. The runtimes cut what a container writes at 16 KiB, unless set otherwise."""

_LINE = re.compile(
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(?:Z|[+-][0-9:]{5}) (?:stdout|stderr) ([PF])[^ ]* ?(.*)", re.S
)
_FILE = re.compile(r"(0|[1-9][0-9]{0,9})\.log(?:\.([0-9]{8}-[0-9]{6}))?(\.gz)?", re.ASCII)


class LogFile(NamedTuple):
    """A log file by its name: `attempt` counts the container's instances, `rotated` is when it was put away ("~" for
    the one that is written). Sorted, the newest is last."""

    attempt: int
    rotated: str
    name: str
    packed: bool


def parse_name(name: str) -> LogFile | None:
    """None for what is no log file of a container; `0.log.20261124-130000.gz.tmp` is one being packed, and none yet."""
    match = _FILE.fullmatch(name)
    if match is None or (match[3] and not match[2]):
        return None
    return LogFile(int(match[1]), match[2] or "~", name, bool(match[3]))


def newest_first(names: list[str], attempt: int) -> list[LogFile]:
    """The log files among these, of one instance or (negative) of all. What is there packed too is taken unpacked."""
    found: dict[tuple[int, str], LogFile] = {}
    for file in filter(None, map(parse_name, names)):
        if attempt < 0 or file.attempt == attempt:
            key = file.attempt, file.rotated
            found[key] = min(file, found.get(key, file), key=lambda each: each.packed)
    return [found[key] for key in sorted(found, reverse=True)]


class Tail:
    """The end of a text: at most so many lines and bytes. `cut` once the bytes did not suffice."""

    def __init__(self, lines: int, size: int) -> None:
        self.wanted = lines
        self._most_bytes = size
        self._pieces: deque[bytes] = deque()
        self._ends = 0
        self._size = 0
        self.cut = False

    @property
    def lines(self) -> int:
        """Lines that it holds; the last one need not have ended."""
        return self._ends + bool(self._pieces and not self._pieces[-1].endswith(b"\n"))

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self._size

    def add(self, piece: bytes) -> None:
        """The next piece of the text: a line, or a part of one."""
        if not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        self._ends += piece.endswith(b"\n")
        while self.lines > self.wanted:
            self._drop()
        while self._size > self._most_bytes:
            self.cut = True
            self._drop()

    def text(self) -> bytes:
        """What it holds."""
        return b"".join(self._pieces)

    def _drop(self) -> None:
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._ends -= piece.endswith(b"\n")


class Reader:
    """Bytes of one log file, in order and however cut, into a `Tail`. `end` after the last.

    `begun` False: they begin amid a line, which is left out. `odd` counts lines that no runtime wrote, kept as they
    are, `long` those that were cut.
    """

    def __init__(self, tail: Tail, *, begun: bool = True) -> None:
        self._tail = tail
        self._rest = b""
        self._skip = not begun
        self.odd = 0
        self.long = 0

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        self._rest = rest
        if len(rest) > MAX_LINE:
            self._line(rest)
            self._skip, self._rest = True, b""

    def end(self) -> None:
        """No more bytes come: a line without an end is one that is just being written."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        if self._skip:
            self._skip = False
            return
        self.long += len(line) > MAX_LINE
        line = line[:MAX_LINE]
        text = self.parse(line)
        if text is None:
            self.odd += bool(line)
            self._tail.add(line + b"\n" if line else b"")
        else:
            self._tail.add(text)

    def parse(self, line: bytes) -> bytes | None:
        """The text of one line; None for what no runtime wrote."""
        match = _LINE.fullmatch(line)
        return None if match is None else match[2] + (b"\n" if match[1] == b"F" else b"")
