"""Marks are committed in the order of the file, whatever the order in which batches settle."""

from __future__ import annotations

from stoop.intake.marks import FileMark, Ledger, fingerprint_of
from stoop.intake.testing import MemoryMarks


def mark(offset: int) -> FileMark:
    return FileMark("/x", 1, 2, offset, "")


def offsets(marks: MemoryMarks) -> list[int]:
    return [one.offset for one in marks.committed]


def test_only_the_settled_beginning_is_committed() -> None:
    marks = MemoryMarks()
    ledger = Ledger(marks)
    first, second, third, fourth = (ledger.begin(mark(offset)) for offset in (10, 20, 30, 40))
    third()
    second()
    assert offsets(marks) == []
    first()
    assert offsets(marks) == [30]
    fourth()
    assert offsets(marks) == [30, 40]
    assert len(ledger) == 0


def test_settling_twice_counts_once() -> None:
    marks = MemoryMarks()
    ledger = Ledger(marks, most=1)
    first, second = ledger.begin(mark(10)), ledger.begin(mark(20))
    first()
    first()
    assert offsets(marks) == []
    second()
    assert offsets(marks) == [20]


def test_what_is_not_settled_is_bounded() -> None:
    marks = MemoryMarks()
    ledger = Ledger(marks, most=2)
    settle = [ledger.begin(mark(offset)) for offset in range(10, 60, 10)]
    assert len(ledger) == 2
    for settled in settle[:-1]:
        settled()
    assert offsets(marks) == [10]
    settle[-1]()
    assert offsets(marks) == [10, 50]


def test_the_fingerprint_is_of_the_last_bytes() -> None:
    assert fingerprint_of(b"a" * 5000 + b"b" * 1024) == fingerprint_of(b"b" * 1024)
    assert fingerprint_of(b"a") != fingerprint_of(b"")
    assert len(fingerprint_of(b"")) == 32
