"""The node's bundles: `STATE_DIR/evidence`, for root only, bounded, in a chain that survives what is removed.

    .writing-*   being written, locked by its writer (flock(2)) for as long as that lives
    NNN-*.tar.zst   whole bundles
    head.json   the last manifest's hash and place in the chain, and which bundles were let go
    lock   held while a bundle takes its place
Several processes may write at a time. A bundle is renamed into its place when it is on disk, so it is there whole or
not at all; the head follows, and is put right from the bundles when that was cut short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from stoop.errors import ActFailed, StartRefused
from stoop.evidence import manifest as manifests
from stoop.evidence.letting_go import Kept as Has
from stoop.evidence.letting_go import Ranges, choose, spent
from stoop.evidence.limits import DELIVERIES, DIRECTORY, Limits
from stoop.evidence.manifest import SUFFIX, Manifest, Origin
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.writing import BundleWriter

__all__ = ["DIRECTORY", "Draft", "Head", "Kept", "Limits", "Store"]

HEAD = "head.json"
LOCK = "lock"
WRITING = ".writing-"
MAX_HEAD = 64 * 1024
"""Bytes: a range of what was let go for each bundle that waits to be sent (256 at most), and little more."""

LOCK_PAUSE_S = 0.002
LOCK_SECONDS = 10.0
"""How long a bundle waits for its turn to take its place: each takes a few ms, and a slow disk's sync."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Head(msgspec.Struct, frozen=True):
    """The end of the chain. Bundles below `oldest`, and in `gone`, were let go on purpose; another missing was not."""

    sequence: int = 0
    manifest: str = ""
    oldest: int = 1
    gone: Ranges = ()


class Kept(msgspec.Struct, frozen=True):
    """A bundle that is in its place."""

    bundle: str
    bytes: int
    sequence: int
    manifest: str  # SHA-256
    parts: int
    missing: int


