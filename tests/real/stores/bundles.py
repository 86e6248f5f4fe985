"""A bundle to be sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
from stoop.evidence.store import Store

MIB = 1024 * 1024
PART = "file.bin"


def chunks(mib: int) -> Iterator[bytes]:
    """So many MiB that do not compress: each block differs from those that the compressor remembers."""
    block = os.urandom(4 * MIB)
    for at in range(mib):
        turn = at % 4
        yield block[turn * MIB : (turn + 1) * MIB]


def make_bundle(tmp_path: Path, mib: int = 0, content: bytes = b"what was captured") -> Path:
    """A bundle whose `file.bin` is `content`, or so many MiB. Its file."""
    directory = tmp_path / "state" / "evidence"
    with Store(str(directory), Limits(min_free_bytes=0)) as store, store.draft() as draft:
        draft.writer.add("log.txt", b"a line\n")
        if mib:
            part = draft.writer.begin(PART, mib * MIB)
            assert part is not None
            for chunk in chunks(mib):
                part.write(chunk)
            part.end()
        else:
            draft.writer.add(PART, content)
        kept = draft.commit(Origin(run="f" * 32), {})
    return directory / f"{kept.bundle}.tar.zst"
