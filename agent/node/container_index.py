"""Container id → cgroup directories, kept up to date by inotify(7) on the cgroup hierarchies.

The kernel tells each mkdir and rmdir before the call returns, so an index whose queue was read is true. Whatever puts
that in doubt (an overflow, no watch to be had, more told than is read at once) makes the index stand aside: then the
hierarchies are searched as without it. Nothing is watched inside a pod's container: what it makes there is its own
business. One that is in no pod may be a node itself (kind), so there the search and the watches go on, within bounds.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import trio
from inotify_simple import Event, INotify, flags, parse_events

from agent.node.cgroup import MAX_INSIDE, Cgroups, Found, goes_on_below, two, walk
from agent.node.container_id import Place, locate
from stoop.errors import TargetRefused

MAX_WATCHES = 8192
"""Directories watched at most, in both hierarchies: two a pod and some hundred services. Each costs the kernel about
1 KiB, and a user has 8,192 and more (fs.inotify.max_user_watches)."""

PORTION = 16_384
"""Bytes of events read at once, some 150: about 0.5 ms. When more waits the index stands aside for this question."""

MAX_MISSES = 256
"""Ids that nobody has, remembered until the next change: a container that has gone is asked for often."""

REBUILD_NS = 1_000_000_000
"""Between two rebuilds: one costs some ms, and somebody may make cgroups in a loop."""

FAULT_NS = 60_000_000_000
"""Until it is tried again where watching failed: that does not pass by itself soon."""

PAUSE_S = 0.02
"""Between two readings of events by `follow`: those that come in a burst are read together."""

PREFIX = 12
"""Digits of an id that Falco tells."""

Heard = Callable[[Found], None]
"""Is told of a container's cgroup; short, and raises nothing."""

_LONGEST_EVENT = 16 + 256
_QUEUE_BYTES = 1 << 20
_MASK = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR
_DOUBTFUL = flags.Q_OVERFLOW | flags.MOVED_FROM | flags.MOVED_TO | flags.UNMOUNT


