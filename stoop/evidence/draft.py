"""A capture under way, and how it takes its place: in the bundle of its run, or in one of its own."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from stoop.errors import ActFailed, TargetRefused
from stoop.evidence import joining, pins
from stoop.evidence import manifest as manifests
from stoop.evidence.joining import Base
from stoop.evidence.manifest import Capture, Manifest, Origin
from stoop.evidence.reading import BundleError
from stoop.evidence.writing import BundleWriter

if TYPE_CHECKING:
    from stoop.evidence.store import Store

JOIN_SECONDS = 10.0
"""How long a capture may take to be joined to its run's bundle, unless its act has less time: 1 GiB on a usual disk."""

NO_ROOM = "the evidence store keeps as much for quarantined files as it may (half of it): give some back"

BUSY = "other captures of the run took their places meanwhile, each time anew"


class Kept(msgspec.Struct, frozen=True):
    """A capture that is in its place. `parts` and `missing` are its own, `bytes` the whole file's. `apart`: why it is
    not in the bundle that its run had already, "" where it is or there was none."""

    bundle: str
    bytes: int
    sequence: int
    manifest: str  # SHA-256
    parts: int
    missing: int
    apart: str = ""


class Draft:
    """A capture under way: fill `writer`, then `commit` or `close`. What was not committed is gone."""

    def __init__(self, store: Store, fd: int, name: str, writer: BundleWriter, begun_ns: int, run: str = "") -> None:
        self._store = store
        self._run = run
        self._fd = fd
        self._name = name
        self._begun_ns = begun_ns
        self._pinned = False
        self.writer = writer

    def flush(self) -> None:
        """Wait until what was written so far is on disk. Raises ActFailed."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error

    def commit(
        self,
        origin: Origin,
        target: dict[str, Any],
        notes: dict[str, Any] | None = None,
        join_s: float = JOIN_SECONDS,
        *,
        pinned: bool = False,
    ) -> Kept:
        """Make it durable and give it its place, in the bundle that its run has already if that can be done in `join_s`
        seconds. `pinned`: it stays until the origin's act needs it no more. Raises ActFailed, and TargetRefused where
        pinned bundles have their share of the store already."""
        self._pinned = pinned
        until = time.monotonic() + join_s
        run = self._run
        said = (origin, target, notes or {})
        try:
            self.writer.seal_parts()
            # The bulk goes to disk before others are kept waiting.
            os.fdatasync(self._fd)
            for _ in range(joining.TRIES if run else 0):
                kept = self._take_place(run, said, until)
                if kept is not None:
                    return kept
            with self._store.locked():
                return self._admit(None, said, BUSY if run else "")
        except OSError as error:
            raise ActFailed(f"the evidence can't be kept: {error.strerror}") from error

    def _take_place(self, run: str, said: tuple[Origin, dict[str, Any], dict[str, Any]], until: float) -> Kept | None:
        """Copy what the run has, then take the place; None when the run has something else by then."""
        size = self.writer.written
        latest = self._latest(run)
        with contextlib.ExitStack() as stack:
            base, why = None, ""
            if latest:
                try:
                    base = stack.enter_context(joining.opened(self._store.fd, latest, said[0].run))
                    why = self._copy(base, until)
                except FileNotFoundError:
                    return None
                except BundleError as error:
                    why = f"the run's bundle {latest} can't be read: {error}"
            if why:
                base = None
                self.writer.back_to(size)
            with self._store.locked():
                if self._latest(run) == latest and (base is None or joining.is_current(self._store.fd, base)):
                    return self._admit(base, said, why)
        self.writer.back_to(size)
        return None

    def _latest(self, run: str) -> str:
        return next(reversed(self._store.bundles_of(run)), "")

    def _copy(self, base: Base, until: float) -> str:
        """Append what the run has to what was written; why it can't be, or ""."""
        try:
            why = joining.obstacle(base, self.writer, self._store.limits, self._store.free_bytes())
            if not why and not joining.copy(base, self.writer, self._fd, until):
                why = "there was no time to copy the run's bundle"
        except (ActFailed, OSError) as error:  # what was captured now is kept all the same
            why = f"the run's bundle could not be copied: {error}"
        return why

    def _admit(self, base: Base | None, said: tuple[Origin, dict[str, Any], dict[str, Any]], apart: str) -> Kept:
        """Under the lock: manifest, place in the chain, name."""
        origin, target, notes = said
        store, writer = self._store, self.writer
        if apart:
            notes = notes | {"apart": apart}
        taken = Capture(
            origin,
            target,
            self._begun_ns,
            store.now_ns(),
            tuple(writer.missing),
            writer.missing_count,
            notes,
            writer.folder,
        )
        parts = tuple(msgspec.structs.replace(part, act=origin.act) for part in writer.parts)
        place = store.place()
        if base is not None:
            bundle, manifest = base.bundle, joining.joined(base, taken, parts, place)
        else:
            bundle = manifests.bundle_name(place.sequence, self._begun_ns, origin.run)
            manifest = Manifest(
                bundle=bundle,
                sequence=place.sequence,
                previous=place.previous,
                parts=parts,
                **msgspec.structs.asdict(taken),
            )
        raw = manifests.encode(manifest)
        writer.seal(raw)
        os.fdatasync(self._fd)
        place = msgspec.structs.replace(place, manifest=manifests.digest(raw))
        if self._pinned:
            if store.room_for_pins(bundle) < writer.written:
                raise TargetRefused(NO_ROOM)
            pins.pin(store.fd, bundle, origin.act)
        store.admit(self._name, bundle, place, replaces=base is not None)
        self._name = ""
        return Kept(bundle, writer.written, place.sequence, place.manifest, len(parts), writer.missing_count, apart)

    def close(self) -> None:
        """Let go; what was not committed is removed. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._name:
            with contextlib.suppress(OSError):
                self._store.remove(self._name)
            self._name = ""

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
