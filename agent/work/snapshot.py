"""evidence:snapshot: what there is to know of a process, a tree or a container, read in the order in which it is lost.

First, while the target may stand still: the processes, their sockets and cgroups; descriptors of the executables and
of the upper directory. Then `VOLATILE` is told, and what does not run away follows: mounts, the list of changes, the
log, the executables. A target that is ended after `VOLATILE` loses nothing of what is held by descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.jobs import NICE, VOLATILE, LogTail, SnapshotJob
from agent.node.procfs import text
from agent.work import cgroups, dockerlog
from agent.work.files import CHUNK, Looks, look, names, open_beneath, pieces, reopen
from agent.work.held import Process, hold_all
from agent.work.overlay import Changes, Mount, parse_mountinfo, upper_of
from agent.work.process import volatile
from agent.work.sockets import TABLES, sockets
from agent.work.telling import Teller
from agent.work.unixpeers import MAX_CONNECTED, NONE_CONNECTED, Connected, connected, names_of_node
from stoop.errors import TargetGone, TargetRefused

MAX_EXECUTABLES = 64
"""Different executables of one snapshot, each a descriptor and a part."""

MAX_NETWORKS = 16
"""Network namespaces of one snapshot."""

TABLE_BYTES = 1024 * 1024
"""Of one table of sockets: some 7,000 of them."""

TABLES_BYTES = 4 * 1024 * 1024
"""Of all tables together: they are kept until the target runs again."""

MOUNTS_BYTES = 1024 * 1024

_PATH = os.O_PATH | os.O_CLOEXEC
MAX_LOGS = 256
"""Names looked at in the directory of a container's logs: the kubelet keeps some ten."""

_LOG = re.compile(rb"[0-9]{1,9}\.log")

_TOP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Executable:
    """A file that processes run, by an O_PATH descriptor: it is there for as long as that is open."""

    fd: int
    looks: Looks
    path: str
    pids: list[int]


@dataclass(slots=True)
class Network:
    """A network namespace: its tables, which unix sockets are connected, who of the targets has which socket in it."""

    tables: dict[str, bytes] = field(default_factory=dict)
    unix: Connected = NONE_CONNECTED
    holders: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def read(teller: Teller, job: SnapshotJob, fds: tuple[int, ...]) -> None:
    """Read a snapshot's target. Raises TargetGone when none of its processes is left."""
    held = hold_all(teller, job, fds)
    if not held:
        raise TargetGone("none of its processes is left")
    _Snapshot(teller, job, held).read()


