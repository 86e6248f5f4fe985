"""What a bundle says of itself: whom, when, by which rule, which parts, what is missing. Pure.

    NNNNNNNN-TIME-RUN.tar.zst = the parts · manifest.json · where the manifest begins
Each manifest holds the SHA-256 of the one before it on this node: to change or remove one breaks the chain.

A run has one bundle. Its second capture makes a new file of both, under the same name: the parts as they are, and a
manifest with a place of its own in the chain, which says which manifests it stands for now (`replaces`).
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

FORMAT = 2
"""The version of the format; a reader refuses a later one. 1 had one capture in each bundle: no `further`, `replaces`
and `act`. It is read as one of that kind."""

MANIFEST = "manifest.json"
"""The last member of every bundle."""

MAX_PARTS = 8192
"""Parts of one bundle: a container's 4,096 processes, their executables, and what belongs to none of them."""

MAX_MISSING = 4096
"""Remarks on what is missing or cut; the count tells of all."""

MAX_MANIFEST = 16 * 1024 * 1024
"""Bytes of one manifest: 8,192 parts take 2 MiB."""

MAX_REPLACED = 63
"""Manifests that one stands for: captures that are added to a run's bundle. Each copies what is there already."""

SUFFIX = ".tar.zst"
SEQUENCE_DIGITS = 8
RUN_DIGITS = 16
NO_RUN = "none"

_NAME = re.compile(rf"([0-9]{{{SEQUENCE_DIGITS},16}})-([0-9]{{8}}T[0-9]{{6}}Z)-[0-9a-z]{{1,32}}", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"
_PART = re.compile(r"(?=.{1,100}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,3}", re.ASCII)
# 100 bytes are what a tar header holds without extensions.
_RUN = re.compile(r"[0-9a-z]{1,32}", re.ASCII)


class Origin(msgspec.Struct, frozen=True):
    """By whose word it was taken: the identities of alert, run and act, the names of rule, action and node."""

    node: str = ""
    boot_id: str = ""
    alert: str = ""
    run: str = ""
    act: str = ""
    rule: str = ""
    action: str = ""
    actionner: str = ""


class Part(msgspec.Struct, frozen=True):
    """One file of the bundle. `gaps`: (offset, length) in bytes that could not be read, and are zeros in the part.
    `act`: whose it is."""

    name: str
    size: int
    sha256: str
    about: dict[str, Any] = {}
    gaps: tuple[tuple[int, int], ...] = ()
    act: str = ""


class Missing(msgspec.Struct, frozen=True):
    """What is not in it, or not whole, and why."""

    what: str
    why: str


class Capture(msgspec.Struct, frozen=True):
    """One act's share of a bundle. `folder`: where its parts are, "" for the top. Times: CLOCK_REALTIME."""

    origin: Origin
    target: dict[str, Any]
    begun_ns: int
    ended_ns: int
    missing: tuple[Missing, ...] = ()
    missing_count: int = 0
    notes: dict[str, Any] = {}
    folder: str = ""


class Link(msgspec.Struct, frozen=True):
    """A place in the chain: the manifest that has it and the one before that, by their SHA-256."""

    sequence: int
    manifest: str
    previous: str


class Manifest(msgspec.Struct, frozen=True):
    """`previous`: the SHA-256 of the manifest before, as hexadecimal digits; "" in the first. Times: CLOCK_REALTIME.

    `origin` to `notes` are of the run's first capture, `further` are the later ones; `parts` of all, as they lie in the
    file, the newest capture's first. `replaces`: earlier manifests of this bundle, the oldest first.
    """

    bundle: str
    sequence: int
    previous: str
    origin: Origin
    target: dict[str, Any]
    begun_ns: int
    ended_ns: int
    parts: tuple[Part, ...]
    missing: tuple[Missing, ...] = ()
    missing_count: int = 0
    notes: dict[str, Any] = {}
    format: int = FORMAT
    folder: str = ""
    further: tuple[Capture, ...] = ()
    replaces: tuple[Link, ...] = ()

    @property
    def captures(self) -> tuple[Capture, ...]:
        """All of them, the oldest first."""
        first = Capture(
            self.origin,
            self.target,
            self.begun_ns,
            self.ended_ns,
            self.missing,
            self.missing_count,
            self.notes,
            self.folder,
        )
        return (first, *self.further)

    def parts_of(self, capture: Capture) -> tuple[Part, ...]:
        """Those in the capture's folder; where it has none, those in nobody's."""
        folders = (capture.folder,) if capture.folder else tuple(each.folder for each in self.captures if each.folder)
        return tuple(part for part in self.parts if part.name.startswith(folders) is bool(capture.folder))

    @property
    def first(self) -> int:
        """The first place in the chain that the bundle had: the one that its name tells."""
        return self.replaces[0].sequence if self.replaces else self.sequence


_decoder = msgspec.json.Decoder(Manifest)


class ManifestError(ValueError):
    """These bytes are no manifest that this version understands."""


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: indented, so that a person can read them."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Raises ManifestError, also for a part's name that is no safe path."""
    try:
        found = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ManifestError(f"its manifest can't be read: {error}") from error
    if not 1 <= found.format <= FORMAT:
        raise ManifestError(f"its format is {found.format}; this version of Stoop reads 1 to {FORMAT}")
    places = [link.sequence for link in found.replaces] + [found.sequence]
    if len(found.replaces) > MAX_REPLACED or sorted(set(places)) != places:
        raise ManifestError("its manifest says that it replaces what it can't have replaced")
    names = [part.name for part in found.parts]
    wrong = next((name for name in names if not is_part_name(name)), None)
    if wrong is not None:
        raise ManifestError(f"its manifest names a part {wrong!r}, which is no safe path")
    if len(set(names)) != len(names):
        raise ManifestError("its manifest names a part twice")
    return found


def digest(data: bytes) -> str:
    """What the next manifest holds of this one."""
    return hashlib.sha256(data).hexdigest()


def is_part_name(name: str) -> bool:
    """Whether this can be a part's name: our own words and numbers, never text of a target. It is a path that stays
    below where it is extracted."""
    return bool(_PART.fullmatch(name)) and name != MANIFEST


def bundle_name(sequence: int, begun_ns: int, run: str) -> str:
    """The name tells its place in the chain and when it was begun. A run that is no plain word is left out."""
    at = datetime.fromtimestamp(begun_ns // 10**9, UTC).strftime(_TIME)
    return f"{sequence:0{SEQUENCE_DIGITS}}-{at}-{run_word(run) or NO_RUN}"


def run_word(run: str) -> str:
    """How names tell a run; "" for what is no plain word."""
    return run[:RUN_DIGITS] if _RUN.fullmatch(run) and run != NO_RUN else ""


def folder_of(act: str) -> str:
    """The folder for the parts of a run's later captures, so that no two have one name."""
    return f"act-{act[:8]}/" if _RUN.fullmatch(act) else "act/"


def begun_of(name: str) -> int:
    """When a bundle was begun, as its name tells: seconds since the epoch; 0 for what is no bundle's name."""
    match = _NAME.fullmatch(name)
    try:
        return int(datetime.strptime(match[2], _TIME).replace(tzinfo=UTC).timestamp()) if match else 0
    except ValueError:
        return 0


def sequence_of(name: str) -> int:
    """The place in the chain that a bundle's name tells; 0 for what is no bundle's name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0
