"""`python -m agent.node.hand FD [one]`: does jobs in network namespaces, each in a thread that ends after it.

A process of its own, beside the agent, since a job may be slow, hang in the kernel, need much memory or end the
process (libnftables does), and the namespace's owner has a say in that. The agent has two: one for the node's own
namespace, one for the pods', so that no pod can hold up what counts.

Each datagram on FD is one job; with it come the socket for its reply and, for all but a probe, the namespace. Jobs on
one namespace are done one by one in the order in which they came, also when nobody waits for the first any more: an
undo must not be overtaken by what it undoes, and nftables does one at a time anyway. Ends with the agent: FD is
closed then. `one`: all jobs are of one namespace.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import msgspec

from agent.node import nft
from agent.node.hand_rights import keep_rights
from agent.node.jobs import Contexts, Job, Reply, carry_out, encode, read_job

JOB_SECONDS = 5.0
"""How long a job waits for the one before it in the same namespace. A transaction takes a millisecond; this is for a
namespace that was filled up, or whose owner keeps nftables' lock busy."""

MAX_JOB_BYTES = 128 * 1024
"""One job: two tables with 256 networks each way take some 60 KiB."""

MAX_THREADS = 128
"""Jobs at one time; 100 pods isolated at once are 100 in each hand, most of them over before the last comes."""

MAX_ACTIVE = 4
"""Jobs that run at one time: more than there are processors only take turns."""

TURN_SECONDS = 0.5
"""After that a job runs besides: those that are at it hang."""

STACK_BYTES = 512 * 1024
"""Of a thread. A parser of bison's and some nested sets need a few KiB."""

ADDRESS_BYTES = 1 << 30
"""Address space of the hand: beyond it jobs fail and it may end, not the agent. Reading 100,000 chains takes 70 MB."""

_FDS = 2


class Hand:
    """The jobs under way."""

    def __init__(self, jobs: socket.socket, contexts: Contexts) -> None:
        self._jobs = jobs
        self._contexts = contexts
        self._room = threading.BoundedSemaphore(MAX_THREADS)
        self._active = threading.BoundedSemaphore(MAX_ACTIVE)
        self._last: dict[int, threading.Lock] = {}

    def serve(self) -> int:
        """Take jobs until the agent has gone. Gives the exit code."""
        threading.stack_size(STACK_BYTES)
        while True:
            data, fds, _, _ = socket.recv_fds(self._jobs, MAX_JOB_BYTES, _FDS)
            if not data:
                return 0
            if fds:  # else nobody can be answered: not from our agent
                self._take(data, fds)

    def _take(self, data: bytes, fds: list[int]) -> None:
        try:
            job = read_job(data)
        except msgspec.DecodeError as error:
            _answer(fds, Reply(f"the agent sent something that is no job: {error}", 1))
            return
        if not self._room.acquire(blocking=False):
            _answer(fds, Reply(f"{MAX_THREADS} jobs in network namespaces are under way already", 1))
            return
        # Held until the job is done; whoever comes next in this namespace waits for it.
        ours = threading.Lock()
        ours.acquire()
        namespace = os.fstat(fds[1]).st_ino if len(fds) > 1 else 0
        earlier, self._last[namespace] = self._last.get(namespace), ours
        _thread.start_new_thread(self._do, (job, fds, namespace, earlier, ours))

    def _do(
        self, job: Job, fds: list[int], namespace: int, earlier: threading.Lock | None, ours: threading.Lock
    ) -> None:
        with contextlib.ExitStack() as after:
            after.callback(self._room.release)
            try:
                if earlier is not None and earlier.acquire(timeout=-1 if self._contexts.keep else JOB_SECONDS):
                    earlier.release()
                with self._turn():
                    reply = carry_out(job, fds[1] if len(fds) > 1 else None, self._contexts, after)
                _answer(fds, reply)
            finally:
                ours.release()
                if self._last.get(namespace) is ours:
                    # A job that comes in between finds a lock that is free, or none: both mean that we are done.
                    self._last.pop(namespace, None)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait while MAX_ACTIVE are at it; but not for ever for those that hang."""
        waited_for = self._active.acquire(timeout=TURN_SECONDS)
        try:
            yield
        finally:
            if waited_for:
                self._active.release()


def _answer(fds: list[int], reply: Reply) -> None:
    """Send it and let go of all that came with the job. Who asked may have gone: then nobody is left to be told."""
    with contextlib.suppress(OSError), socket.socket(fileno=fds[0]) as answer:
        answer.send(encode(reply))
    for fd in fds[1:]:
        os.close(fd)


def main(argv: list[str]) -> int:
    """Serve the socket that was handed in."""
    # Ctrl-C and a group's SIGTERM reach us too, but the agent decides when this ends.
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    try:
        jobs = socket.socket(fileno=int(argv[0]))
    except (IndexError, ValueError, OSError) as error:
        sys.stderr.write(f"agent.node.hand is started by stoop-agent, with a socket: {error}\n")
        return 2
    keep_rights()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first context sets up what all share, so before the first thread. A job says why it can't be.
    with contextlib.suppress(nft.NftError), contextlib.closing(nft.Nft()) as context:
        context.listed("list table inet stoop-warm-up")
    gc.collect()
    gc.freeze()
    return Hand(jobs, Contexts(keep="one" in argv[1:])).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