class ContainerIndex:
    """The containers of the mounted hierarchies. The constructor looks at nothing: the first question does.

    The owner closes it. `fault`: why it can't watch ("" while it can); every question is a search then.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._inotify: INotify | None = None
        self._watched: dict[int, tuple[str, str]] = {}  # watch → (mount, path below it)
        self._watches: dict[tuple[str, str], int] = {}
        self._found: dict[str, list[tuple[str, Found]]] = {}  # first PREFIX digits → (mount, directory)
        self._below: dict[str, set[str]] = {}  # watched directory → names of those in it
        self._misses: dict[str, None] = {}
        self._inside: Counter[str] = Counter()  # watches inside each container that is in no pod
        self._portions = 0
        self._true = False
        self._again_ns = 0
        self.fault = ""
        self.heard: Heard = lambda found: None
        """Is told of each that comes, once a hierarchy, and of all once more when the index was built anew."""

    def close(self) -> None:
        """Let go of the watches. Idempotent."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._true, self._again_ns = False, 0

    # ------------------------------------------------------------ questions

    def find(self, container_id: str) -> tuple[Found | None, Found | None]:
        """(v2, freezer) directories of the container whose id begins so. Raises TargetRefused when there are two."""
        if not self.update():
            return self._cgroups.find(container_id)
        known = [
            (mount, found)
            for mount, found in self._found.get(container_id[:PREFIX], ())
            if found.container_id.startswith(container_id)
        ]
        if known or container_id in self._misses:
            return self._only(self._cgroups.v2, known), self._only(self._cgroups.freezer, known)
        differing = self._differing()
        if differing:
            self._doubt(differing)
            return self._cgroups.find(container_id)
        if len(self._misses) < MAX_MISSES:
            self._misses[container_id] = None
        return None, None

    def every(self) -> Iterator[Found]:
        """Each container's directory, in v2 where it has one. Of two with one id, both."""
        mounts = [mount for mount in (self._cgroups.v2, self._cgroups.freezer) if mount]
        if self.update():
            pairs = [pair for entries in self._found.values() for pair in entries]
        else:
            pairs = [
                (mount, found) for mount in mounts for path, place in walk(mount) if (found := _own(mount, path, place))
            ]
        in_v2 = {found.container_id for mount, found in pairs if mount == mounts[0]}
        yield from (found for mount, found in pairs if mount == mounts[0] or found.container_id not in in_v2)

    @staticmethod
    def _only(mount: str, known: list[tuple[str, Found]]) -> Found | None:
        here = [found for where, found in known if where == mount]
        if len(here) > 1:
            raise two(here[0], here[1].directory)
        return here[0] if here else None

    # ------------------------------------------------------------ keeping it true

    async def follow(self, heard: Callable[[], Awaitable[None]]) -> None:
        """Read what is told as it comes, so that no question finds much waiting. Until it is cancelled.

        `heard`: is awaited after each reading.
        """
        while True:
            self.update()
            await heard()
            if self._inotify is None:
                await trio.sleep(FAULT_NS / 1e9)
                continue
            await trio.lowlevel.wait_readable(self._inotify.fileno())
            await trio.sleep(PAUSE_S)

    def update(self) -> bool:
        """Read what was told since the last time, one portion of it; whether the index is true now. Never waits."""
        if not self._true or self._inotify is None:
            return self._rebuild()
        try:
            told = os.read(self._inotify.fileno(), PORTION)
        except BlockingIOError:
            return True
        self._portions += 1
        self._misses.clear()
        try:
            for event in parse_events(told):
                self._take(event)
        except (TargetRefused, OSError) as error:
            self._fail(f"cgroups can't be looked through: {error}")
            self._again_ns = time.monotonic_ns() + FAULT_NS
        more = len(told) > PORTION - _LONGEST_EVENT
        return not more and self._is_true()

    def _is_true(self) -> bool:
        return self._true

    def _take(self, event: Event) -> None:
        if event.mask & _DOUBTFUL:
            self._true = False
        elif event.wd in self._watched:
            mount, parent = self._watched[event.wd]
            path = f"{parent}/{event.name}"
            if event.mask & flags.DELETE:
                self._below.get(mount + parent, set()).discard(event.name)
                self._went(mount, path)
            else:
                self._came(mount, path)

    def _differing(self) -> str:
        """A watched directory that has more or fewer others in it than the index knows, "" when there is none: a cgroup
        has 2 links and one for each below. The search without listing, at a tenth of its cost."""
        for directory, names in self._below.items():
            try:
                if os.stat(directory).st_nlink - 2 != len(names):
                    return directory
            except FileNotFoundError:
                return directory
        return ""

    def _doubt(self, directory: str) -> None:
        """The count changes before the event is told, but no list of names is given in between: whoever makes or
        removes a directory holds its parent's lock until it was told. So a list that still differs when nothing more
        was told shows a change that was missed."""
        try:
            with os.scandir(directory) as entries:
                listed = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError:
            return  # gone: that is told of its parent
        portions = self._portions
        self.update()
        if self._portions == portions and self._below.get(directory, listed) != listed:
            self._true = False

    def _came(self, mount: str, top: str) -> None:
        """A new directory: it may have others in it already, of which nothing was told."""
        for path, place in walk(mount, top):
            self._add(mount, path, place)
            if self.fault:
                return

    def _went(self, mount: str, path: str) -> None:
        """A directory is gone, and what was in it: one of the same name may have come since, whose content was read
        instead of the first one's, and is read again when its own coming is told."""
        for name in self._below.get(mount + path, ()):
            self._went(mount, f"{path}/{name}")
        self._unwatch(mount, path)
        self._forget(mount, path)

    def _add(self, mount: str, path: str, place: Place) -> None:
        """Must come before the directory's content is listed: what is made after the watch is told."""
        found = _own(mount, path, place)
        if found is not None:
            entries = self._found.setdefault(found.container_id[:PREFIX], [])
            if (mount, found) not in entries:
                entries.append((mount, found))
                self.heard(found)
        parent, _, name = (mount + path).rpartition("/")
        if path and parent in self._below:
            self._below[parent].add(name)
        known = (mount, path) in self._watches
        if goes_on_below(place) and not known and self._inside[mount + place.directory] < MAX_INSIDE:
            self._watch(mount, path)
            if place.directory and (mount, path) in self._watches:
                self._inside[mount + place.directory] += 1

    def _unwatch(self, mount: str, path: str) -> None:
        """A directory is gone. The kernel does not let go of its watch by itself, as it does elsewhere: a cgroup's
        inode keeps its link count, and the watch would hold the inode for ever."""
        watch = self._watches.pop((mount, path), None)
        if watch is None:
            return
        self._watched.pop(watch, None)
        self._below.pop(mount + path, None)
        self._let_go(watch)
        directory = locate(path).directory
        if directory:
            self._inside[mount + directory] -= 1

    def _let_go(self, watch: int) -> None:
        assert self._inotify is not None
        try:
            self._inotify.rm_watch(watch)
        except OSError:
            return  # the kernel did it

    def _forget(self, mount: str, path: str) -> None:
        place = locate(path)
        found = _own(mount, path, place)
        if found is None:
            return
        prefix = found.container_id[:PREFIX]
        left = [pair for pair in self._found.get(prefix, ()) if pair != (mount, found)]
        if left:
            self._found[prefix] = left
        else:
            self._found.pop(prefix, None)

    def _watch(self, mount: str, path: str) -> None:
        assert self._inotify is not None
        if len(self._watched) >= MAX_WATCHES:
            self._fail(f"{mount} has more than {MAX_WATCHES} cgroups: they can't all be watched")
            return
        try:
            watch = self._inotify.add_watch(mount + path, _MASK)
            self._watched[watch] = mount, path
            self._watches[mount, path] = watch
            self._below[mount + path] = set()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # gone meanwhile: its end is told too
                self._fail(f"{mount}{path} can't be watched: {error.strerror} (raise fs.inotify.max_user_watches)")

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self._true = False

    def _rebuild(self) -> bool:
        """All anew, seldom. Whether the index is true now."""
        now = time.monotonic_ns()
        if now < self._again_ns:
            return False
        self._again_ns = now + REBUILD_NS
        self.fault = ""
        self._true = True
        self._found.clear()
        self._misses.clear()
        before = set(self._watched)
        self._watched.clear()
        self._watches.clear()
        self._below.clear()
        self._inside.clear()
        try:
            self._inotify = self._inotify or INotify(nonblocking=True)
            self._throw_away()
            for mount in filter(None, (self._cgroups.v2, self._cgroups.freezer)):
                self._came(mount, "")
            for watch in before - set(self._watched):
                self._let_go(watch)
        except TargetRefused as error:
            self._fail(error.reason)
        except OSError as error:
            self._fail(f"no inotify: {error.strerror} (raise fs.inotify.max_user_instances)")
        if self.fault:
            self._again_ns = now + FAULT_NS
        return self._true

    def _throw_away(self) -> None:
        """What was told before all is read anew."""
        assert self._inotify is not None
        try:
            while os.read(self._inotify.fileno(), _QUEUE_BYTES):
                pass
        except BlockingIOError:
            return


def _own(mount: str, path: str, place: Place) -> Found | None:
    """What a directory is if it is a container's own."""
    return Found(mount + path, place.container_id, place.pod_uid) if place.directory == path and path else None
