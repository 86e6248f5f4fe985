"""The mounted cgroup hierarchies: find a container's directory, list, freeze and kill what is in it.

Sources: Documentation/admin-guide/cgroup-v2.rst (`cgroup.kill`, `cgroup.freeze`, `cgroup.events`) and
cgroup-v1/freezer-subsystem.rst of the kernel. Three layouts: v2 alone, mounted at the root; v1; hybrid, v2 at `unified`
beside v1. Directories are absolute paths. Nothing here trusts a path that a process told of itself before it is found.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from agent.node.container_id import Place, locate
from agent.node.procfs import read_list
from stoop.errors import ActFailed, TargetGone, TargetRefused

MAX_DIRECTORIES = 20_000
"""Directories looked through in search of a container: a full node has some hundred."""

MAX_DEPTH = 24
"""Levels below the root that are looked at: pods lie at most 5 deep, nested nodes (kind) at most 10."""

MAX_INSIDE = 1024
"""Directories looked through inside one container: only a node that is a container itself (kind) has others in it, and
a container must not be able to hide the others by making very many."""

MAX_NESTED = 4096
"""Directories inside one container whose members are listed. With more, a v1 container never counts as empty."""

MAX_CONTROL = 64 * 1024
"""Characters read of a control file: `io.stat` has some 100 a device."""

V2 = "v2"
FREEZER = "freezer"
"""Names of the two hierarchies that are used; v1's by its controller."""

FREEZE_WAIT_NS = 5_000_000
"""How long a freeze may take: 0.1 ms usually (measured); what hangs in the kernel would keep us waiting for ever."""

_SMALL = 4096
# Bytes read of a switch or of cgroup.events: some 30 of them are used. The kernel gives a page at a time.

_EAGER_NS = 50_000
# Read again and again so long before pausing between reads. Not longer: each process must run to come to a stand, and
# on a busy machine it waits for the very processor that reads here.

_PAUSE_S = 0.0001


class Found(NamedTuple):
    """A container's own directory in one hierarchy."""

    directory: str
    container_id: str
    pod_uid: str


