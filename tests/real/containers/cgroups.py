"""The cgroups of one test node: made in every hierarchy, emptied and removed whatever lives in them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tests.real.conftest import CGROUP_ROOT, alive, await_that, v2_mount

PREFIX = "stoop-node"

_NAME = re.compile(rf"{PREFIX}-(\d+)-\d+")
_FREEZERS = (("cgroup.freeze", "0"), ("freezer.state", "THAWED"))


def hierarchies() -> list[Path]:
    """Where a hierarchy is mounted; controllers that share one are one."""
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return [CGROUP_ROOT]
    found = {path.resolve() for path in CGROUP_ROOT.iterdir() if (path / "cgroup.procs").exists()}
    return sorted(found)


class CgroupRoot:
    """One directory of this name in each hierarchy. The node's daemons live in `daemons` of v2."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directories = [hierarchy / name for hierarchy in hierarchies()]
        v2 = v2_mount()
        assert v2 is not None, "no cgroup v2 is mounted"
        self.v2 = v2 / name

    def make(self) -> None:
        """Make them. A new v1 cpuset takes no process before it has CPUs and memory nodes."""
        for directory in self.directories:
            directory.mkdir()
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (directory / file).exists() and (directory.parent / file).exists():
                    (directory / file).write_text((directory.parent / file).read_text())
        (self.v2 / "daemons").mkdir()

    def enter(self) -> None:
        """Move the calling process in: a `preexec_fn` of every daemon."""
        (self.v2 / "daemons" / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> set[int]:
        """Who is in any of them, at any depth."""
        found: set[int] = set()
        for directory in self._all():
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in (directory / "cgroup.procs").read_text().split()}
        return found - {0}

    def end(self) -> None:
        """SIGKILL to all in them (frozen ones are thawed), until they have gone; then remove the directories."""
        thaw(self._all())
        members = self.pids()
        if (self.v2 / "cgroup.kill").exists():
            (self.v2 / "cgroup.kill").write_text("1")
        await_that(partial(self._killed, members), f"nobody in {self.name}")
        for root in self.directories:
            remove(root)

    def _killed(self, members: set[int]) -> bool:
        """A cgroup counts as empty while its processes still give back memory and mounts: so those are awaited too."""
        members |= self.pids()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self.pids() and not any(alive(pid) for pid in members)

    def _all(self) -> list[Path]:
        return [directory for root in self.directories for directory in below(root)]


def below(root: Path) -> list[Path]:
    """A directory and all below it; [] when there is none."""
    return [Path(path) for path, _, _ in os.walk(root)]


def thaw(directories: Iterable[Path]) -> None:
    """Turn off every freezer, whoever turned it on."""
    for directory in directories:
        for file, value in _FREEZERS:
            if (directory / file).exists():
                (directory / file).write_text(value)


def remove(root: Path) -> None:
    """Remove a directory and all below it, once nobody is left in them."""
    for directory in reversed(below(root)):
        await_that(partial(_removed, directory), f"{directory} removed")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def sweep() -> None:
    """End what test nodes left whose program was killed before it could: told by the pid in the name."""
    names = {path.name for hierarchy in hierarchies() for path in hierarchy.glob(f"{PREFIX}-*")}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None and not alive(int(match[1])):
            CgroupRoot(name).end()
            for directory in Path(tempfile.gettempdir()).glob(f"{name}-*"):
                shutil.rmtree(directory)
