"""A network namespace found again by its inode, when the process that led to it may have gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

from agent.node.netns import Namespace, namespace_at

MAX_LOOKED_AT = 65_536
"""Processes looked at, some 5 µs each: twice what a large node runs. Namespaces without a process are found by their
mounts before that."""


def find_namespace(inode: int, pid: int, reference_pid: int, proc: str = "/proc") -> Namespace | None:
    """A network namespace by its inode: first that of `pid`, then those mounted on the node, then every process's.

    None when it is nowhere. The inode of a namespace that ended can be given anew: what is done in the one that is
    found must be harmless in any. The caller closes it.
    """
    for path in _candidates(pid, reference_pid, proc):
        try:
            if os.stat(path).st_ino != inode:
                continue
            found = namespace_at(path)
        except OSError:
            continue  # it has just gone, or is nobody's to look at
        if found.inode == inode:
            return found
        found.close()
    return None


def _candidates(pid: int, reference_pid: int, proc: str) -> Iterator[str]:
    yield f"{proc}/{pid}/ns/net"
    yield from _mounted(reference_pid, proc)
    with os.scandir(proc) as entries:
        for looked_at, entry in enumerate(entries):
            if looked_at == MAX_LOOKED_AT:
                return
            if entry.name.isdigit():
                yield f"{proc}/{entry.name}/ns/net"


def _mounted(reference_pid: int, proc: str) -> Iterator[str]:
    """Where the node's mount namespace keeps network namespaces: ip-netns(8) and the CNI do so."""
    try:
        with open(f"{proc}/{reference_pid}/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(b" ")
        if len(fields) > 4 and fields[3].startswith(b"net:["):
            yield f"{proc}/{reference_pid}/root{fields[4].decode('utf-8', 'surrogateescape')}"
