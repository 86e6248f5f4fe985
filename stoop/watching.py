"""inotify(7) on files wherever their symlinks lead. Tells only what concerns these files, and who still writes to them.

Watched are, for each file: the directory of every symlink on its way (Kubernetes swaps `..data` beside the file's own
link), the directory it lies in at last, and the file itself (a bind mount of a single file has no directory of ours).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from inotify_simple import INotify, flags

MAX_SYMLINKS = 40
"""As in the kernel (path_resolution(7)): above it the path can't be opened either."""

_CHANGES = flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF
_DIRECTORY = _CHANGES | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR
_ENDS_WRITING = flags.CLOSE_WRITE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE_SELF | flags.IGNORED

Names = dict[str, set[str]]
"""Directory → the names in it that matter."""


class Watch:
    """`arm` may run in a thread, `take` on the loop beside it. The owner closes it. Raises OSError when there are no
    inotify instances left (fs.inotify.max_user_instances)."""

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, tuple[str, set[str] | None]] = {}
        self.writing: set[str] = set()
        self.fault = ""

    def fileno(self) -> int:
        """Readable when something happened."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Let go of every watch."""
        self._inotify.close()

    def arm(self, paths: Iterable[str]) -> bool:
        """Watch what these paths lead through now, nothing else; False when something can't be watched (`fault`)."""
        names: Names = {}
        ends = [locate(path, names) for path in paths]
        self.fault = ""
        watched: dict[int, tuple[str, set[str] | None]] = {}
        for directory, wanted in names.items():
            self._add(watched, directory, _DIRECTORY, wanted)
        for end in filter(None, ends):
            self._add(watched, end, _CHANGES, None)
        gone = set(self._watched) - set(watched)
        self._watched = watched
        for descriptor in gone:
            try:
                self._inotify.rm_watch(descriptor)
            except OSError:
                continue  # the kernel has let go of it already: its file is no more
        return not self.fault and all(ends)

    def _add(
        self, watched: dict[int, tuple[str, set[str] | None]], path: str, mask: int, names: set[str] | None
    ) -> None:
        try:
            watched[self._inotify.add_watch(path, mask)] = (path, names)
        except OSError as error:
            self.fault = f"{path}: {error.strerror}"

    def take(self) -> bool:
        """Take what has happened; whether any of it concerns the files. Never waits."""
        concerned = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.IGNORED and event.wd not in self._watched:
                continue  # our own rm_watch
            path, names = self._watched.get(event.wd, ("", None))
            if event.mask & flags.Q_OVERFLOW:
                self.writing.clear()  # an end of writing may be among what was lost
            elif event.name and names is not None:
                if event.name not in names:
                    continue
                path = os.path.join(path, event.name)
            self._note_writer(path, event.mask)
            concerned = True
        return concerned

    def _note_writer(self, path: str, mask: int) -> None:
        if mask & _ENDS_WRITING:
            self.writing.discard(path)
        elif mask & flags.MODIFY and path:
            self.writing.add(path)


def locate(path: str, names: Names) -> str:
    """Follow a path as the kernel does, and add to `names` what must be watched on the way.

    Gives the path that it leads to, or "" when it leads nowhere yet (then the place where it breaks off is watched).
    """
    current = "/"
    pending = _parts(os.path.abspath(path))
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            current = os.path.dirname(current)
            continue
        step = os.path.join(current, part)
        if os.path.islink(step):
            names.setdefault(current, set()).add(part)
            links += 1
            if links > MAX_SYMLINKS:
                return ""
            target = os.readlink(step)
            current = "/" if target.startswith("/") else current
            pending += _parts(target)
        elif pending and os.path.isdir(step):
            current = step
        else:
            names.setdefault(current, set()).add(part)
            return step if not pending and os.path.exists(step) else ""
    return ""


def _parts(path: str) -> list[str]:
    """Components, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
