"""What a process's cgroups allow and count: cgroup-v2.rst and cgroup-v1/*.rst of the kernel's docs."""

from __future__ import annotations

import os

from agent.node.procfs import parse_cgroups, text
from agent.work.files import read_at

ROOT = "/sys/fs/cgroup"
VALUE_BYTES = 16 * 1024
"""Of one control file: the longest (memory.stat) takes 2 KiB."""

# fmt: off
VALUES = (
    "cgroup.freeze", "cgroup.events", "cgroup.stat", "cpu.max", "cpu.stat", "cpu.weight", "memory.current",
    "memory.max", "memory.high", "memory.swap.max", "memory.events", "pids.current", "pids.max", "io.max",
    "io.stat", "freezer.state", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "cpuacct.usage",
    "cpuset.cpus", "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.failcnt", "devices.list",
    "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device", "net_cls.classid",
)
# fmt: on


def values(cgroup: bytes) -> dict[str, dict[str, str]]:
    """/proc/PID/cgroup → directory → value. Directories that are not mounted here are left out."""
    found: dict[str, dict[str, str]] = {}
    for controllers, path in parse_cgroups(cgroup):
        if "/.." in path:
            continue  # above our cgroup namespace
        for mount in (f"{ROOT}/{controllers}",) if controllers else (ROOT, f"{ROOT}/unified"):
            directory = mount + path.rstrip("/")
            told = _values(directory)
            if told:
                found[directory] = told
    return found


def _values(directory: str) -> dict[str, str]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    found = {}
    try:
        there = set(os.listdir(fd))
        for name in VALUES:
            if name in there:
                try:
                    found[name] = text(read_at(fd, name, VALUE_BYTES)[0]).strip()
                except OSError as error:
                    found[name] = f"not read: {error.strerror}"
    except OSError:
        pass  # removed while it was read: what was read is told
    finally:
        os.close(fd)
    return found