class _Snapshot:
    def __init__(self, teller: Teller, job: SnapshotJob, held: list[Process]) -> None:
        self._teller = teller
        self._job = job
        self._held = held
        self._networks: dict[str, Network] = {}
        self._tables_left = TABLES_BYTES
        self._executables: dict[tuple[str, int], Executable] = {}
        self._mounts: list[Mount] = []

    def read(self) -> None:
        """All of it, in the order of this module's head."""
        for held in self._held:
            self._process(held)
        self._cgroups()
        mountinfo = self._mountinfo()
        upper = self._open_upper()
        self._teller.phase(VOLATILE)
        os.nice(NICE)
        self._teller.whole("mounts.txt", mountinfo, {"of": self._held[0].pid})
        self._sockets()
        if self._job.log is not None:
            self._log(self._job.log)
        if upper >= 0:
            self._changes(upper)
        self._copy_executables()
        self._teller.notes["processes"] = len(self._held)

    # ------------------------------------------------------------ while it may stand still

    def _process(self, held: Process) -> None:
        told, found = volatile(self._teller, held)
        self._teller.whole(f"processes/{held.pid}.json", msgspec.json.encode(told))
        network = self._network(held, told["namespaces"]["net"])
        if network is not None:
            for inode, fd in found.items():
                network.holders.setdefault(inode, []).append((held.pid, fd))
        if self._job.executable_bytes:
            self._executable(held, told["exe"])

    def _network(self, held: Process, name: str) -> Network | None:
        """The namespace of this name, its tables read through the first process in it."""
        network = self._networks.get(name)
        if network is not None or not name:
            return network
        if len(self._networks) >= MAX_NETWORKS:
            self._teller.lacks(f"sockets of {name}", f"more than {MAX_NETWORKS} network namespaces")
            return None
        network = self._networks[name] = Network()
        for table in TABLES:
            limit = min(TABLE_BYTES, self._tables_left)
            try:
                data, cut = held.read(f"net/{table}", limit)
            except FileNotFoundError:
                continue  # a kernel without IPv6
            except OSError as error:
                self._teller.lacks(f"{table} sockets of {name}", str(error.strerror))
                continue
            if cut:
                self._teller.lacks(f"{table} sockets of {name}", f"cut after {limit} bytes")
            network.tables[table] = data
            self._tables_left -= len(data)
        network.unix = self._connected(held, name)
        return network

    def _connected(self, held: Process, name: str) -> Connected:
        what = f"peers of unix sockets of {name}"
        try:
            namespace = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.directory)
            try:
                found = connected(namespace)
            finally:
                os.close(namespace)
        except OSError as error:
            self._teller.lacks(what, str(error.strerror))
            return NONE_CONNECTED
        if found.cut:
            self._teller.lacks(what, f"more than {MAX_CONNECTED} are connected")
        return found

    def _executable(self, held: Process, path: str) -> None:
        if not self._teller.may(f"{held.pid}/exe"):
            return
        try:
            fd = os.open("exe", _PATH, dir_fd=held.directory)
        except OSError:
            return  # a kernel thread, or it has ended: its own part says so
        looks = look(fd)
        known = self._executables.get((looks.device, looks.inode))
        if known is not None or len(self._executables) >= MAX_EXECUTABLES:
            os.close(fd)
            if known is not None:
                known.pids.append(held.pid)
            else:
                self._teller.lacks(path, f"more than {MAX_EXECUTABLES} executables")
            return
        self._executables[looks.device, looks.inode] = Executable(fd, looks, path, [held.pid])

    def _cgroups(self) -> None:
        with contextlib.suppress(OSError):  # it has ended: its own part says so
            found = cgroups.values(self._held[0].read("cgroup")[0])
            self._teller.whole("cgroups.json", msgspec.json.encode(found), {"of": self._held[0].pid})

    def _mountinfo(self) -> bytes:
        try:
            data, cut = self._held[0].read("mountinfo", MOUNTS_BYTES)
        except OSError as error:
            self._teller.lacks("mounts.txt", str(error.strerror))
            return b""
        if cut:
            self._teller.lacks("mounts.txt", f"cut after {MOUNTS_BYTES} bytes")
        self._mounts = parse_mountinfo(data)
        return data

    def _open_upper(self) -> int:
        """The overlay's upper directory, opened as the runtime named it; -1 where there is none to be had."""
        if not self._job.list_upper or not self._teller.may("upper"):
            return -1
        name = os.fsencode(self._job.upper) or upper_of(self._mounts)
        if not name.startswith(b"/"):
            self._teller.lacks("upper.ndjson", "its root is no overlay whose upper directory is known")
            return -1
        self._teller.notes["upper"] = text(name)
        self._teller.notes["upper_told_by"] = "runtime" if self._job.upper else "mount table"
        try:
            return os.open(name, _TOP)
        except OSError as error:
            self._teller.lacks("upper.ndjson", f"{text(name)}: {error.strerror}")
            return -1

    # ------------------------------------------------------------ afterwards

    def _sockets(self) -> None:
        told: list[dict[str, Any]] = []
        for name, network in self._networks.items():
            found = sockets(network.tables, network.holders, network.unix.peers, self._peer_names(network))
            told.append({"network": name, "sockets": found})
        self._teller.whole("sockets.json", msgspec.json.encode(told))

    def _peer_names(self, network: Network) -> dict[int, str]:
        """Names of the other ends; the node is asked for those of its own if there can be one."""
        unix = network.unix
        if all(peer in unix.peers for inode, peer in unix.peers.items() if inode in network.holders):
            return unix.names
        try:
            return names_of_node() | unix.names
        except OSError as error:
            self._teller.lacks("names of the node's unix sockets", str(error.strerror))
            return unix.names

    def _log(self, tail: LogTail) -> None:
        """The end of the log. A pod may have put something else there: only a regular file with one name counts."""
        if not self._teller.may("log"):
            return
        try:
            directory = os.open(tail.directory, _TOP)
            try:
                name = tail.name if not tail.name.endswith("/") else _newest(directory, tail.name)
                fd = _open_log(directory, name, tail.docker)
            finally:
                os.close(directory)
        except (OSError, TargetRefused) as error:
            why = error.strerror if isinstance(error, OSError) else error.reason
            self._teller.lacks("log.txt", f"{tail.name}: {why}")
            return
        try:
            found = look(fd)
            if not found.is_regular or found.links != 1 or found.uid not in (0, os.geteuid()):
                self._teller.lacks("log.txt", f"{tail.name}: it is no regular file of root with one name")
                return
            size = min(found.size, tail.bytes)
            os.lseek(fd, found.size - size, os.SEEK_SET)
            self._copy("log.txt", fd, size, {"name": name, "of": found.size})
        finally:
            os.close(fd)

    def _changes(self, upper: int) -> None:
        if not self._teller.may("upper list"):
            return
        changes = Changes()
        changes.walk(upper)
        os.close(upper)
        self._teller.whole("upper.ndjson", b"\n".join([*changes.lines, b""]), {"entries": len(changes.lines)})
        for why in changes.lacks:
            self._teller.lacks("upper.ndjson", why)

    def _copy_executables(self) -> None:
        left = self._job.executable_bytes
        hanging = {mount.device for mount in self._mounts if mount.kind.startswith("fuse")}
        for found in self._executables.values():
            looks = found.looks
            name = f"executables/{looks.device.replace(':', '-')}-{looks.inode}.bin"
            if looks.device in hanging:
                self._teller.lacks(found.path, "it lies in a FUSE file system, which need not answer")
            elif not looks.is_regular:
                self._teller.lacks(found.path, "it is no regular file")
            elif name not in self._teller.told and self._teller.may(f"copy {name}"):
                size = min(looks.size, left)
                if size < looks.size:
                    self._teller.lacks(found.path, f"{size} of {looks.size} bytes: the snapshot's bound")
                left -= size
                self._copy_executable(name, found, size)
            os.close(found.fd)

    def _copy_executable(self, name: str, found: Executable, size: int) -> None:
        looks = found.looks
        about = {
            "path": found.path,
            "pids": found.pids[:MAX_EXECUTABLES],
            "device": looks.device,
            "inode": looks.inode,
            "mode": f"{looks.mode & 0o7777:04o}",
            "size": looks.size,
            "mtime_ns": looks.mtime_ns,
        }
        try:
            fd = reopen(found.fd)
        except OSError as error:
            self._teller.lacks(found.path, str(error.strerror))
            return
        try:
            self._copy(name, fd, size, about)
        finally:
            os.close(fd)

    def _copy(self, name: str, fd: int, size: int, about: dict[str, Any]) -> None:
        if size <= CHUNK:
            data = b"".join(pieces(fd, size))
            self._teller.whole(name, data, about)
        elif self._teller.begin(name, size, about):
            with contextlib.suppress(OSError):  # the rest is a gap, and told so
                for piece in pieces(fd, size):
                    self._teller.piece(piece)
            self._teller.end()


def _open_log(directory: int, name: str, docker: str) -> int:
    """The file of this name, or Docker's that a link there is about, whose lines are kept as they are too. Raises
    OSError, TargetRefused."""
    try:
        return open_beneath(directory, os.fsencode(name))
    except OSError as error:
        folders, _, last = name.rpartition("/")
        if error.errno != errno.ELOOP or not folders:
            raise
    folder = open_beneath(directory, os.fsencode(folders), _TOP)
    try:
        container_id = dockerlog.meant_by(folder, last)
    finally:
        os.close(folder)
    if not container_id:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    pod, _, container = folders.rpartition("/")
    found = dockerlog.open_directory(docker, container_id, pod.rpartition("_")[2], container)
    try:
        return open_beneath(found, f"{container_id}-json.log".encode("ascii"))
    finally:
        os.close(found)


def _newest(directory: int, name: str) -> str:
    """The file `<count>.log` with the largest count in this directory below. Raises OSError where there is none."""
    fd = open_beneath(directory, os.fsencode(name), _TOP)
    try:
        counts = [int(found[:-4]) for found in names(fd, MAX_LOGS) if _LOG.fullmatch(found)]
    finally:
        os.close(fd)
    if not counts:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return f"{name}{max(counts)}.log"
