"""What tests must leave as it was: processes, cgroups, namespaces, mounts, links, routes, nft rules, directories.

Others may work on this machine at the same time. So of processes only those count that stem from these tests (the
cgroups of a test node, or the mark in their environment), of namespaces those that such a process is in, that are named
or that these tests hold open, and of cgroups and directories those that tests could have made, without those that are
named after another program.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.real.conftest import alive
from tests.real.containers.cgroups import PREFIX, hierarchies

MARK = "NODE_OF_STOOPS_TESTS"
"""In the environment of whatever these tests start: their pid."""

WATCHED = ("/run", "/var/lib", "/var/log", "/etc", "/opt")
"""Where containerd, runc, the CNI plugins and the kubelet make their directories; others may make some meanwhile."""

_THEIRS = re.compile(r"containerd|runc|cni|kubelet|pods|containers|lock|stoop")

_CGROUPS = re.compile(rf"{PREFIX}|stoop-test|kubepods|containerd|[0-9a-f]{{64}}|daemons")
_NAMED = re.compile(r"stoop-[a-z]+-(\d+)\b")


@dataclass(frozen=True)
class Machine:
    """One look at it: every line of a part that differs later is a difference."""

    processes: frozenset[str]
    cgroups: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    network: frozenset[str]
    directories: frozenset[str]

    def differences(self, later: Machine) -> list[str]:
        """What came and what went, a line each."""
        found = []
        for part in ("processes", "cgroups", "namespaces", "mounts", "network", "directories"):
            before, after = getattr(self, part), getattr(later, part)
            found += [f"{part}: new: {one}" for one in sorted(after - before)]
            found += [f"{part}: gone: {one}" for one in sorted(before - after)]
        return found


def look(own: str = "") -> Machine:
    """The machine as it is now. `own`: the directory that these tests have for files, whose mounts count."""
    ours = _processes()
    shown = frozenset(f"{pid} {command}" for pid, command in ours.items())
    return Machine(shown, _cgroups(), _namespaces(ours), _mounts(own), _network(), _directories())


def mark() -> None:
    """From now on whatever this process starts is known by its environment."""
    os.environ[MARK] = str(os.getpid())


def _processes() -> dict[int, str]:
    mark = f"{MARK}={os.getpid()}".encode()
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == str(os.getpid()) or not alive(int(name)):
            continue
        try:
            at = Path("/proc", name)
            theirs = f"/{PREFIX}-{os.getpid()}-" in (at / "cgroup").read_text()
            if theirs or mark in (at / "environ").read_bytes().split(b"\0"):
                found[int(name)] = repr((at / "cmdline").read_bytes()[:200])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _namespaces(pids: Iterable[int]) -> frozenset[str]:
    """As `net:[4026531840]`, and names of those that are mounted (ip-netns(8))."""
    files = [file for pid in (*pids, os.getpid()) for file in _listed(f"/proc/{pid}/ns")]
    files += _listed("/proc/self/fd")
    found = {target for file in files if (target := _link(file)) and re.fullmatch(r"[a-z_]+:\[\d+\]", target)}
    kinds = ("net", "mnt", "pid", "uts", "ipc", "user", "cgroup", "time")
    return frozenset({one for one in found if one.startswith(kinds)} | set(_listed("/run/netns")))


def _listed(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory)]
    except OSError:
        return []


def _link(file: str) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


def _cgroups() -> frozenset[str]:
    found = (path for hierarchy in hierarchies() for path, _, _ in os.walk(hierarchy))
    return frozenset(path for path in found if _CGROUPS.search(path) and not _of_another(path))


def _of_another(path: str) -> bool:
    match = _NAMED.search(path)
    return match is not None and int(match[1]) != os.getpid()


def _mounts(own: str) -> frozenset[str]:
    # Without the ids, which are given anew, and without what other tests mount in directories of theirs.
    lines = [" ".join(line.split()[3:]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return frozenset(line for line in lines if "/pytest-of-" not in line or (own and own in line))


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
        if shutil.which(command[0]) is None:
            continue
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines |= {f"{' '.join(command[:2])}: {line.strip()}" for line in told.splitlines()}
    return frozenset(lines)


def _directories() -> frozenset[str]:
    below = (path for top in WATCHED if os.path.isdir(top) for path in Path(top).iterdir())
    found = {str(path) for path in below if _THEIRS.search(path.name) and path.is_dir()}
    found |= {str(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-{os.getpid()}-*")}
    return frozenset(found)
