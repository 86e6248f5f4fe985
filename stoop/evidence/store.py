"""The node's bundles: `STATE_DIR/evidence`, for root only, bounded, in a chain that survives what is removed.

    .writing-*   being written, locked by its writer (flock(2)) for as long as that lives
    NNN-*.tar.zst   whole bundles, one for each run
    head.json   the last manifest's hash and place in the chain, and which bundles were let go
    .pin-*   an act that needs its bundle, which is not let go (`stoop.evidence.pins`)
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
from collections.abc import Callable, Collection, Iterator

import msgspec

from stoop.errors import ActFailed, StartRefused
from stoop.evidence import manifest as manifests
from stoop.evidence import pins
from stoop.evidence.draft import Draft, Kept
from stoop.evidence.head import HEAD, Coming, Head, read_head, write_head
from stoop.evidence.limits import DELIVERIES, DIRECTORY, Limits
from stoop.evidence.manifest import SUFFIX, Link, Origin
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.retention import Kept as Stays
from stoop.evidence.retention import choose
from stoop.evidence.writing import BundleWriter

__all__ = ["DIRECTORY", "HEAD", "Draft", "Head", "Kept", "Limits", "Store"]

LOCK = "lock"
WRITING = ".writing-"
LOCK_PAUSE_S = 0.002
LOCK_SECONDS = 10.0
"""How long a bundle waits for its turn to take its place: each takes a few ms, and a slow disk's sync."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Store:
    """The bundles of one state directory. It holds one descriptor: `close` it, or use it as a context manager."""

    def __init__(self, directory: str, limits: Limits | None = None, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.directory = directory
        self.limits = limits or Limits()
        self.now_ns = now_ns
        self.fd = -1
        self.holds = {"bytes": 0, "bundles": 0}  # as of the last look: `tidy`, a commit

    def open(self, *, make: bool = True) -> None:
        """Open the directory, made with mode 0700. Raises ActFailed, StartRefused (another user could plant things)."""
        try:
            if make:
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self.fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            found = os.fstat(self.fd)
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
                os.fchmod(self.fd, 0o700)
        except OSError as error:
            self.close()
            raise ActFailed(f"{self.directory}: the evidence store can't be opened: {error.strerror}") from error
        if found.st_uid not in (0, os.geteuid()):
            self.close()
            whose = f"the evidence store belongs to uid {found.st_uid}"
            raise StartRefused(whose, where=self.directory, hint="chown it")

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Store:
        if self.fd < 0:
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
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self.fd)
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(fd)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time. Raises ActFailed after LOCK_SECONDS."""
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
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

    def draft(self, origin: Origin | None = None) -> Draft:
        """Begin a capture by this word; without one it has a bundle of its own. Raises ActFailed, also when the disk is
        nearly full."""
        run = manifests.run_word(origin.run) if origin is not None else ""
        try:
            free, wanted = self.free_bytes(), self.limits.min_free_bytes
            if free < wanted:
                text = f"{free >> 20} MiB are free; no evidence is taken below {wanted >> 20} MiB"
                raise ActFailed(f"{self.directory}: {text}")
            fd, name = self._create(run)
            # Ours is there before we look: of two that begin at one time, both see the other.
            others = [other for other in self._names(f"{WRITING}{run}-") if other != name]
            folder = manifests.folder_of(origin.act) if run and origin and (others or self.bundles_of(run)) else ""
        except OSError as error:
            raise ActFailed(f"{self.directory}: no evidence can be written: {error.strerror}") from error
        now_ns = self.now_ns()
        most = self.limits.max_bundle_bytes or 2**63
        return Draft(self, fd, name, BundleWriter(fd, now_ns // 10**9, most, folder), now_ns, run)

    def _create(self, run: str) -> tuple[int, str]:
        while True:
            name = f"{WRITING}{run}-{secrets.token_hex(8)}" if run else f"{WRITING}{secrets.token_hex(8)}"
            fd = os.open(name, _NEW, 0o600, dir_fd=self.fd)
            # Between the two calls a start's tidying may have taken it for a leftover.
            if _try_lock(fd) and os.fstat(fd).st_nlink == 1:
                return fd, name
            os.close(fd)

    def free_bytes(self) -> int:
        """Of the file system. Raises OSError."""
        room = os.fstatvfs(self.fd)
        return room.f_bavail * room.f_frsize

    def place(self) -> Link:
        """The next place in the chain, for `Draft.commit`, under the lock; the manifest's own hash is not known yet."""
        head = self._head()
        return Link(head.sequence + 1, "", head.manifest)

    def admit(self, draft: str, bundle: str, place: Link, *, replaces: bool) -> None:
        """For `Draft.commit`, under the lock: what is whole and on disk gets its name, the chain its new end.

        `place`: with the manifest's own hash now. `replaces`: the run's bundle as it was. Raises OSError.
        """
        head = self._head()
        if replaces:
            # Whoever comes after a crash must know of it: the bundle's name tells its first place, not this one.
            coming = Coming(bundle, place.sequence, place.manifest)
            self._keep_head(msgspec.structs.replace(head, coming=coming))
        os.rename(draft, bundle + SUFFIX, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        head = Head(place.sequence, place.manifest, head.oldest)
        self._keep_head(head)
        os.fsync(self.fd)
        self._let_go(head)

    def remove(self, name: str) -> None:
        """For `Draft.close`."""
        os.unlink(name, dir_fd=self.fd)

    def room_for_pins(self, beside: str = "") -> int:
        """Bytes that more bundles may be pinned with; `beside`: this one is not counted."""
        return pins.room(self.fd, self.limits, beside)

    def unpin_others(self, held: Collection[str], before_ns: int) -> list[str]:
        """As `pins.clear`: pins that a kill left."""
        return pins.clear(self.fd, held, before_ns)

    def _let_go(self, head: Head) -> list[str]:
        """Remove the oldest beyond the limits, no pinned one. The head is written first: a gap below it is ours."""
        sizes = []
        for bundle in self.bundles():
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(bundle + SUFFIX, dir_fd=self.fd, follow_symlinks=False)
                sizes.append((bundle, found.st_size))
        kept = Stays(head.sequence, self._waiting(), pins.pinned(self.fd))
        going = choose(sizes, self.limits, self.now_ns() / 1e9, self._last_of, kept)
        names = [each.bundle for each in going]
        staying = [size for bundle, size in sizes if bundle not in names]
        self.holds = {"bytes": sum(staying), "bundles": len(staying)}
        if going:
            # One that was pinned or waited goes late: what came after it may have gone before.
            self._keep_head(
                msgspec.structs.replace(head, oldest=max(head.oldest, *(each.sequence + 1 for each in going)))
            )
        for bundle in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(bundle + SUFFIX, dir_fd=self.fd)
        return names

    def _waiting(self) -> frozenset[str]:
        """Bundles that are still to be sent: `../deliveries/BUNDLE.ACT.json`."""
        try:
            names = os.listdir(os.path.join(os.path.dirname(self.directory), DELIVERIES))
        except OSError:
            return frozenset()
        return frozenset(name.partition(".")[0] for name in names if name.endswith(".json"))

    def _last_of(self, bundle: str) -> int:
        """The newest sequence of a bundle; what its name says where it can't be read."""
        with contextlib.suppress(BundleError, OSError), self.reading(bundle) as reader:
            return reader.manifest.sequence
        return manifests.sequence_of(bundle)

    # ------------------------------------------------------------ the chain's end

    def _head(self) -> Head:
        """The end of the chain: as kept, or as the newest bundle says where a writer was killed before the head."""
        head = self.kept_head()
        if head is None:
            return self._head_from_all()
        if head.coming is not None:
            coming, head = head.coming, msgspec.structs.replace(head, coming=None)
            with contextlib.suppress(BundleError, OSError), self.reading(coming.bundle) as reader:
                if manifests.digest(reader.raw_manifest) == coming.manifest:
                    head = Head(coming.sequence, coming.manifest, head.oldest)
        last = 0
        for bundle in reversed(self.bundles()):
            sequence = manifests.sequence_of(bundle)
            if sequence <= head.sequence:
                break
            last = last or sequence
            with contextlib.suppress(BundleError, OSError), self.reading(bundle) as reader:
                return Head(last, manifests.digest(reader.raw_manifest), head.oldest)
        return Head(max(last, head.sequence), head.manifest, head.oldest)

    def _head_from_all(self) -> Head:
        """The same without the file: every bundle is asked."""
        head = Head()
        for bundle in self.bundles():
            sequence = max(head.sequence, manifests.sequence_of(bundle))
            head = Head(sequence, head.manifest)
            with contextlib.suppress(BundleError, OSError), self.reading(bundle) as reader:
                if reader.manifest.sequence >= head.sequence:
                    head = Head(reader.manifest.sequence, manifests.digest(reader.raw_manifest))
        return head

    def kept_head(self) -> Head | None:
        """As the file says; None where there is none that can be read."""
        return read_head(self.fd)

    def _keep_head(self, head: Head) -> None:
        write_head(self.fd, head, f"{WRITING}{HEAD}")

    # ------------------------------------------------------------ reading

    def _names(self, begin: str) -> list[str]:
        return [name for name in os.listdir(self.fd) if name.startswith(begin)]

    def bundles(self) -> list[str]:
        """Names of the whole bundles, oldest first."""
        names = (name.removesuffix(SUFFIX) for name in os.listdir(self.fd) if name.endswith(SUFFIX))
        return sorted((name for name in names if manifests.sequence_of(name)), key=manifests.sequence_of)

    def bundles_of(self, run: str) -> list[str]:
        """Those whose names tell this run (its beginning, as `run_word` gives it), oldest first."""
        return [name for name in self.bundles() if manifests.run_of(name) == run]

    @contextlib.contextmanager
    def reading(self, bundle: str) -> Iterator[BundleReader]:
        """A reader of this bundle. Raises BundleError, OSError."""
        fd = os.open(bundle + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
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
