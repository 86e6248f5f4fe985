"""From YAML nodes to values: typed as Go's yaml.v3 types them, with every misfit told at its place.

Differences from PyYAML's loaders that matter: a key may stand once in a mapping; null leaves a text unset and drops out
of a list of texts; a text takes numbers and booleans as they are written; a mapping is never a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stoop.rules.notes import Notes, shown
from stoop.rules.raw import NO_TEXT, Place, RawParameters, Text
from stoop.rules.scalars import BINARY, MERGE, STR, ScalarError, resolve
from stoop.rules.yamldoc import MAX_DEPTH, MAX_NODES, Alias, Budget, Content, Listing, Mapping, Node, Scalar

Pairs = list[tuple[Scalar, Node]]

_FREE_READS = 1000
_MAX_ALIASED = 0.99
"""The largest part of all reads of a file, beyond the first _FREE_READS, that may be of aliases: yaml.v3's own bound
against small files that expand to huge ones."""


class TooMuch(Exception):
    """Reading this file was given up; the problem is already told."""


class NodeReader:
    """Reads nodes of one file. Misfits go to `notes` and read as not given."""

    def __init__(self, file: str, notes: Notes, budget: Budget) -> None:
        self.file = file
        self.notes = notes
        self._budget = budget
        self._entered: list[int] = []
        self._aliases_open = 0
        self._reads = 0
        self._aliased_reads = 0

    def place(self, node: Node) -> Place:
        """Where a node stands."""
        return Place(self.file, node.line, node.column)

    def misfit(self, node: Node, message: str, hint: str = "") -> None:
        """The node is of the wrong type."""
        self.notes.problem("yaml-type", message, self.place(node), hint=hint)

    @contextmanager
    def inside(self, node: Node) -> Iterator[Content]:
        """The content of a node, aliases followed, while it is being read. Raises TooMuch when it contains itself."""
        content = node.target if isinstance(node, Alias) else node
        if id(content) in self._entered:
            self._give_up(node, "the alias stands for something that contains it")
        if len(self._entered) > MAX_DEPTH:
            self._give_up(node, f"nested deeper than {MAX_DEPTH} once aliases are followed")
        self._aliases_open += content is not node
        self._count(node)
        self._entered.append(id(content))
        try:
            yield content
        finally:
            self._entered.pop()
            self._aliases_open -= content is not node

    def _count(self, node: Node) -> None:
        self._reads += 1
        self._aliased_reads += self._aliases_open > 0
        if self._reads > _FREE_READS and self._aliased_reads > self._reads * _MAX_ALIASED:
            self._give_up(node, "aliases expand to far more than is written")
        if not self._budget.spend():
            self._give_up(node, f"more than {MAX_NODES} values in all rules files once aliases are followed")

    def _give_up(self, node: Node, message: str) -> None:
        self.notes.problem("yaml-limit", message, self.place(node))
        raise TooMuch

    # ------------------------------------------------------------ mappings

    def pairs(self, mapping: Mapping) -> Pairs:
        """Keys and values, merge keys (`<<`) applied: what is written beats what is merged, the first merged the next.

        Keys that are not scalars and keys that stand twice are told; of the latter the first is read.
        """
        found: Pairs = []
        self._collect(mapping, found, set())
        return found

    def _collect(self, mapping: Mapping, found: Pairs, seen: set[str]) -> None:
        self._tell_duplicates(mapping)
        merged: Node | None = None
        for key, value in mapping.pairs():
            if not self._budget.spend():
                self._give_up(key, f"more than {MAX_NODES} values in all rules files once aliases are followed")
            if isinstance(key, Scalar) and key.tag == MERGE:
                merged = value
                continue
            name = key.target if isinstance(key, Alias) else key
            if not isinstance(name, Scalar):
                self.misfit(key, "a key must be a text, not a list or a mapping")
            elif name.text not in seen:
                seen.add(name.text)
                found.append((Scalar(name.tag, name.text, name.quoted, key.line, key.column), value))
        if merged is not None:
            self._merge(merged, found, seen)

    def _merge(self, merged: Node, found: Pairs, seen: set[str]) -> None:
        with self.inside(merged) as content:
            sources = content.items if isinstance(content, Listing) and not isinstance(merged, Alias) else [merged]
        for source in sources:
            with self.inside(source) as content:
                if isinstance(content, Mapping):
                    self._collect(content, found, seen)
                else:
                    self.misfit(source, "<< takes a mapping or a list of mappings")

    def _tell_duplicates(self, mapping: Mapping) -> None:
        seen: dict[tuple[type[Node], str], Node] = {}
        for key, _ in mapping.pairs():
            text = key.text if isinstance(key, Scalar) else key.name if isinstance(key, Alias) else ""
            first = seen.setdefault((type(key), text), key)
            if first is not key:
                message = f"key {shown(text)} stands already in line {first.line}"
                self.notes.problem("yaml-duplicate-key", message, self.place(key), hint="keep one of the two")

    # ------------------------------------------------------------ texts

    def text(self, node: Node, what: str) -> Text:
        """A scalar as written; null and misfits give an empty Text."""
        with self.inside(node) as content:
            if not isinstance(content, Scalar):
                kind = "a list" if isinstance(content, Listing) else "a mapping"
                self.misfit(node, f"{what} must be a text, not {kind}", "put quotes round it if it is meant as text")
                return NO_TEXT
            tag, value = self._resolved(content, node)
            if value is None:
                return NO_TEXT
            return Text(value if tag == BINARY else content.text, self.place(node))

    def texts(self, node: Node, what: str) -> list[Text]:
        """A list of scalars; null entries drop out."""
        with self.inside(node) as content:
            if isinstance(content, Scalar) and self.is_null(content):
                return []
            if not isinstance(content, Listing):
                kind = "a text" if isinstance(content, Scalar) else "a mapping"
                hint = f"write it as a list: [{content.text[:60]}]" if isinstance(content, Scalar) else ""
                self.misfit(node, f"{what} must be a list of texts, not {kind}", hint)
                return []
            found = []
            for item in content.items:
                text = self.text(item, f"each entry of {what}")
                if text.place.line:
                    found.append(text)
                elif isinstance(item, Scalar):
                    self.notes.warn("empty-entry", f"an empty entry of {what} is left out", self.place(item))
            return found

    def is_null(self, node: Scalar) -> bool:
        """Whether a scalar is null, written out or left empty."""
        return self._resolved(node, node)[1] is None

    def _resolved(self, scalar: Scalar, at: Node) -> tuple[str, Any]:
        if scalar.quoted and scalar.tag in ("", STR):
            return STR, scalar.text
        try:
            return resolve(scalar.tag, scalar.text)
        except ScalarError as error:
            self.misfit(at, str(error))
            return "", None

    # ------------------------------------------------------------ values of any type

    def value(self, node: Node) -> Any:
        """Whatever is there: None, bool, int, float, str, Timestamp, list or dict."""
        with self.inside(node) as content:
            if isinstance(content, Scalar):
                return self._resolved(content, node)[1]
            if isinstance(content, Listing):
                return [self.value(item) for item in content.items]
            return {self._resolved(key, key)[1]: self.value(value) for key, value in self.pairs(content)}

    def parameters(self, node: Node, what: str) -> RawParameters:
        """A mapping from names to values of any type."""
        with self.inside(node) as content:
            if isinstance(content, Scalar) and self.is_null(content):
                return RawParameters()
            if not isinstance(content, Mapping):
                kind = "a list" if isinstance(content, Listing) else "a text"
                self.misfit(node, f"{what} must be a mapping of names to values, not {kind}")
                return RawParameters()
            found = RawParameters(given=True)
            for key, value in self.pairs(content):
                name = self.text(key, "a parameter's name")
                if name.place.line:
                    found.values[name.text] = self.value(value)
                    found.places[name.text] = name.place
            return found
