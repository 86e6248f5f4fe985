"""What a test node must leave as it was: processes, cgroups, mounts, links, routes, nft rules, directories.

Others may work on this machine at the same time. So of processes only those count that stem from a test node (its
cgroups, or its mark in their environment), and of cgroups and directories those that a node could have made, without
those that are named after another program.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.real.conftest import alive
from tests.real.containers.cgroups import PREFIX, hierarchies

MARK = "STOOP_TEST_NODE"
"""In the environment of every daemon of a test node: the pid of the tests that started it."""

WATCHED = ("/run", "/var/lib", "/var/log", "/etc", "/opt")
"""Where containerd, runc, the CNI plugins and the kubelet make their directories; others may make some meanwhile."""

_THEIRS = re.compile(r"containerd|runc|cni|kubelet|pods|containers|lock|stoop")

_CGROUPS = re.compile(rf"{PREFIX}|kubepods|containerd|[0-9a-f]{{64}}|daemons")
_NAMED = re.compile(r"stoop-[a-z]+-(\d+)\b")


@dataclass(frozen=True)
class Machine:
    """One look at it: every line of a part that differs later is a difference."""

    processes: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    network: frozenset[str]
    directories: frozenset[str]

    def differences(self, later: Machine) -> list[str]:
        """What came and what went, a line each."""
        found = []
        for part in ("processes", "cgroups", "mounts", "network", "directories"):
            before, after = getattr(self, part), getattr(later, part)
            found += [f"{part}: new: {one}" for one in sorted(after - before)]
            found += [f"{part}: gone: {one}" for one in sorted(before - after)]
        return found


def look() -> Machine:
    """The machine as it is now."""
    return Machine(_processes(), _cgroups(), _mounts(), _network(), _directories())


def _processes() -> frozenset[str]:
    mark = f"{MARK}={os.getpid()}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or not alive(int(name)):
            continue
        try:
            at = Path("/proc", name)
            theirs = f"/{PREFIX}-{os.getpid()}-" in (at / "cgroup").read_text()
            if theirs or mark in (at / "environ").read_bytes().split(b"\0"):
                found.add(f"{name} {(at / 'cmdline').read_bytes()[:200]!r}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return frozenset(found)


def _cgroups() -> frozenset[str]:
    found = (path for hierarchy in hierarchies() for path, _, _ in os.walk(hierarchy))
    return frozenset(path for path in found if _CGROUPS.search(path) and not _of_another(path))


def _of_another(path: str) -> bool:
    match = _NAMED.search(path)
    return match is not None and int(match[1]) != os.getpid()


def _mounts() -> frozenset[str]:
    # Without the ids, which are given anew.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(" ".join(line.split()[3:]) for line in lines)


def _network() -> frozenset[str]:
    commands = (
        ("ip", "-o", "link"),
        ("ip", "-o", "address"),
        ("ip", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("nft", "list", "ruleset"),
    )
    lines: set[str] = set()
    for command in commands:
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines |= {f"{' '.join(command[:2])}: {line.strip()}" for line in told.splitlines()}
    return frozenset(lines)


def _directories() -> frozenset[str]:
    below = (path for top in WATCHED if os.path.isdir(top) for path in Path(top).iterdir())
    found = {str(path) for path in below if _THEIRS.search(path.name) and path.is_dir()}
    found |= {str(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-{os.getpid()}-*")}
    return frozenset(found)
