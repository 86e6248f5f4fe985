"""The agent's log as `stoop run` shows it on a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from stoop.cli.agent_log import shown, shown_log
from stoop.log import line_json


def test_a_json_line_is_shown_as_text() -> None:
    line = line_json("warning", "the mode was switched", 1767348672123456000, {"was": "enforce", "now": "off"})
    assert shown(line) == "2026-01-02T10:11:12.123456Z WRN the mode was switched was=enforce now=off"


def test_an_act_is_told_elsewhere() -> None:
    assert shown(line_json("info", "act", 1, {"rule": "R"})) is None


@pytest.mark.parametrize("line", ["plain text", "[1]", "{}", '{"event": 3}', "{", "12"])
def test_what_is_no_log_line_is_shown_as_it_is(line: str) -> None:
    assert shown(line) == line


@pytest.mark.parametrize("stamp", [None, "yesterday", 3])
def test_an_odd_time_is_no_error(stamp: object) -> None:
    told = shown(json.dumps({"event": "x", "level": "info", "time": stamp}))
    assert told is not None
    assert told.endswith(" INF x")


def test_hostile_lines_are_escaped(hostile: str, is_harmless: Callable[[str], bool]) -> None:
    assert is_harmless(shown(hostile) or "")
    assert is_harmless(shown(line_json("info", "x", 1, {"rule": hostile})) or "")


def test_the_whole_log_is_shown_before_it_is_left() -> None:
    lines = [line_json("info", "one", 1, {}), line_json("info", "act", 1, {}), "two \xff"]
    written: list[str] = []
    with shown_log(io.BytesIO("\n".join(lines).encode("latin-1")), written.append):
        pass
    assert [text.split()[-1] for text in written] == ["one", "\ufffd"]
