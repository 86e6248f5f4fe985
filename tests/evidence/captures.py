"""Captures of runs in a test's store, and looking into what they left."""

from __future__ import annotations

import os

from stoop.evidence import manifest as manifests
from stoop.evidence.draft import Draft
from stoop.evidence.manifest import Manifest, Origin
from stoop.evidence.store import Kept, Store

RUN, OTHER = "ab" * 16, "cd" * 16
SECOND_NS = 10**9


def origin(act: str, run: str = RUN) -> Origin:
    return Origin(rule="A rule", run=run, act=act * 32, actionner="evidence:snapshot")


def add(store: Store, act: str, content: bytes = b"content", run: str = RUN, name: str = "log.txt") -> Kept:
    """One capture of a run with one part."""
    with store.draft(origin(act, run)) as draft:
        return end(draft, act, content, run, name)


def end(draft: Draft, act: str, content: bytes = b"content", run: str = RUN, name: str = "log.txt") -> Kept:
    draft.writer.add(name, content)
    draft.writer.lacks("upper", "no overlay")
    return draft.commit(origin(act, run), {"pid": 4711}, {"by": act})


def read(store: Store, bundle: str) -> tuple[Manifest, dict[str, bytes]]:
    """A bundle that is as it was written."""
    contents: dict[str, bytes] = {}

    def sink(part: manifests.Part, data: bytes) -> None:
        contents[part.name] = contents.get(part.name, b"") + data

    with store.reading(bundle) as reader:
        assert reader.check(sink) == []
        return reader.manifest, contents


def files(store: Store) -> set[str]:
    return set(os.listdir(store.directory))
