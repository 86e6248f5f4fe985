"""Alerts from standard input, a pipe or a file: one a line, until its end."""

from __future__ import annotations

import os

import trio

from stoop.intake.connection import portions
from stoop.intake.limits import READ_BYTES
from stoop.intake.sink import Desk, Peer
from stoop.intake.talk import Haul, LineTalk


class StdinIntake:
    """Reads NDJSON from descriptor `fd`; the constructor does nothing yet. The descriptor stays the caller's."""

    def __init__(self, fd: int, desk: Desk) -> None:
        self._fd = fd
        self._desk = desk

    async def serve(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until the end of the input or until cancelled; tells `fd` once it reads."""
        peer = Peer("stdin", f"fd {self._fd}")
        talk = LineTalk(self._desk.limits.alert_bytes, self._desk.limits.slow_seconds)
        task_status.started(self._fd)
        self._desk.sink.opened(peer)
        try:
            while data := await self._read():
                for portion in portions(data):
                    self._deliver(talk.feed(portion), peer)
                    await trio.lowlevel.checkpoint()
            self._deliver(talk.end(), peer)
        finally:
            self._desk.sink.closed(peer)

    async def _read(self) -> bytes:
        # The descriptor is left blocking: its open file may be shared with a shell. Once it is readable a read
        # returns at once with what there is.
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except PermissionError:  # epoll_ctl(2): a regular file, which is always readable
            await trio.lowlevel.checkpoint()
        try:
            return os.read(self._fd, READ_BYTES)
        except OSError:  # the terminal is gone
            return b""

    def _deliver(self, haul: Haul, peer: Peer) -> None:
        if haul.alerts:
            self._desk.sink.accept(haul.alerts, self._desk.now_ns(), peer)
        for fault in haul.faults:
            self._desk.sink.refuse(fault, peer)
