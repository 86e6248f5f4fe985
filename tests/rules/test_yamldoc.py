"""Bytes → the first document as nodes: places, bounds, and the same answers from both of PyYAML's parsers."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stoop.errors import Problem
from stoop.rules.yamldoc import (
    MAX_DEPTH,
    MAX_DIRECTIVES,
    MAX_FILE,
    Alias,
    Budget,
    Document,
    Listing,
    Mapping,
    Scalar,
    YamlError,
    compose,
)

PARSERS = [pytest.param(yaml.BaseLoader, id="python")]
if yaml.__with_libyaml__:
    PARSERS.append(pytest.param(yaml.CBaseLoader, id="libyaml"))
parsers = pytest.mark.parametrize("parser", PARSERS)


def problem_of(data: bytes, parser: Any, budget: Budget | None = None) -> Problem:
    with pytest.raises(YamlError) as caught:
        compose("f.yaml", data, budget or Budget(), parser)
    return caught.value.problem


@parsers
def test_places_count_from_one(parser: Any) -> None:
    root = compose("f", b"- rule: R\n  match: {x: ['a', b]}\n", Budget(), parser).root
    assert isinstance(root, Listing)
    item = root.items[0]
    assert isinstance(item, Mapping)
    assert (item.line, item.column) == (1, 3)
    key, value = list(item.pairs())[1]
    assert (key.line, key.column) == (2, 3)
    assert isinstance(value, Mapping)


@parsers
def test_a_byte_order_mark_and_utf16_are_read(parser: Any) -> None:
    for data in (b"\xef\xbb\xbfa", "a".encode("utf-16")):
        root = compose("f", data, Budget(), parser).root
        assert isinstance(root, Scalar)
        assert root.text == "a"


@parsers
def test_aliases_stand_for_the_node_even_one_around_them(parser: Any) -> None:
    root = compose("f", b"&a [*a]", Budget(), parser).root
    assert isinstance(root, Listing)
    alias = root.items[0]
    assert isinstance(alias, Alias)
    assert alias.target is root


@parsers
@pytest.mark.parametrize(
    ("data", "more"),
    [(b"a\n---\nb\n", True), (b"a\n...\n", False), (b"a\n...\n%%% no yaml\n", True), (b"---\n", False), (b"", False)],
)
def test_only_the_first_document_counts(parser: Any, data: bytes, more: bool) -> None:
    assert compose("f", data, Budget(), parser).more is more


@parsers
def test_no_document_has_no_root(parser: Any) -> None:
    assert compose("f", b"# nothing\n", Budget(), parser) == Document(None, False)


@parsers
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a: b: c", 1),
        (b"- a\n- *x\n", 2),
        (b"- `x`\n", 1),
        (b"- a\n- [\n", 3),
        (b'- "\\q"\n', 1),
        (b"- a\n\tb: c\n", 2),
    ],
)
def test_syntax_errors_have_a_place(parser: Any, data: bytes, line: int) -> None:
    problem = problem_of(data, parser)
    assert (problem.code, problem.file, problem.line) == ("yaml-syntax", "f.yaml", line)
    assert problem.column > 0


@parsers
def test_bytes_that_are_no_text(parser: Any) -> None:
    problem = problem_of(b"- a\n- \xff\n", parser)
    assert (problem.code, problem.line) == ("yaml-syntax", 2)
    assert "UTF-8" in problem.hint
    problem = problem_of("- é\r\n- b\x01\n".encode(), parser)
    assert (problem.code, problem.line, problem.column) == ("yaml-syntax", 2, 4)
    assert problem.message == r"not YAML: the character '\x01' is not allowed"


@parsers
def test_escapes_beyond_unicode(parser: Any) -> None:
    assert problem_of(b'- "\\UFFFFFFFF"\n', parser).code == "yaml-syntax"


@parsers
@pytest.mark.parametrize("opening", [b"[", b"- ", b"{a: ", b"? "])
def test_deep_nesting_is_refused(parser: Any, opening: bytes) -> None:
    assert problem_of(opening * (MAX_DEPTH * 20), parser).code == "yaml-limit"


@parsers
def test_sizes_are_bounded(parser: Any) -> None:
    assert problem_of(b"- a\n" * 20, parser, Budget(10)).code == "yaml-limit"
    assert problem_of(b"x" * (MAX_FILE + 1), parser).code == "yaml-limit"
    assert problem_of(b"%TAG !a! x\n" * (MAX_DIRECTIVES + 1) + b"---\na\n", parser).code == "yaml-limit"


@parsers
@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udfff"'])
def test_lone_surrogates_are_no_text(parser: Any, text: str) -> None:
    assert problem_of(text.encode(), parser).code == "yaml-syntax"
