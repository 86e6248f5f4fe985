"""What a snapshot tells of one process: /proc/PID (proc(5)) as JSON, texts as the kernel gives them.

Texts of the target are data: bytes that are no UTF-8 are written `\\xNN`, and nothing is ever used as a path.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from agent.node.procfs import parse_stat, text
from agent.work.files import names
from agent.work.held import Process
from agent.work.telling import Teller
from stoop.evidence.mask import mask_environment

CMDLINE_BYTES = 128 * 1024
"""What one argument can be at most (MAX_ARG_STRLEN); longer command lines are cut."""

ENVIRON_BYTES = 256 * 1024
MAPS_BYTES = 2 * 1024 * 1024
"""Some 20,000 mappings; a process may have 65,530 (vm.max_map_count)."""

SMALL_BYTES = 256 * 1024
"""Of what the kernel alone words: status, limits, cgroup."""

MAX_FDS = 4096
"""Descriptors of one process that are looked at."""

MAX_THREADS = 512
"""Threads of one process that are named."""

REMEMBERED, REMEMBERED_BYTES = 32, 16 * 1024
"""Texts that are the same for many processes: so many are kept, each shorter than that."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
LINKS = ("exe", "cwd", "root")
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# fmt: off
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)
# fmt: on
# In the order of their numbers: include/uapi/linux/capability.h.

_CAPABILITY_LINE = re.compile(rb"^(Cap(?:Inh|Prm|Eff|Bnd|Amb)):\s*([0-9a-f]+)$", re.MULTILINE)
_SOCKET = re.compile(rb"socket:\[([0-9]+)\]")


@functools.lru_cache(maxsize=256)  # of 50 processes nearly all have the same few sets
def capabilities(mask: int) -> list[str]:
    """The names of a set's members (capabilities(7)); a number for one that is newer than this list."""
    named = [f"CAP_{name}" for number, name in enumerate(_CAPABILITIES) if mask >> number & 1]
    beyond = mask >> len(_CAPABILITIES)
    return named + [str(len(_CAPABILITIES) + at) for at in range(beyond.bit_length()) if beyond >> at & 1]


def inode_of(target: bytes) -> int:
    """The inode of the socket that a descriptor's link names; 0 for anything else."""
    match = _SOCKET.fullmatch(target)
    return int(match[1]) if match else 0


def volatile(teller: Teller, held: Process) -> tuple[dict[str, Any], dict[int, int]]:
    """What changes while it runs, and its sockets: inode → descriptor. What can't be read has its error's words."""
    reader = _Reader(teller, held)
    told: dict[str, Any] = {"pid": held.pid}
    status = reader.read("status")
    told["status"] = text(status)
    told["capabilities"] = {
        name.decode(): capabilities(int(mask, 16)) for name, mask in _CAPABILITY_LINE.findall(status)
    }
    told["stat"] = text(reader.read("stat"))
    told["cmdline"] = [text(word) for word in reader.read("cmdline", CMDLINE_BYTES).rstrip(b"\0").split(b"\0")]
    told["environment"] = _environment(reader.read("environ", ENVIRON_BYTES))
    told["maps"] = text(reader.read("maps", MAPS_BYTES))
    told["limits"] = _lines(reader.read("limits"))
    told["cgroup"] = _lines(held.cgroup or reader.read("cgroup"))
    told |= {name: text(reader.link(name)) for name in LINKS}
    told["namespaces"] = {name: text(reader.link(f"ns/{name}")) for name in NAMESPACES}
    told["fds"], sockets = reader.fds()
    if "\nThreads:\t1\n" not in told["status"]:
        told["threads"] = reader.threads()
    if reader.faults:
        told["not_read"] = reader.faults
    if held.ended():
        told["ended"] = "it exited while it was read: what is missing was gone"
    return told, sockets


def _environment(block: bytes) -> list[str]:
    """Masked. The processes of a container mostly have the same: short ones are remembered."""
    return _known_environment(block) if len(block) < REMEMBERED_BYTES else _masked(block)


def _masked(block: bytes) -> list[str]:
    return [text(entry) for entry in mask_environment(block)]


_known_environment = functools.lru_cache(maxsize=REMEMBERED)(_masked)


@functools.lru_cache(maxsize=REMEMBERED)
def _lines(data: bytes) -> list[str]:
    """Of a file of some hundred bytes that is the same for many."""
    return text(data).splitlines()


class _Reader:
    """Reads files of one process; a fault of one is no fault of the others."""

    def __init__(self, teller: Teller, held: Process) -> None:
        self._teller = teller
        self._held = held
        self.faults: dict[str, str] = {}

    def _may(self, name: str) -> bool:
        if self._teller.may(f"{self._held.pid}/{name}"):
            return True
        self.faults[name] = "it did not answer"
        return False

    def read(self, name: str, limit: int = SMALL_BYTES) -> bytes:
        """A file's content; b"" when it can't be had."""
        if not self._may(name):
            return b""
        try:
            data, cut = self._held.read(name, limit)
        except OSError as error:
            self.faults[name] = str(error.strerror)
            return b""
        if cut:
            self.faults[name] = f"cut after {limit} bytes"
        return data

    def link(self, name: str) -> bytes:
        """Where a link leads; b"" when it can't be had."""
        try:
            return self._held.link(name)
        except OSError as error:
            self.faults[name] = str(error.strerror)
            return b""

    def fds(self) -> tuple[dict[str, str], dict[int, int]]:
        """Descriptor → what it is, and its sockets: inode → descriptor."""
        told: dict[str, str] = {}
        sockets: dict[int, int] = {}
        try:
            directory = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._held.directory)
        except OSError as error:
            self.faults["fd"] = str(error.strerror)
            return told, sockets
        try:
            found = names(directory, MAX_FDS + 1)
            if len(found) > MAX_FDS:
                self.faults["fd"] = f"more than {MAX_FDS} descriptors: the rest is not told"
            for name in found[:MAX_FDS]:  # the kernel lists them in order
                try:
                    target = os.readlink(name, dir_fd=directory)
                except OSError:
                    continue  # closed since it was listed
                told[name.decode("ascii")] = text(target)
                if target.startswith(b"socket:") and (inode := inode_of(target)):
                    sockets[inode] = int(name)
        except OSError as error:
            self.faults["fd"] = str(error.strerror)
        finally:
            os.close(directory)
        return told, sockets

    def threads(self) -> list[dict[str, Any]]:
        """Id, name and state of each thread."""
        told: list[dict[str, Any]] = []
        try:
            directory = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._held.directory)
        except OSError as error:
            self.faults["task"] = str(error.strerror)
            return told
        try:
            found = names(directory, MAX_THREADS + 1)
        except OSError as error:
            self.faults["task"] = str(error.strerror)
            found = []
        finally:
            os.close(directory)
        if len(found) > MAX_THREADS:
            self.faults["task"] = f"more than {MAX_THREADS} threads: the rest is not told"
        for name in found[:MAX_THREADS]:
            try:
                stat = parse_stat(self._held.read(f"task/{name.decode('ascii')}/stat")[0])
            except (OSError, ValueError):
                continue  # it has ended since it was listed
            told.append({"tid": int(name), "name": stat.comm, "state": stat.state})
        return told
