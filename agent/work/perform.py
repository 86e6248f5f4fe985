"""Which job is done how, and its answer."""

from __future__ import annotations

import socket
from collections.abc import Callable

from agent.jobs import AnyJob, MemoryJob, Result, SnapshotJob, encode
from agent.work import memory, scribe, snapshot
from stoop.errors import StoopError

Perform = Callable[[AnyJob, socket.socket, float, tuple[int, ...]], Result]


def _bundled(read: scribe.Read) -> Perform:
    return lambda job, sock, deadline, fds: scribe.perform(read, job, sock, deadline, fds)


PERFORM: dict[type[AnyJob], Perform] = {
    SnapshotJob: _bundled(snapshot.read),
    MemoryJob: _bundled(memory.read),
}
"""Each kind of job: how it is done."""


def perform(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> None:
    """Do a job and answer on its socket. `deadline`: CLOCK_MONOTONIC seconds, when this process is killed."""
    try:
        result = PERFORM[type(job)](job, sock, deadline, fds)
    except StoopError as error:
        result = Result(False, str(error))
    sock.send(encode(result))