class Cgroups:
    """The hierarchies that are mounted under `root`. "" for what is not there."""

    def __init__(self, root: str) -> None:
        unified = (root, f"{root}/unified")
        self.v2 = next((path for path in unified if os.path.exists(f"{path}/cgroup.controllers")), "")
        self._root = root
        freezer = f"{root}/freezer"
        self.freezer = freezer if os.path.exists(f"{freezer}/cgroup.procs") else ""

    def unfit(self) -> str:
        """Why no container can be frozen or limited here, "" when it can: no hierarchy, or none that may be written."""
        mounts = [mount for mount in (self.v2, self.freezer) if mount]
        if not mounts:
            return f"no cgroup v2 and no freezer of v1 is mounted at {self._root}"
        if all(os.statvfs(mount).f_flag & os.ST_RDONLY for mount in mounts):
            return f"cgroups are mounted read-only: {', '.join(mounts)}"
        return ""

    # ------------------------------------------------------------ finding

    def directories(self, paths: dict[str, str]) -> tuple[str, str]:
        """(v2, freezer) directories of these paths (keys: `V2`, `FREEZER`); "" where there is none such.

        A path of /proc/PID/cgroup is relative to our cgroup namespace, which need not be what is mounted here: it
        counts only if it leads to a directory.
        """
        mounts = ((self.v2, paths.get(V2, "")), (self.freezer, paths.get(FREEZER, "")))
        v2, freezer = (_existing(mount, path) for mount, path in mounts)
        return v2, freezer

    def find(self, container_id: str) -> tuple[Found | None, Found | None]:
        """(v2, freezer) directories of the container whose id begins so. Raises TargetRefused when there are two."""
        return _find_below(self.v2, container_id), _find_below(self.freezer, container_id)

    # ------------------------------------------------------------ members

    def members(self, directory: str) -> list[int]:
        """Processes in this cgroup and all below it, within MAX_NESTED; [] when it is gone."""
        found: list[int] = []
        for nested in _nested(directory):
            try:
                found += read_list(f"{nested}/cgroup.procs")
            except OSError as error:
                if not _gone_or_threaded(error):
                    raise
        return [pid for pid in found if pid > 0]  # 0: a process that our pid namespace has no number for

    def is_empty(self, directory: str) -> bool:
        """Whether no living process is in this cgroup and below, read now."""
        events = _read(f"{directory}/cgroup.events")
        if events:
            return "populated 0" in events
        return len(_nested(directory)) < MAX_NESTED and not self.members(directory)

    # ------------------------------------------------------------ acting

    def kill(self, directory: str) -> bool:
        """SIGKILL all in a v2 cgroup and below at once; False where the kernel (before 5.14) has no `cgroup.kill`."""
        try:
            _write(f"{directory}/cgroup.kill", "1")
        except FileNotFoundError:
            if not os.path.exists(directory):
                raise TargetGone("its cgroup is gone") from None
            return False
        except OSError as error:
            if error.errno == _EOPNOTSUPP:  # a threaded cgroup
                return False
            raise _failed("kill", directory, error) from error
        return True

    def freeze_v2(self, directory: str, frozen: bool) -> bool:
        """Freeze or thaw a v2 cgroup and all below; True when this changed it. Raises ActFailed."""
        return _switch(f"{directory}/cgroup.freeze", f"{directory}/cgroup.events", _V2_WORDS[frozen])

    def freeze_v1(self, directory: str, frozen: bool) -> bool:
        """The same for a v1 freezer cgroup."""
        file = f"{directory}/freezer.state"
        return _switch(file, file, _V1_WORDS[frozen])

    def is_frozen(self, directory: str) -> bool:
        """Whether all in this cgroup, of either kind, stand still now."""
        if self.freezer and directory.startswith(f"{self.freezer}/"):
            return "FROZEN" in _read(f"{directory}/freezer.state")
        return "frozen 1" in _read(f"{directory}/cgroup.events")

    def beside(self, freezer_directory: str, controller: str) -> str:
        """The same cgroup in another v1 hierarchy, "" where there is none (runtimes use one path in all of them)."""
        return _existing(f"{self._root}/{controller}", freezer_directory.removeprefix(self.freezer))

    def read_control(self, path: str) -> str:
        """A control file. Raises ActFailed."""
        try:
            with open(path, encoding="ascii") as file:
                return file.read(MAX_CONTROL)
        except OSError as error:
            raise _failed("read", path, error) from error

    def write_control(self, path: str, value: str) -> None:
        """Write a control file. Raises ActFailed."""
        try:
            _write(path, value)
        except OSError as error:
            raise _failed(f"write {value!r}", path, error) from error


