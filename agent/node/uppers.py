"""Where a container's overlay keeps what the container wrote: its upper directory, as the runtime mounted it.

    config.json of the bundle: root.path ─▶ that mount point in the node's own mount table ─▶ upperdir=, the device
containerd mounts `<bundle>/rootfs`, CRI-O and Podman `<storage>/overlay/<layer>/merged`, Docker
`<data root>/overlay2/<layer>/merged` or a bundle of containerd (OCI config.md, "Root"; proc(5), /proc/PID/mountinfo;
overlayfs.rst). All of it is root's: nothing that the container shows of its own mounts is asked. It is compared with
the container's root by the device, which no other overlay of the node has.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict

from agent.node.bundles import Bundles
from agent.node.procfs import Procfs, namespace_inode
from stoop.pods import Upper

MAX_TABLE = 32 * 1024 * 1024
"""Bytes of the node's mount table that are read: each overlay takes some KiB, for its lower directories."""

MAX_REMEMBERED = 1024
"""Containers whose upper directory is remembered, some 300 bytes each. An id is never mounted anew elsewhere."""

_OCTAL = re.compile(rb"\\([0-7]{3})")
_ESCAPED = re.compile(rb"[ \t\n\\#]")


class Uppers:
    """`reference_pid`: whose mount table is the node's. `root`: where its file system is seen ("" for `/`)."""

    def __init__(self, bundles: Bundles, procfs: Procfs, reference_pid: int, root: str = "") -> None:
        self._bundles = bundles
        self._table = f"{procfs.root}/{reference_pid}"
        self._root = root
        self._known: OrderedDict[str, Upper] = OrderedDict()

    def of(self, container_id: str) -> Upper:
        """Of the container with this full id. The node's mount table is read at the first question about one."""
        known = self._known.get(container_id)
        if known is None:
            known = self._look(container_id)
            if known.why:
                return known
            self._known[container_id] = known
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(container_id)
        return known

    def _look(self, container_id: str) -> Upper:
        bundle = self._bundles.oci(container_id)
        if isinstance(bundle, str):
            return Upper(why=bundle)
        if not bundle.rootfs:
            return Upper(why=f"the runtime does not say where the root of container {container_id[:12]} is mounted")
        try:
            table = self._read()
        except OSError as error:
            return Upper(why=f"{self._table}/mountinfo: the node's mounts can't be read: {error.strerror}")
        found = overlay_at(table, os.fsencode(bundle.rootfs))
        return found if found.why else Upper(self._prefix() + found.directory, found.device)

    def _read(self) -> bytes:
        with open(f"{self._table}/mountinfo", "rb", buffering=0) as file:
            parts, size = [], 0
            while size < MAX_TABLE and (part := file.read(1024 * 1024)):
                parts.append(part)
                size += len(part)
        return b"".join(parts)

    def _prefix(self) -> str:
        """Where the node's directories are seen from here: an agent in a pod has a mount namespace of its own."""
        if self._root:
            return self._root
        try:
            same = namespace_inode(f"{self._table}/ns/mnt") == namespace_inode("/proc/self/ns/mnt")
        except OSError:  # a sandbox hides it
            same = True
        return "" if same else f"{self._table}/root"


def overlay_at(table: bytes, point: bytes) -> Upper:
    """The overlay that is mounted there, of a whole mountinfo. Pure: bytes in, and a reason where it can't be told."""
    where = _ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], point)
    told = {_of_line(line) for line in _lines(table, b" " + where + b" ")}
    if len(told) != 1:
        what = "is not mounted" if not told else "is mounted more than once"
        return Upper(why=f"{os.fsdecode(point)} {what} on the node")
    device, directory = told.pop()
    if not directory.startswith(b"/"):
        return Upper(why=f"{os.fsdecode(point)} is no overlay with an upper directory of a full path")
    return Upper(os.fsdecode(directory), device)


def _lines(table: bytes, point: bytes) -> list[bytes]:
    """Lines of this mount point. A search by bytes: a table of 1,000 mounts has a MiB."""
    found, at = [], table.find(point)
    while at >= 0:
        begin, end = table.rfind(b"\n", 0, at) + 1, table.find(b"\n", at)
        end = len(table) if end < 0 else end
        line = table[begin:end]
        if line[: at - begin].count(b" ") == 3:  # the fifth word: the fourth may be called so too
            found.append(line)
        at = table.find(point, end)
    return found


def _of_line(line: bytes) -> tuple[str, bytes]:
    """(device, upper directory) of a mount; no directory where it is no overlay, or has none."""
    before, _, after = line.partition(b" - ")
    kind, _, rest = after.partition(b" ")
    device = before.split(b" ")[2].decode("ascii", "replace")
    options = rest.rpartition(b" ")[2].split(b",") if kind == b"overlay" else []
    named = [option.removeprefix(b"upperdir=") for option in options if option.startswith(b"upperdir=")]
    return device, _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), named[0]) if len(named) == 1 else b""
