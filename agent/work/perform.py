"""Which job is done how, and its answer."""

from __future__ import annotations

import socket
from collections.abc import Callable

from agent.jobs import (
    AnyJob,
    AsideJob,
    DeliverJob,
    DownloadJob,
    KeepFileJob,
    LogJob,
    MemoryJob,
    ProbeJob,
    Result,
    SnapshotJob,
    SyscallsJob,
    TidyJob,
    TrafficJob,
    encode,
)
from agent.work import deliver, disuse, download, log, memory, quarantine, scribe, snapshot, syscalls, traffic
from stoop.errors import StoopError, TargetGone, TargetRefused
from stoop.evidence.store import Store

MAX_NOTES = 100
"""Lines of what was put in order: an answer is one packet."""

Perform = Callable[[AnyJob, socket.socket, float, tuple[int, ...]], Result]


def _bundled(read: scribe.Read) -> Perform:
    return lambda job, sock, deadline, fds: scribe.perform(read, job, sock, deadline, fds)


def _tidy(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    assert isinstance(job, TidyJob)
    with Store(job.store, job.limits) as store:
        if job.before_ns:
            store.unpin_others(job.held, job.before_ns)
        notes = store.tidy()[:MAX_NOTES]
        return Result(True, details={"notes": notes, "store": store.holds})


PERFORM: dict[type[AnyJob], Perform] = {
    SnapshotJob: _bundled(snapshot.read),
    MemoryJob: _bundled(memory.read),
    LogJob: _bundled(log.read),
    DownloadJob: _bundled(download.read),
    TrafficJob: _bundled(traffic.read),
    KeepFileJob: _bundled(quarantine.read),
    AsideJob: disuse.perform,
    DeliverJob: deliver.perform,
    SyscallsJob: _bundled(syscalls.read),
    ProbeJob: syscalls.probe,
    TidyJob: _tidy,
}
"""Each kind of job: how it is done."""


def perform(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> None:
    """Do a job and answer on its socket. `deadline`: CLOCK_MONOTONIC seconds, when this process is killed."""
    try:
        result = PERFORM[type(job)](job, sock, deadline, fds)
    except StoopError as error:
        refused, gone = isinstance(error, TargetRefused), isinstance(error, TargetGone)
        result = Result(False, str(error), refused=refused, gone=gone)
    sock.send(encode(result))
