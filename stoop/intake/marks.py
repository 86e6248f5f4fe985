"""How far a followed file was read: the mark that is kept, and what of it may be committed."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from stoop.intake.limits import FINGERPRINT_BYTES, UNSETTLED_BATCHES
from stoop.store import FileMark

__all__ = ["FileMark", "Ledger", "Marks", "fingerprint_of"]


class Marks(Protocol):
    """Keeps one mark a path (the journal does). `commit` raises nothing: what can't be written is said there."""

    def load(self, path: str) -> FileMark | None: ...

    def commit(self, mark: FileMark) -> None: ...


def fingerprint_of(before: bytes) -> str:
    """32 hex digits of BLAKE2b over the last 1,024 bytes (or fewer) before an offset."""
    return hashlib.blake2b(before[-FINGERPRINT_BYTES:], digest_size=16).hexdigest()


class _Batch:
    __slots__ = ("mark", "open")

    def __init__(self, mark: FileMark) -> None:
        self.mark = mark
        self.open = 1


class Ledger:
    """Commits marks in the order of the file, whatever the order in which their batches settle."""

    def __init__(self, marks: Marks, most: int = UNSETTLED_BATCHES) -> None:
        self._marks = marks
        self._most = most
        self._batches: deque[_Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def begin(self, mark: FileMark) -> Callable[[], None]:
        """A batch was read up to `mark`; the function returned is to be called when it is settled."""
        if len(self._batches) >= self._most:
            batch = self._batches[-1]
            batch.mark = mark
            batch.open += 1
        else:
            batch = _Batch(mark)
            self._batches.append(batch)
        called = False

        def settled() -> None:
            nonlocal called
            if not called:
                called = True
                batch.open -= 1
                self._commit()

        return settled

    def _commit(self) -> None:
        last: FileMark | None = None
        while self._batches and not self._batches[0].open:
            last = self._batches.popleft().mark
        if last is not None:
            self._marks.commit(last)
