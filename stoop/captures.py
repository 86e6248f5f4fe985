"""What a capture of evidence is to hold, by whose word it is taken, and what came of it. Pure: values.

Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class About(msgspec.Struct, frozen=True):
    """By whose word: the identities of alert, run and act, the names of rule and action."""

    alert: str
    run: str
    act: str
    rule: str
    action: str
    actionner: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline_s`: all of it is done, or given up, so long from now. `target`: whom, for the manifest."""

    about: About
    deadline_s: float
    target: dict[str, Any] = {}


class SnapshotWanted(Wanted, frozen=True, kw_only=True):
    """`executable_bytes`, `log_bytes`: at most so much, 0 for nothing. `changes`: list the upper directory."""

    executable_bytes: int
    log_bytes: int
    changes: bool


class MemoryWanted(Wanted, frozen=True, kw_only=True):
    """`regions`: kinds of regions. `bytes`: of all processes together."""

    regions: tuple[str, ...]
    bytes: int


class FileWanted(Wanted, frozen=True, kw_only=True):
    """About one file of a container whose first process is given. `host_mounts`: inodes of the node's mount namespaces.

    `image_files`: files of the image too. `interpreters`: also those of them that run scripts.
    """

    host_mounts: tuple[int, ...]
    image_files: bool
    interpreters: bool


class KeepFileWanted(FileWanted, frozen=True, kw_only=True):
    """Its content, whole, and all that undo needs (`Captured.details["file"]`). `path`: as the container calls it;
    b"" for the executable of the second process given. `limit`: bytes; a larger one is refused."""

    path: bytes
    limit: int


class AsideWanted(FileWanted, frozen=True, kw_only=True):
    """What was kept (`file`, in this `bundle`, with this hash) is taken out of use (`step` `aside`), given back
    (`back`), or looked at (`look`: `Captured.reason` says what somebody else did to it)."""

    file: dict[str, Any]
    bundle: str
    sha256: str
    step: str


class LogWanted(Wanted, frozen=True, kw_only=True):
    """The end of a pod's log: of the given container, and where that has no line, of the pod's first that has one.

    `tell`: bytes of the text's end that come back in `Captured.details["text"]` too; 0 for none.
    """

    lines: int
    tell: int = 0


class DownloadWanted(Wanted, frozen=True, kw_only=True):
    """One file of the first process's root. `path`: as the container calls it. `limit`: bytes, the rest is cut.
    `host_mounts`: inodes of the node's mount namespaces, whose files are none of a container's."""

    path: bytes
    limit: int
    host_mounts: tuple[int, ...]


class TrafficWanted(Wanted, frozen=True, kw_only=True):
    """What passes in the network namespace (inode `network`) of the first process. `host_networks`: the node's own.
    `snaplen`: bytes of each packet, 0 for all. `bytes`: of the capture."""

    network: int
    host_networks: tuple[int, ...]
    duration_s: float
    snaplen: int
    bytes: int


class SyscallsWanted(Wanted, frozen=True, kw_only=True):
    """System calls of these containers (ids of 12 digits), or of the whole node without any. `snaplen`: bytes of each
    call's data. `bytes`: of the capture, as it is compressed."""

    containers: tuple[str, ...]
    seconds: int
    snaplen: int
    bytes: int


class Still(msgspec.Struct, frozen=True):
    """A target that was made to stand still: `thaw` has it go on (twice is harmless), after `for_s` at the latest."""

    thaw: Callable[[], object]
    for_s: float


class Captured(msgspec.Struct, frozen=True):
    """What came of it. `details` are kept in the act's record: bundle, path, bytes, manifest (its SHA-256), parts,
    missing, frozen_ms, hung. `reason`: why there is no bundle, "" where there is one. `refused`: because of what the
    target is; `gone`: because it has ended."""

    ok: bool
    reason: str = ""
    details: dict[str, Any] = {}
    refused: bool = False
    gone: bool = False
