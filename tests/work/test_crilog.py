"""The runtimes' log format: whole, byte by byte, and amid anything else; its end within every bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.work import crilog
from agent.work.crilog import Reader, Tail, newest_first, parse_name

AT = b"2026-11-24T13:00:00.123456789"


def read(data: bytes, lines: int = 100, size: int = 10**6, step: int = 0) -> tuple[bytes, Tail, Reader]:
    """The text of these bytes, fed whole or so many at a time."""
    tail = Tail(lines, size)
    reader = Reader(tail)
    for at in range(0, len(data), step or max(1, len(data))):
        reader.feed(data[at : at + (step or len(data))])
    reader.end()
    return tail.text(), tail, reader


WHOLE = (
    AT + b"Z stdout F one\n" + AT + b"+01:00 stderr F two\n" + AT + b"Z stdout P thr\n" + AT + b"Z stdout P:x ee \n"
    b"2026-11-24T13:00:00Z stdout F  end\n" + AT + b"Z stdout F \n" + AT + b"Z stdout F\n" + AT + b"Z stdout F \xff\r\n"
)
TEXT = b"one\ntwo\nthree  end\n\n\n\xff\r\n"


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7, 64])
def test_text(step: int) -> None:
    text, tail, reader = read(WHOLE, step=step)
    assert text == TEXT
    assert (tail.lines, reader.odd, tail.cut) == (6, 0, False)


def test_a_line_that_has_not_ended() -> None:
    assert read(WHOLE + AT + b"Z stdout P begun")[0] == TEXT + b"begun"
    assert read(AT + b"Z stdout F a\n" + AT + b"Z stdout P b\n", lines=1)[0] == b"b"


def test_what_no_runtime_wrote_is_kept_and_counted() -> None:
    text, _, reader = read(b"root:x:0:0\n\n" + WHOLE + b"{}")
    assert text == b"root:x:0:0\n" + TEXT + b"{}\n"
    assert reader.odd == 2


@pytest.mark.parametrize(
    ("lines", "kept"), [(0, b""), (1, b"\xff\r\n"), (3, b"\n\n\xff\r\n"), (4, b"three  end\n\n\n\xff\r\n")]
)
def test_last_lines(lines: int, kept: bytes) -> None:
    assert read(WHOLE, lines=lines)[0] == kept


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    text, tail, _ = read(WHOLE, size=6)
    assert (text, tail.cut) == (b"\n\n\xff\r\n", True)
    monkeypatch.setattr(crilog, "MAX_LINE", 100)
    for step in (1, 30, 1000):
        text, _, reader = read(AT + b"Z stdout F " + b"x" * 500 + b"\n" + WHOLE, step=step)
        assert text == b"x" * (100 - len(AT + b"Z stdout F ")) + b"\n" + TEXT
        assert reader.long == 1


def test_begun_amid_a_line() -> None:
    tail = Tail(10, 1000)
    reader = Reader(tail, begun=False)
    reader.feed(b"F rest of a line\n" + WHOLE)
    assert tail.text() == TEXT


def test_names() -> None:
    names = ["0.log", "1.log", "1.log.20261124-130000", "1.log.20261124-120000.gz", "1.log.20261124-130000.gz"]
    odd = ["1.log.gz", "01.log", "1.log.20261124-130000.gz.tmp", "a.log", "1.log\n", "../1.log", "1.log.tmp", "-1.log"]
    assert [parse_name(name) for name in odd] == [None] * len(odd)
    order = ["1.log", "1.log.20261124-130000", "1.log.20261124-120000.gz", "0.log"]
    assert [file.name for file in newest_first(names + odd, -1)] == order
    assert [file.name for file in newest_first(names, 0)] == ["0.log"]
    assert newest_first([], -1) == []


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(0, 100), st.integers(1, 50))
def test_never_more_than_was_asked_for(data: bytes, lines: int, size: int, step: int) -> None:
    text, tail, _ = read(data, lines, size, step)
    assert len(text) == tail.size <= size
    assert tail.lines <= lines
    assert text.count(b"\n") <= lines
