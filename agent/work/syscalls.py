"""kubernetes:sysdig: the system calls of a pod's containers, or of the node, by the node's own sysdig.

sysdig's modern eBPF driver is part of the program: no module, no compiler, no headers. It reads /proc of every process
to know who is who, and keeps the agent's rights, which loading a driver takes. What it captures it writes as it comes.
"""

from __future__ import annotations

import os
import socket

from agent.jobs import VOLATILE, AnyJob, ProbeJob, Result, SyscallsJob
from agent.work.aside import prctl
from agent.work.recording import Recording, keep, record, spool
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetRefused

PART = "sysdig.scap.gz"

START_SECONDS = 15.0
"""What loading the driver and reading /proc may take beside the capture's own time: usually some two."""

EMPTY_BYTES = 20
"""Of a gzip file with nothing in it (RFC 1952)."""

PROBE_SECONDS = 15.0
"""For each of two runs."""

PROBE_BYTES = 2**20
"""Of what it prints there, which nobody reads."""

COMPLAINT_CHARACTERS = 200
"""Of what sysdig says of why it can't: it may print all its options."""

_PR_SET_NO_NEW_PRIVS = 38
_HEX = frozenset("0123456789abcdef")


def arguments(program: str, seconds: int, snaplen: int, containers: tuple[str, ...]) -> list[str]:
    """The command line: so long, so much of each call's data, compressed, to a pipe. `containers`: ids of 12 digits; ()
    for the whole node. Raises TargetRefused for what is no id: it would be another filter."""
    argv = [program, "--modern-bpf", "-M", str(seconds), "-s", str(snaplen), "-z", "-w", "-"]
    wrong = [each for each in containers if not each or not _HEX.issuperset(each)]
    if wrong:
        raise TargetRefused(f"{wrong[0]!r} is no container's id")
    return [*argv, f"container.id in ({', '.join(containers)})"] if containers else argv


def read(teller: Teller, job: SyscallsJob, fds: tuple[int, ...]) -> None:
    """Capture until time or size is over. Raises TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    if not teller.may("capture"):
        return
    argv = arguments(job.program, job.seconds, job.snaplen, job.containers)
    with spool(job.store) as into:
        recording = Recording(argv, _prepare, job.seconds + START_SECONDS, job.bytes, itself=True)
        recorded = record(lambda: teller.phase(VOLATILE), recording, into)
        if os.fstat(into).st_size <= EMPTY_BYTES:
            raise ActFailed(f"sysdig captured nothing: {_brief(recorded.said) or recorded.why}")
        about = {"seconds": job.seconds, "snaplen": job.snaplen, "containers": list(job.containers)}
        keep(teller, PART, into, recorded, about | {"sysdig": recorded.said})


def _prepare() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def probe(job: AnyJob, sock: socket.socket, deadline: float, fds: tuple[int, ...]) -> Result:
    """Whether this sysdig runs, and whether the kernel takes its driver: by having it capture one call."""
    assert isinstance(job, ProbeJob)
    nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for words in (["--version"], ["--modern-bpf", "-M", "1", "-n", "1", "-w", "/dev/null"]):
            recording = Recording([job.program, *words], _prepare, PROBE_SECONDS, PROBE_BYTES, itself=True)
            said, why = record(lambda: None, recording, nowhere)
            if why:
                return Result(False, f"`sysdig {' '.join(words)}`: {_brief(said) or why}")
    finally:
        os.close(nowhere)
    return Result(True)


def _brief(said: str) -> str:
    """The first line of it that says something."""
    return next((line.strip() for line in said.splitlines() if line.strip()), "")[:COMPLAINT_CHARACTERS]
