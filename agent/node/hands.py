"""The agent's end of the hand (`agent.node.hand`): hand it a job and a namespace, wait for what it says."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import trio

from agent.node.hand import JOB_SECONDS, MAX_JOB_BYTES
from agent.node.jobs import Job, Probe, Reply, encode, read_reply
from stoop.errors import ActFailed

ANSWER_SECONDS = 2 * JOB_SECONDS + 1.0
"""A job waits for the one before it on the same table, and then has its own time. Beyond that the kernel does not let
the process go (nftables' lock is waited for without an end)."""

MAX_REPLY_BYTES = 64 * 1024

GOODBYE_SECONDS = 2.0
"""For the hand to end by itself when its socket closes; then it is ended."""

SILENT = "the process that was to do it ended without a word"


class Hands:
    """One hand at a time; a dead one is replaced by the next job. Made by `open_hands`."""

    def __init__(self, one: bool) -> None:
        self._one = one
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = trio.Lock()
        self.unavailable = ""
        """Why nothing could be done when it was tried first, "" when all could."""

    @property
    def pid(self) -> int:
        """The hand's pid, 0 when there is none: what guards the agent's own processes must know it."""
        return self._process.pid if self._process is not None else 0

    async def do(self, job: Job, namespace_fd: int = -1) -> Reply:
        """Have one job done in that namespace (-1: in the agent's own). Raises ActFailed when nothing is known of it.

        Cancelled, it is carried out all the same or not at all; a later job on the same table comes after it. When the
        hand ended amid it, another one does it once more: each job may be done twice.
        """
        reply = await self._once(job, namespace_fd)
        if reply is None:
            reply = await self._once(job, namespace_fd)
        if reply is None:
            raise ActFailed(SILENT)
        return reply

    async def _once(self, job: Job, namespace_fd: int) -> Reply | None:
        """What it said, None when it ended without a word."""
        ours, theirs = _pair()
        with ours:
            with theirs:
                await self._send(encode(job), [theirs.fileno()] + ([namespace_fd] if namespace_fd >= 0 else []))
            with trio.move_on_after(ANSWER_SECONDS):
                await trio.lowlevel.wait_readable(ours)
                try:
                    data = ours.recv(MAX_REPLY_BYTES)
                except ConnectionResetError:
                    data = b""
                return read_reply(data) if data else None
        raise ActFailed(f"no answer from the namespace within {ANSWER_SECONDS:g} s: nftables is held up there")

    async def availability(self) -> str:
        """Why nothing of this can be done on this node, "" when it can: tried in a namespace that nobody else has."""
        try:
            return (await self.do(Probe())).fault
        except ActFailed as error:
            return error.reason

    async def _send(self, data: bytes, fds: list[int]) -> None:
        for last in (False, True):
            hand = self._socket or await self._start()
            try:
                while True:
                    try:
                        socket.send_fds(hand, [data], fds, socket.MSG_DONTWAIT)
                        return
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(hand)
            except OSError as error:
                await self.close()
                if last:
                    raise ActFailed(f"no process takes jobs for network namespaces: {error.strerror}") from error

    async def _start(self) -> socket.socket:
        async with self._starting:
            if self._socket is None:
                ours, theirs = _pair()
                with theirs:
                    try:
                        self._process = await trio.to_thread.run_sync(_spawn, theirs.fileno(), self._one)
                    except OSError as error:
                        ours.close()
                        raise ActFailed(f"no process can be started: {error.strerror}") from error
                self._socket = ours
            return self._socket

    async def close(self) -> None:
        """Let the hand end, and wait for that. What it has begun is carried out. Idempotent."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_reap, process)


@contextlib.asynccontextmanager
async def open_hands(one: bool = False) -> AsyncIterator[Hands]:
    """A hand, started and tried (`unavailable`); it ends with the block. `one`: it gets jobs of one namespace only."""
    hands = Hands(one)
    try:
        hands.unavailable = await hands.availability()
        yield hands
    finally:
        await hands.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise ActFailed(f"no socket can be made: {error.strerror}") from error
    ours.setblocking(False)
    # A datagram must fit as a whole (unix(7)): the default of 208 KiB would do, but may have been lowered.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_JOB_BYTES)
    return ours, theirs


def _spawn(fd: int, one: bool) -> subprocess.Popen[bytes]:
    """In a thread. `-P`: nothing of the working directory is run as root."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agent.node.hand", str(fd), *(["one"] if one else [])],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Ctrl-C goes to the whole group, and the agent decides when the hand ends.
        process_group=0,
        # Each further arena of malloc would take 64 MiB of the hand's address space, which is limited.
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    """In a thread: the hand ends by itself when its socket closes; one that does not is ended."""
    try:
        process.wait(GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
