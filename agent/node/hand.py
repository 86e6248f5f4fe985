"""`python -m agent.node.hand FD`: does jobs in network namespaces, each in a thread that ends after it.

A process of its own, beside the agent, since a job may be slow, hang in the kernel, need much memory or end the
process (libnftables does), and the namespace's owner has a say in that. The agent has two: one for the node's own
namespace, one for the pods', so that no pod can hold up what counts.

Each datagram on FD is one job; with it come the socket for its reply and, for all but a probe, the namespace. Jobs on
one table are done in the order in which they came, also when nobody waits for the first any more: an undo must not be
overtaken by what it undoes. Ends with the agent: FD is closed then.
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

import msgspec

from agent.node import nft
from agent.node.jobs import Job, Reply, carry_out, encode, read_job

JOB_SECONDS = 5.0
"""How long a job waits for the one before it on the same table. A transaction takes a millisecond; this is for a
namespace that was filled up, or whose owner keeps nftables' lock busy."""

MAX_JOB_BYTES = 128 * 1024
"""One job: two tables with 256 networks each way take some 60 KiB."""

MAX_THREADS = 128
"""Jobs at one time; 100 pods isolated at once are 100 in each hand, most of them over before the last comes."""

STACK_BYTES = 512 * 1024
"""Of a thread. A parser of bison's and some nested sets need a few KiB."""

ADDRESS_BYTES = 1 << 30
"""Address space of the hand: beyond it jobs fail and it may end, not the agent. Reading 100,000 chains takes 70 MB."""

_FDS = 2


class Hand:
    """The jobs under way."""

    def __init__(self, jobs: socket.socket) -> None:
        self._jobs = jobs
        self._room = threading.BoundedSemaphore(MAX_THREADS)
        self._last: dict[str, threading.Lock] = {}

    def serve(self) -> int:
        """Take jobs until the agent has gone. Gives the exit code."""
        threading.stack_size(STACK_BYTES)
        while True:
            data, fds, _, _ = socket.recv_fds(self._jobs, MAX_JOB_BYTES, _FDS)
            if not data:
                return 0
            self._take(data, fds)

    def _take(self, data: bytes, fds: list[int]) -> None:
        try:
            job = read_job(data)
        except msgspec.ValidationError as error:
            _answer(fds, Reply(f"the agent sent something that is no job: {error}", 1))
            return
        if not self._room.acquire(blocking=False):
            _answer(fds, Reply(f"{MAX_THREADS} jobs in network namespaces are under way already", 1))
            return
        # Held until the job is done; whoever comes next on this table waits for it.
        ours = threading.Lock()
        ours.acquire()
        earlier, self._last[job.table] = self._last.get(job.table), ours
        _thread.start_new_thread(self._do, (job, fds, earlier, ours))

    def _do(self, job: Job, fds: list[int], earlier: threading.Lock | None, ours: threading.Lock) -> None:
        try:
            if earlier is not None and earlier.acquire(timeout=JOB_SECONDS):
                earlier.release()
            _answer(fds, carry_out(job, fds[1] if len(fds) > 1 else None))
        finally:
            ours.release()
            if self._last.get(job.table) is ours:
                # A job that comes in between finds a lock that is free, or none: both mean that we are done.
                self._last.pop(job.table, None)
            self._room.release()


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
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first context sets up what all share, so before the first thread. A job says why it can't be.
    with contextlib.suppress(nft.NftError), contextlib.closing(nft.Nft()) as context:
        context.rules_of("inet", "stoop-warm-up")
    gc.collect()
    gc.freeze()
    return Hand(jobs).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