class Draft:
    """A bundle under way: fill `writer`, then `commit` or `close`. What was not committed is gone."""

    def __init__(self, store: Store, fd: int, name: str, writer: BundleWriter, begun_ns: int) -> None:
        self._store = store
        self._fd = fd
        self._name = name
        self._begun_ns = begun_ns
        self.writer = writer

    def flush(self) -> None:
        """Wait until what was written so far is on disk. Raises ActFailed."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise ActFailed(f"the evidence can't be written: {error.strerror}") from error

    def commit(self, origin: Origin, target: dict[str, Any], notes: dict[str, Any] | None = None) -> Kept:
        """Make it durable and give it its place in the chain. Raises ActFailed."""
        try:
            self.writer.seal_parts()
            # The bulk goes to disk before others are kept waiting.
            os.fdatasync(self._fd)
            with self._store.locked():
                kept = self._store.admit(self, self._fd, self._name, (origin, target, notes or {}, self._begun_ns))
        except OSError as error:
            raise ActFailed(f"the evidence can't be kept: {error.strerror}") from error
        self._name = ""
        return kept

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


class Store:
    """The bundles of one state directory. It holds one descriptor: `close` it, or use it as a context manager."""

    def __init__(self, directory: str, limits: Limits | None = None, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.directory = directory
        self._limits = limits or Limits()
        self._now_ns = now_ns
        self._fd = -1
        self.holds = {"bytes": 0, "bundles": 0}  # as of the last look: `tidy`, a commit

    def open(self, *, make: bool = True) -> None:
        """Open the directory, made with mode 0700. Raises ActFailed, StartRefused (another user could plant things)."""
        try:
            if make:
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self._fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            found = os.fstat(self._fd)
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(self._fd, 0o700)
        except OSError as error:
            self.close()
            raise ActFailed(f"{self.directory}: the evidence store can't be opened: {error.strerror}") from error
        if found.st_uid not in (0, os.geteuid()):
            self.close()
            whose = f"the evidence store belongs to uid {found.st_uid}"
            raise StartRefused(whose, where=self.directory, hint="chown it")

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Store:
        if self._fd < 0:
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ keeping order

    def tidy(self) -> list[str]:
        """For the start: clear what killed writers left, put the head right, let go of what is too much or too old.

        One line for a person of each thing done. Raises ActFailed.
        """
        notes = []
        try:
            with self.locked():
                for name in self._names(WRITING):
                    if self._clear(name):
                        notes.append(f"{name}: its writer was killed; it was removed")
                head = self._head()
                self._keep_head(head)
                notes += [f"{name}: let go, the store is bounded" for name in self._let_go(head)]
        except OSError as error:
            raise ActFailed(f"{self.directory}: the evidence store can't be put in order: {error.strerror}") from error
        return notes

    def _clear(self, name: str) -> bool:
        """Remove a draft whose writer has ended: nobody holds its lock."""
        try:
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self._fd)
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(fd)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time. Raises ActFailed after LOCK_SECONDS."""
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            until = time.monotonic() + LOCK_SECONDS
            while not _try_lock(fd):
                if time.monotonic() > until:
                    raise ActFailed(f"{self.directory}: another process has held its lock for {LOCK_SECONDS:g} s")
                _pause(LOCK_PAUSE_S)
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------ adding

    def draft(self) -> Draft:
        """Begin a bundle. Raises ActFailed, also when the disk is nearly full."""
        try:
            room = os.fstatvfs(self._fd)
            if room.f_bavail * room.f_frsize < self._limits.min_free_bytes:
                free, wanted = room.f_bavail * room.f_frsize >> 20, self._limits.min_free_bytes >> 20
                raise ActFailed(f"{self.directory}: {free} MiB are free; no evidence is taken below {wanted} MiB")
            fd, name = self._create()
        except OSError as error:
            raise ActFailed(f"{self.directory}: no evidence can be written: {error.strerror}") from error
        now_ns = self._now_ns()
        most = self._limits.max_bundle_bytes or 2**63
        return Draft(self, fd, name, BundleWriter(fd, now_ns // 10**9, most), now_ns)

    def _create(self) -> tuple[int, str]:
        while True:
            name = f"{WRITING}{secrets.token_hex(8)}"
            fd = os.open(name, _NEW, 0o600, dir_fd=self._fd)
            # Between the two calls a start's tidying may have taken it for a leftover.
            if _try_lock(fd) and os.fstat(fd).st_nlink == 1:
                return fd, name
            os.close(fd)

    def admit(self, draft: Draft, fd: int, name: str, said: tuple[Origin, dict[str, Any], dict[str, Any], int]) -> Kept:
        """For `Draft.commit`, under the lock: place in the chain, manifest, name, head, what is too much."""
        head = self._head()
        origin, target, notes, begun_ns = said
        ended_ns = self._now_ns()
        bundle = manifests.bundle_name(head.sequence + 1, begun_ns, origin.run)
        writer = draft.writer
        manifest = Manifest(
            bundle=bundle,
            sequence=head.sequence + 1,
            previous=head.manifest,
            origin=origin,
            target=target,
            begun_ns=begun_ns,
            ended_ns=ended_ns,
            parts=tuple(writer.parts),
            missing=tuple(writer.missing),
            missing_count=writer.missing_count,
            notes=notes,
        )
        raw = manifests.encode(manifest)
        writer.seal(raw)
        os.fdatasync(fd)
        os.rename(name, bundle + SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        head = Head(manifest.sequence, manifests.digest(raw), head.oldest, head.gone)
        self._keep_head(head)
        os.fsync(self._fd)
        self._let_go(head)
        return Kept(
            bundle, writer.written, manifest.sequence, head.manifest, len(manifest.parts), manifest.missing_count
        )

    def remove(self, name: str) -> None:
        """For `Draft.close`."""
        os.unlink(name, dir_fd=self._fd)

    def _let_go(self, head: Head) -> list[str]:
        """Remove what is beyond the limits, never the newest. The head is written first: a gap below it is ours."""
        bundles = []
        for name in self.bundles():
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name + SUFFIX, dir_fd=self._fd, follow_symlinks=False)
                age_s = self._now_ns() / 1e9 - manifests.begun_of(name)
                bundles.append(Has(name, manifests.sequence_of(name), found.st_size, age_s))
        going = choose(bundles, self._waiting(), self._limits)
        left = [bundle for bundle in bundles if bundle not in going]
        self.holds = {"bytes": sum(bundle.size for bundle in left), "bundles": len(left)}
        if going:
            places = [bundle.sequence for bundle in going]
            oldest, gone = spent(head.oldest, head.gone, places, [bundle.sequence for bundle in left])
            self._keep_head(Head(head.sequence, head.manifest, oldest, gone))
        for bundle in going:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(bundle.name + SUFFIX, dir_fd=self._fd)
        return [bundle.name for bundle in going]

    def _waiting(self) -> frozenset[str]:
        """Bundles that are still to be sent: `../deliveries/BUNDLE.ACT.json`."""
        try:
            names = os.listdir(os.path.join(os.path.dirname(self.directory), DELIVERIES))
        except OSError:
            return frozenset()
        return frozenset(name.partition(".")[0] for name in names if name.endswith(".json"))

    # ------------------------------------------------------------ the chain's end

    def _head(self) -> Head:
        """The end of the chain: as kept, or as the newest bundle says where a writer was killed before the head."""
        head = self.kept_head() or Head()
        last = 0
        for bundle in reversed(self.bundles()):
            sequence = manifests.sequence_of(bundle)
            if sequence <= head.sequence:
                break
            last = last or sequence
            with contextlib.suppress(BundleError, OSError), self.reading(bundle) as reader:
                return Head(last, manifests.digest(reader.raw_manifest), head.oldest, head.gone)
        return Head(max(last, head.sequence), head.manifest, head.oldest, head.gone)

    def kept_head(self) -> Head | None:
        """As the file says; None where there is none that can be read."""
        try:
            fd = os.open(HEAD, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return msgspec.json.decode(os.read(fd, MAX_HEAD), type=Head)
        except msgspec.MsgspecError:
            return None
        finally:
            os.close(fd)

    def _keep_head(self, head: Head) -> None:
        name = f"{WRITING}{HEAD}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            os.write(fd, msgspec.json.encode(head) + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)
        os.rename(name, HEAD, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    # ------------------------------------------------------------ reading

    def _names(self, begin: str) -> list[str]:
        return [name for name in os.listdir(self._fd) if name.startswith(begin)]

    def bundles(self) -> list[str]:
        """Names of the whole bundles, oldest first."""
        names = (name.removesuffix(SUFFIX) for name in os.listdir(self._fd) if name.endswith(SUFFIX))
        return sorted((name for name in names if manifests.sequence_of(name)), key=manifests.sequence_of)

    @contextlib.contextmanager
    def reading(self, bundle: str) -> Iterator[BundleReader]:
        """A reader of this bundle. Raises BundleError, OSError."""
        fd = os.open(bundle + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BundleError("it is no regular file")
            yield BundleReader(fd)
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause(seconds: float) -> None:
    """flock(2) has no wait with an end."""
    select.select([], [], [], seconds)
