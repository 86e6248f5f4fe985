"""The node's disks, as the limits of cgroups name them."""

from __future__ import annotations

import os

MAX_DISKS = 64
"""Each takes a line of its own in two files: beyond it a limit would take a millisecond to write."""

_NO_DISKS = ("loop", "ram", "zram", "fd", "sr")


def block_devices(sys_block: str = "/sys/block") -> tuple[str, ...]:
    """`MAJ:MIN` of each whole disk (sysfs(5)): limits of a cgroup name whole disks, not partitions."""
    found = []
    try:
        names = sorted(os.listdir(sys_block))
    except OSError:
        return ()
    for name in names:
        if name.rstrip("0123456789") in _NO_DISKS:
            continue
        try:
            with open(f"{sys_block}/{name}/dev", encoding="ascii") as file:
                found.append(file.read(32).strip())
        except OSError:
            continue  # pulled out since it was listed
    return tuple(found[:MAX_DISKS])
