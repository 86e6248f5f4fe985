"""Log lines: nothing in a value can move a cursor, hide text or begin a line."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from stoop import log
from stoop.log import line_json, line_text, printable, resolve_format, timestamp

AT = 1_754_302_272_123_456_789
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain text, ünïcödé 漢字 €", "plain text, ünïcödé 漢字 €"),
            ("", ""),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
            ("\x9b2J", r"\x9b2J"),
            ("\x00\x7f", r"\x00\x7f"),
            ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
            ("\u200e\u200f\u061c\u200b\ufeff", r"\u200e\u200f\u061c\u200b\ufeff"),
            ("\u2028\u2029\u00a0\u3000", r"\u2028\u2029\xa0\u3000"),
            ("\u115f\u3164\uffa0\u2800\ufe0f\u034f", r"\u115f\u3164\uffa0\u2800\ufe0f\u034f"),
            ("\U000e0041", r"\U000e0041"),
            ("\ud800", r"\ud800"),
            (r"C:\back", r"C:\back"),
        ],
    )
    def test_examples(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    def test_every_character_of_unicode(self) -> None:
        """What is let through is a letter, mark, number, punctuation, symbol or the plain space."""
        for code in range(sys.maxunicode + 1):
            shown = printable(chr(code))
            if shown == chr(code):
                category = unicodedata.category(shown)
                assert category[0] in "LMNPS" or shown == " ", hex(code)
                assert unicodedata.bidirectional(shown) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "PDI"}

    @given(st.text())
    def test_it_is_one_printable_line_and_stays_so(self, text: str) -> None:
        shown = printable(text)
        assert shown.isprintable()
        assert printable(shown) == shown


class TestText:
    def test_the_shape(self) -> None:
        fields = {"rule": "Kill a shell", "n": 3, "none": None, "yes": True, "empty": "", "ok": "a/b:c", "f": 1.5}
        assert line_text("info", "act", AT, fields) == (
            '2025-08-04T10:11:12.123456Z INF act rule="Kill a shell" n=3 none=- yes=true empty="" ok=a/b:c f=1.5'
        )

    def test_values_can_not_pretend_to_be_keys(self) -> None:
        line = line_text("warning", "act", AT, {"rule": 'x" outcome=done "', "a": "b=c", "q": "\\"})
        assert line.endswith(r'rule="x\" outcome=done \"" a="b=c" q="\"')

    def test_nested_values_are_compact_json_without_escapes_for_letters(self) -> None:
        line = line_text("error", "act", AT, {"target": {"pid": 1, "name": "é\u202e"}, "l": (1, "a")})
        assert line.endswith('ERR act target={"pid":1,"name":"é\\u202e"} l=[1,"a"]')

    def test_long_values_are_cut_and_say_so(self) -> None:
        line = line_text("info", "act", AT, {"cmd": "x" * (log.MAX_VALUE + 5)})
        assert line.endswith('x… (5 more)"')

    @given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
    def test_any_fields_are_one_printable_line(self, event: str, fields: dict[str, Any]) -> None:
        assert line_text("info", event, AT, fields).isprintable()


class TestJson:
    def test_the_shape(self) -> None:
        line = line_json("info", "act", AT, {"rule": "é\u202e\x1b\x9b\x7f", "n": 2**70, "level": "not this one"})
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line) == {
            "time": "2025-08-04T10:11:12.123456Z",
            "level": "info",
            "event": "act",
            "rule": "é\u202e\x1b\x9b\x7f",
            "n": 2**70,
        }

    def test_what_json_does_not_know(self) -> None:
        odd = {"nan": float("nan"), "inf": [float("inf"), 1.5], "path": Path("/x"), "key": {(1, 2): {1: b"b"}}}
        assert json.loads(line_json("info", "x", AT, odd)) | {"time": ""} == {
            "time": "",
            "level": "info",
            "event": "x",
            "nan": "nan",
            "inf": ["inf", 1.5],
            "path": "/x",
            "key": {"(1, 2)": {"1": "b'b'"}},
        }

    @given(st.dictionaries(st.text(), st.text() | st.floats() | st.none()))
    def test_any_fields_are_one_json_object(self, fields: dict[str, Any]) -> None:
        line = line_json("info", "x", AT, fields)
        assert line.isascii()
        assert "\n" not in line
        assert set(json.loads(line)) == {"time", "level", "event"} | set(fields)


class TestTimestamp:
    @pytest.mark.parametrize(
        ("at_ns", "text"),
        [
            (0, "1970-01-01T00:00:00.000000Z"),
            (999_999, "1970-01-01T00:00:00.000999Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ],
    )
    def test_utc_with_microseconds(self, at_ns: int, text: str) -> None:
        assert timestamp(at_ns) == text


class TestStructlog:
    def test_text_on_a_terminal_else_json(self) -> None:
        assert resolve_format("auto", Terminal()) == "text"
        assert resolve_format("auto", io.StringIO()) == "json"
        assert resolve_format("json", Terminal()) == "json"

    def test_a_line_on_the_stream(self) -> None:
        stream = io.StringIO()
        log.configure("auto", stream)
        log.get().warning("something odd", rule="a\u202eb", at_ns=AT)
        log.get().debug("too fine to be told")
        assert json.loads(stream.getvalue()) == {
            "time": "2025-08-04T10:11:12.123456Z",
            "level": "warning",
            "event": "something odd",
            "rule": "a\u202eb",
        }

    def test_text_to_a_function_with_the_time_of_now(self) -> None:
        lines: list[str] = []
        log.configure("text", write=lines.append)
        log.get().error("it broke", n=1)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ERR it broke n=1\n", lines[0])

    def test_a_traceback_stays_on_its_line(self) -> None:
        lines: list[str] = []
        log.configure("text", write=lines.append)
        try:
            raise ValueError("no\u202e")
        except ValueError:
            log.get().exception("a bug")
        assert len(lines) == 1
        assert r"ValueError: no\u202e" in lines[0]
        assert lines[0].count("\n") == 1

    def test_importing_the_module_imports_neither_structlog_nor_rich_and_logging_not_rich(self) -> None:
        code = (
            "import sys; from stoop import log; assert 'structlog' not in sys.modules; log.configure('json'); "
            "log.get().info('x'); assert 'rich' not in sys.modules; import rich"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)
