"""The first document of a YAML text as a graph of nodes with their places, whatever the bytes are.

libyaml's parser gives the events; composing is done here, without recursion and within bounds. What scalars mean is
decided in `scalars`; aliases are kept as nodes of their own, so that expanding them can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from stoop.errors import Problem
from stoop.rules.scalars import MERGE, short_tag

MAX_FILE = 4 * 1024 * 1024
"""The largest rules file, in bytes: a thousand rules take half a MiB; reading must stay a matter of seconds."""

MAX_NODES = 400_000
"""The most nodes of all files of a load, and the most that aliases may expand to: 10,000 rules have about this many."""

MAX_DEPTH = 64
"""The deepest nesting, aliases followed: rules need 8, parameters little more, and reading recurses."""

MAX_DIRECTIVES = 16
"""The most `%` lines: libyaml's time grows with their square."""

LOADER: Any = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
"""Where the events come from: the C parser is ten times faster; the other one is for where it was not built."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile(r"(?:^|[\n\r\x85\u2028\u2029])%")


@dataclass(slots=True, eq=False)
class Scalar:
    """Text. `tag` is a short one (`!!int`), empty when the meaning follows from the text; `quoted`: not a plain one."""

    tag: str
    text: str
    quoted: bool
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Listing:
    """A YAML sequence."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Mapping:
    """A YAML mapping: keys and values in turn, duplicates and merge keys included."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        """Key and value of each entry."""
        return zip(self.items[::2], self.items[1::2], strict=True)


@dataclass(slots=True, eq=False)
class Alias:
    """`*name`: stands for another node, which may be one that contains it."""

    name: str
    target: Scalar | Listing | Mapping
    line: int
    column: int


Node: TypeAlias = Scalar | Listing | Mapping | Alias
Content: TypeAlias = Scalar | Listing | Mapping


@dataclass(slots=True)
class Document:
    """The first document of a file; `root` is None when there is none. `more`: another one follows, unread."""

    root: Node | None
    more: bool


class YamlError(Exception):
    """The text can't be read as YAML, or not within the bounds.

    `items`: the items of the top level that had ended before, whose meaning is not in doubt; `unread`: the text after.
    """

    def __init__(self, problem: Problem, items: Sequence[Node] = (), unread: str = "") -> None:
        self.problem = problem
        self.items = tuple(items)
        self.unread = unread
        super().__init__(str(problem))


def words_of(node: Node) -> str:
    """The texts that stand in a node, for what can only be searched. Aliases count when they stand for a text."""
    texts: list[str] = []
    waiting = [node]
    while waiting:
        here = waiting.pop()
        content = here.target if isinstance(here, Alias) else here
        if isinstance(content, Scalar):
            texts.append(content.text)
        elif content is here:
            waiting += reversed(content.items)
    return "\n".join(texts)


class Budget:
    """How many nodes may still be composed or expanded, over all files of one load."""

    def __init__(self, nodes: int = MAX_NODES) -> None:
        self.left = nodes

    def spend(self, count: int = 1) -> bool:
        """Take from it; False when it is used up."""
        self.left -= count
        return self.left >= 0


def compose(file: str, data: bytes, budget: Budget, loader: Any = LOADER) -> Document:
    """The first document of `data`. `file` is what problems call it. Raises YamlError, nothing else, for any bytes."""
    text = _text(file, data)
    if len(_DIRECTIVE.findall(text)) > MAX_DIRECTIVES:
        raise _too_much(file, f"more than {MAX_DIRECTIVES} lines begin with %", text)
    events = yaml.parse(text, Loader=loader)
    composer = _Composer(file, budget)
    try:
        for event in events:
            if composer.take(event):
                break
        return Document(composer.root, _another(events))
    except YamlError as error:
        raise _partial(error.problem, composer, text) from error
    except yaml.MarkedYAMLError as error:
        raise _partial(_syntax(file, error), composer, text) from error
    except yaml.reader.ReaderError as error:
        raise _partial(_unprintable(file, text), composer, text) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # ValueError, OverflowError: the pure Python scanner on an escape beyond Unicode.
        message = " ".join(str(error).split())[:200]
        raise _partial(Problem("yaml-syntax", f"not YAML: {message}", file), composer, text) from error


def _partial(problem: Problem, composer: _Composer, text: str) -> YamlError:
    """The error, with what was read before it. The last item is left out: the fault may be that it ended too early."""
    items = composer.root.items if isinstance(composer.root, Listing) and problem.code == "yaml-syntax" else []
    lines = _LINE_BREAK.split(text)
    return YamlError(problem, items[:-1], "\n".join(lines[items[-1].line - 1 :] if items else lines))


def _text(file: str, data: bytes) -> str:
    if len(data) > MAX_FILE:
        raise _too_much(file, f"the file is larger than {MAX_FILE} bytes", data.decode("utf-8", "replace"))
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"byte {column} of the line is not {encoding.removesuffix('-sig').upper()}"
        problem = Problem("yaml-syntax", message, file, line, hint="save the file as UTF-8")
        raise YamlError(problem, unread=data.decode(encoding, "replace")) from error


def _unprintable(file: str, text: str) -> Problem:
    """Which character YAML does not allow: of its place both parsers say something else, neither the line."""
    found = _UNPRINTABLE.search(text)
    at = found.start() if found else 0
    before = _LINE_BREAK.split(text[:at])
    message = f"not YAML: the character {text[at : at + 1]!a} is not allowed"
    return Problem("yaml-syntax", message, file, len(before), len(before[-1]) + 1, hint="take it out")


def _too_much(file: str, what: str, text: str) -> YamlError:
    return YamlError(Problem("yaml-limit", what, file, hint="split it, or make it simpler"), unread=text)


def _syntax(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    hint = _syntax_hint(said)
    return Problem("yaml-syntax", f"not YAML: {said}", file, line, column, hint=hint)


def _syntax_hint(said: str) -> str:
    hints = {
        "block scalar": "put quotes round a value that begins with > or |, such as '>=Warning'",
        "mapping values are not allowed": "put quotes round a text that holds ': ', or mend the indentation",
        "cannot start any token": "put quotes round a text that begins so; indent with spaces, not tabs",
        "undefined alias": "define it before with &name, or put quotes round a text that begins with *",
        "did not find expected": "check the indentation of this line and the one before, and that quotes are closed",
    }
    return next((hint for words, hint in hints.items() if words in said), "")


def _another(events: Iterator[Any]) -> bool:
    try:
        return any(isinstance(event, yaml.DocumentStartEvent) for event in (next(events, None),))
    except yaml.YAMLError:
        return True  # text that can't be read follows: it is not read, as no later document is


class _Composer:
    """Events in, nodes out, on a stack of the open collections."""

    def __init__(self, file: str, budget: Budget) -> None:
        self.root: Node | None = None
        self._file = file
        self._budget = budget
        self._open: list[Listing | Mapping] = []
        self._anchors: dict[str, Content] = {}

    def take(self, event: Any) -> bool:
        """One event; True when the first document (or the stream) has ended."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._add(self._scalar(event), event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._begin(event, Mapping if kind is yaml.MappingStartEvent else Listing)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._open.pop()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        return kind is yaml.DocumentEndEvent or kind is yaml.StreamEndEvent

    def _scalar(self, event: Any) -> Scalar:
        mark = event.start_mark
        quoted = bool(event.style)
        if event.style == '"' and _LONE_SURROGATE.search(event.value):
            # Only the pure Python scanner lets such an escape through.
            message = "an escape stands for half a character"
            raise YamlError(Problem("yaml-syntax", message, self._file, mark.line + 1, mark.column + 1))
        tag = short_tag(event.tag)
        if not tag and not quoted and event.value == "<<":
            tag = MERGE
        return Scalar(tag, event.value, quoted, mark.line + 1, mark.column + 1)

    def _begin(self, event: Any, kind: type[Listing] | type[Mapping]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise self._limit(event, f"nested deeper than {MAX_DEPTH}")
        node = kind(event.start_mark.line + 1, event.start_mark.column + 1)
        self._add(node, event)
        self._open.append(node)

    def _alias(self, event: Any) -> None:
        mark = event.start_mark
        target = self._anchors.get(event.anchor)
        if target is None:
            raise YamlError(
                Problem(
                    "yaml-syntax",
                    f"undefined alias *{event.anchor[:80]}",
                    self._file,
                    mark.line + 1,
                    mark.column + 1,
                    hint=_syntax_hint("undefined alias"),
                )
            )
        self._put(Alias(event.anchor, target, mark.line + 1, mark.column + 1), event)

    def _add(self, node: Content, event: Any) -> None:
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        self._put(node, event)

    def _put(self, node: Node, event: Any) -> None:
        if not self._budget.spend():
            raise self._limit(event, f"more than {MAX_NODES} values in all rules files")
        if self._open:
            self._open[-1].items.append(node)
        else:
            self.root = node

    def _limit(self, event: Any, what: str) -> YamlError:
        mark = event.start_mark
        return YamlError(Problem("yaml-limit", what, self._file, mark.line + 1, mark.column + 1))
