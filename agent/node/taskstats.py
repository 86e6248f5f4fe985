"""When a process began, in microseconds: the kernel's taskstats over generic netlink.

/proc gives starts in ticks of 10 ms, and within a tick a pid can be given anew. A taskstats query takes a few µs, needs
CAP_NET_ADMIN and CONFIG_TASKSTATS, and tells how long the process has lived. Sources: include/uapi/linux/taskstats.h,
genetlink.h and netlink.h; kernel/taskstats.c; docs/decisions/0003-start-time-by-taskstats.md.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import NamedTuple

_NETLINK_GENERIC = 16
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_TASKSTATS_CMD_GET = 1
_TASKSTATS_CMD_ATTR_PID = 1
_TASKSTATS_TYPE_STATS = 3
_TASKSTATS_TYPE_AGGR_PID = 4
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_NESTED = 0x8000 | 0x4000
# Flag bits in an attribute's type: nested, network byte order.

_KIND_AT, _SEQUENCE_AT = 4, 8
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_GENL_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with header, type
_U32 = struct.Struct("=I")
_U16 = struct.Struct("=H")

_AC_COMM, _COMM_BYTES = 80, 32
_AC_IDS = 120
_AC_ETIME = 144
# Offsets in struct taskstats. They hold for every version since 2: the structure grows at its end only.
_IDS = struct.Struct("=IIII")  # ac_uid, ac_gid, ac_pid, ac_ppid
_ETIME = struct.Struct("=Q")
_STATS_MIN = _AC_ETIME + _ETIME.size

_REPLY_MAX = 8192
_STALE_MAX = 8
"""Answers to earlier questions that are thrown away before giving up on this one."""

_TRIES = 3
_GOOD_NS = 20_000
"""A query usually takes below 10 µs. If the agent was interrupted in the middle it asks again, for a tighter answer."""

_ENOUGH_NS = 150_000
"""What nearly every proof can do with. From sleep the first query takes some 50 µs, and more would only cost time."""


class Born(NamedTuple):
    """What the kernel tells of a process, or of the thread with this number.

    It began within `slack_ns` after `start_ns` (CLOCK_REALTIME as of now). `uid` is the real one.
    """

    start_ns: int
    slack_ns: int
    ppid: int
    uid: int
    comm: bytes


class Taskstats:
    """One netlink socket, opened when first asked. Where the kernel doesn't answer, it isn't asked a second time."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._family = 0
        self._refused = False
        self._sequence = 0
        self._request = bytearray()
        self._stats_at = 0

    def born(self, pid: int, *, tight: bool = False) -> Born | None:
        """What is known of this process, None where it can't be told. `tight`: asked again until the slack is small.

        Never waits: the kernel answers within the request. The caller holds the process.
        """
        if self._refused:
            return None
        try:
            if self._socket is None:
                self._open()
            return self._ask_best(pid, _GOOD_NS if tight else _ENOUGH_NS)
        except (OSError, struct.error):
            # No such family, not permitted, an answer of another shape: none of that changes while the agent runs.
            self.close()
            self._refused = True
            return None

    def close(self) -> None:
        """Close the socket. Idempotent; the next question opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_GENERIC)
        self._socket.bind((0, 0))
        name = _attribute(_CTRL_ATTR_FAMILY_NAME, b"TASKSTATS\0")
        answer = self._ask(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, name)
        self._family = _U16.unpack_from(_attributes(answer or b"")[_CTRL_ATTR_FAMILY_ID])[0] if answer else 0
        if not self._family:
            raise OSError("the kernel has no taskstats")
        body = _GENL_HEADER.pack(_TASKSTATS_CMD_GET, 1, 0) + _attribute(_TASKSTATS_CMD_ATTR_PID, _U32.pack(0))
        head = _HEADER.pack(_HEADER.size + len(body), self._family, _NLM_F_REQUEST, 0, 0)
        self._request = bytearray(head + body)
        self._socket.connect((0, 0))

    def _ask_best(self, pid: int, good_ns: int) -> Born | None:
        """Ask until the answer is as tight as this, at most _TRIES times; the tightest counts."""
        best = self._once(pid)
        for _ in range(_TRIES - 1):
            if best is None or best.slack_ns <= good_ns:
                break
            again = self._once(pid)
            best = again if again is None or again.slack_ns < best.slack_ns else best
        return best

    def _once(self, pid: int) -> Born | None:
        """One question, put together and taken apart by hand: this is on the way of each act."""
        assert self._socket is not None
        request = self._request
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        _U32.pack_into(request, _SEQUENCE_AT, sequence)
        _U32.pack_into(request, len(request) - _U32.size, pid)
        before = time.monotonic_ns()
        self._socket.send(request)
        data = self._socket.recv(_REPLY_MAX)
        after = time.monotonic_ns()
        for _ in range(_STALE_MAX):
            if _U32.unpack_from(data, _SEQUENCE_AT)[0] == sequence:
                break
            data = self._socket.recv(_REPLY_MAX)
        else:
            raise OSError("netlink answers something else")
        if _U16.unpack_from(data, _KIND_AT)[0] == _NLMSG_ERROR:
            _raise_unless_gone(data)
            return None
        at = self._stats_at or self._find_stats(data)
        uid, _, known, ppid = _IDS.unpack_from(data, at + _AC_IDS)
        if known != pid:
            return None
        lived_ns = _ETIME.unpack_from(data, at + _AC_ETIME)[0] * 1000
        comm = data[at + _AC_COMM : at + _AC_COMM + _COMM_BYTES]
        # The kernel looked at its clock between `before` and `after`, and cut the age to whole µs.
        earliest = before - lived_ns - 1000 + time.time_ns() - time.monotonic_ns()
        return Born(earliest, after - before + 1000, ppid, uid, comm[: comm.find(b"\0")])

    def _find_stats(self, data: bytes) -> int:
        """Where struct taskstats begins in an answer: the same in each, the shape does not change while we run."""
        answer = data[_HEADER.size + _GENL_HEADER.size :]
        stats = _attributes(_attributes(answer).get(_TASKSTATS_TYPE_AGGR_PID, b"")).get(_TASKSTATS_TYPE_STATS, b"")
        if len(stats) < _STATS_MIN:
            raise OSError("the kernel's taskstats are of another shape")
        self._stats_at = data.index(stats)
        return self._stats_at

    def _ask(self, family: int, command: int, attribute: bytes) -> bytes | None:
        """Send one request and return the attributes of its answer; None for ESRCH and the like."""
        assert self._socket is not None
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        body = _GENL_HEADER.pack(command, 1, 0) + attribute
        head = _HEADER.pack(_HEADER.size + len(body), family, _NLM_F_REQUEST, self._sequence, 0)
        self._socket.sendto(head + body, (0, 0))
        for _ in range(_STALE_MAX):
            data = self._socket.recv(_REPLY_MAX)
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue
            if kind == _NLMSG_ERROR:
                _raise_unless_gone(data)
                return None
            return data[_HEADER.size + _GENL_HEADER.size : length]
        raise OSError("netlink answers something else")


def _raise_unless_gone(data: bytes) -> None:
    number = -struct.unpack_from("=i", data, _HEADER.size)[0]
    if number != errno.ESRCH:
        raise OSError(number, os.strerror(number))


def _attribute(kind: int, payload: bytes) -> bytes:
    padding = -len(payload) % 4
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(padding)


def _attributes(data: bytes) -> dict[int, bytes]:
    """Attributes side by side, each padded to 4 bytes; what is cut short ends the walk."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & ~_NESTED] = data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found