def own_paths(cgroups: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Of a process's cgroups: the path of its container in v2 and in the freezer hierarchy (V2, FREEZER)."""
    found = {}
    for controllers, path in cgroups:
        place = locate(path)
        if place.directory and controllers == "":
            found[V2] = place.directory
        elif place.directory and FREEZER in controllers.split(","):
            found[FREEZER] = place.directory
    return found


def _existing(mount: str, path: str) -> str:
    directory = mount + path
    known = mount and path and "/.." not in path and os.path.exists(f"{directory}/cgroup.procs")
    return directory if known else ""


def _find_below(mount: str, container_id: str) -> Found | None:
    found: Found | None = None
    for path, place in walk(mount) if mount else ():
        # Deeper than the container's own directory: the container's business.
        if place.directory != path or not place.container_id.startswith(container_id):
            continue
        if found is not None:
            raise two(found, mount + path)
        found = Found(mount + path, place.container_id, place.pod_uid)
    return found


def two(found: Found, other: str) -> TargetRefused:
    """The refusal of a container that has two directories: which one it is can't be proven."""
    return TargetRefused(f"two cgroups are container {found.container_id[:12]}: {found.directory}, {other}")


def goes_on_below(place: Place) -> bool:
    """Whether another container may lie below: not below one of a pod, where the outermost id counts. One that is in
    no pod may be a node itself (kind)."""
    return not (place.directory and place.pod_uid)


def walk(mount: str, top: str = "") -> Iterator[tuple[str, Place]]:
    """(path below the mount, what it tells) of `top` and every directory below it that may hold containers.

    Each is given before it is listed. Raises TargetRefused beyond MAX_DIRECTORIES.
    """
    waiting = [(top, 0)]
    inside: Counter[str] = Counter()
    for path, depth in waiting:  # grows while it is walked
        place = locate(path)
        yield path, place
        if not goes_on_below(place):
            continue
        if place.directory and place.directory != path:
            inside[place.directory] += 1
        if depth < MAX_DEPTH and inside[place.directory] <= MAX_INSIDE:
            waiting += [(f"{path}/{name}", depth + 1) for name in _below(mount + path)]
        if len(waiting) > MAX_DIRECTORIES:
            raise TargetRefused(f"{mount} has more than {MAX_DIRECTORIES} cgroups: not searched to the end")


class _Words(NamedTuple):
    """What to write, how the switch reads when that was done already, and what is seen once it took effect."""

    write: str
    done: tuple[str, ...]
    sign: str


_V2_WORDS = {True: _Words("1", ("1",), "frozen 1"), False: _Words("0", ("0",), "frozen 0")}
_V1_WORDS = {
    True: _Words("FROZEN", ("FROZEN", "FREEZING"), "FROZEN"),
    False: _Words("THAWED", ("THAWED",), "THAWED"),
}
_EOPNOTSUPP = 95


def _switch(switch: str, sign: str, words: _Words) -> bool:
    """Turn a freezer's switch and wait, within bounds, until it took effect."""
    try:
        file = os.open(switch, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if _gone_or_threaded(error):
            return False
        raise _failed("freeze", switch, error) from error
    try:
        before = os.pread(file, _SMALL, 0).decode("ascii").strip()
        if not before or before in words.done:
            return False
        os.pwrite(file, words.write.encode(), 0)
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed since it was opened
            return False
        raise _failed("freeze", switch, error) from error
    finally:
        os.close(file)
    _await_sign(sign, words.sign.encode())
    return True


def _await_sign(path: str, sign: bytes) -> None:
    """Wait until the file says so, within FREEZE_WAIT_NS. What is gone says nothing more."""
    begun = time.monotonic_ns()
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if _gone_or_threaded(error):
            return
        raise
    try:
        while sign not in os.pread(file, _SMALL, 0) and (waited := time.monotonic_ns() - begun) < FREEZE_WAIT_NS:
            if waited > _EAGER_NS:
                select.select((), (), (), _PAUSE_S)
    except OSError as error:
        if not _gone_or_threaded(error):
            raise
    finally:
        os.close(file)


def _below(directory: str) -> list[str]:
    """Names of the cgroups directly in this one; [] when it is gone."""
    try:
        # A cgroup directory has 2 links and one more for each below: most have none, and need not be listed.
        if os.stat(directory).st_nlink <= 2:
            return []
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if _gone_or_threaded(error):
            return []
        raise


def _nested(directory: str) -> list[str]:
    """A cgroup and all below it."""
    found = [directory]
    for parent in found:  # grows while it is walked
        found += [f"{parent}/{name}" for name in _below(parent)]
        if len(found) >= MAX_NESTED:
            break
    return found[:MAX_NESTED]


def _gone_or_threaded(error: OSError) -> bool:
    """ENOENT and ENODEV: removed meanwhile. EOPNOTSUPP: in a threaded cgroup; its domain above lists the processes."""
    return error.errno in (2, 19, _EOPNOTSUPP)


def _read(path: str) -> str:
    """A small control file, "" when it is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if _gone_or_threaded(error):
            return ""
        raise
    try:
        return os.read(file, _SMALL).decode("ascii")
    except OSError as error:
        if _gone_or_threaded(error):
            return ""
        raise
    finally:
        os.close(file)


def _write(path: str, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    finally:
        os.close(file)


def _failed(what: str, path: str, error: OSError) -> ActFailed:
    return ActFailed(f"{what}: {path}: {error.strerror}")
