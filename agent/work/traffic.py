"""evidence:pcap and kubernetes:tcpdump: tcpdump in a pod's network namespace, from outside the pod.

A child enters the namespace, becomes nobody with CAP_NET_RAW and nothing else, and runs tcpdump, which writes to a pipe
and takes no packet apart (`-w`). The pod has no part in it: its files, its mounts and its programs are not used. The
size of a part stands before its content, so the capture waits in a file of the evidence store that has no name.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from agent.jobs import VOLATILE, TrafficJob
from agent.node.netns import enter
from agent.work.aside import libc, prctl, tie_to_parent
from agent.work.files import CHUNK, pieces
from agent.work.held import Process, hold
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetGone, TargetRefused

PART = "tcpdump.pcap"
MAX_SNAPLEN = 262_144
"""Bytes; tcpdump's own bound (MAXIMUM_SNAPLEN)."""

BEAT_SECONDS = 0.2
"""How often the scribe is told that this still works: a reader that is silent for two seconds counts as hung."""

FINISH_SECONDS = 1.0
"""What tcpdump gets to write its last packets after SIGINT."""

COMPLAINT_BYTES = 4096
"""Of what tcpdump says."""

EMPTY_BYTES = 24
"""Of a capture without packets: the file's header (pcap-savefile(5))."""

NOBODY = 65534
_KILL, _NET_RAW = 5, 13
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 38, 47, 2
_CAPABILITY_VERSION_3 = 0x20080522


class Child(NamedTuple):
    """tcpdump: its pid, what it captures, what it says."""

    pid: int
    out: int
    err: int


def arguments(job: TrafficJob) -> list[str]:
    """The command line. No packet is taken apart, no name is asked for, no link is set to hear what is not its own.

    Immediately, because else the packets of the last second are lost with it.
    """
    snaplen = min(job.snaplen or MAX_SNAPLEN, MAX_SNAPLEN)
    return [job.program, "-i", "any", "-n", "-p", "-U", "--immediate-mode", "-s", str(snaplen), "-w", "-"]


def read(teller: Teller, job: TrafficJob, fds: tuple[int, ...]) -> None:
    """Capture until time or size is over. Raises TargetGone, TargetRefused, ActFailed."""
    teller.phase(VOLATILE)
    if not teller.may("capture"):
        return
    if not _may_kill():
        raise ActFailed("tcpdump can't be ended without CAP_KILL, so it is not begun")
    if not job.processes:
        raise TargetGone("no process of the pod is known")
    first = job.processes[0]
    held = hold(first.pid, first.birth, fds[0] if fds else -1)
    try:
        network = _network(job, held)
        try:
            spool = _spool(job.store)
            try:
                child = _start(arguments(job), network)
                said, why = _gather(teller, job, child, spool, held.pidfd)
                _tell(teller, job, spool, said, why)
            finally:
                os.close(spool)
        finally:
            os.close(network)
    finally:
        held.close()


def _network(job: TrafficJob, held: Process) -> int:
    """The pod's network namespace, proven to be the one that is meant and none of the node's."""
    try:
        fd = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=held.directory)
    except OSError as error:
        raise TargetGone(f"the network namespace of pid {held.pid} can't be opened: {error.strerror}") from error
    inode = os.fstat(fd).st_ino
    why = ""
    if inode in {*job.host_networks, os.stat("/proc/self/ns/net").st_ino}:
        why = "the pod is in the node's network: a capture there would hold the traffic of all"
    elif inode != job.network:
        why = f"pid {held.pid} is in network namespace {inode}, not in the pod's ({job.network})"
    if why:
        os.close(fd)
        raise TargetRefused(why)
    return fd


def _may_kill() -> bool:
    """Whether CAP_KILL is effective: without it nobody's process outlives us, PR_SET_PDEATHSIG or not (the kernel sends
    that signal with the rights of the parent that ends)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    return libc.capget(header, held) == 0 and bool(held[0] & (1 << _KILL))


def _spool(store: str) -> int:
    """A file without a name in the store's directory. Raises ActFailed."""
    path = f"{store}/.writing-{secrets.token_hex(8)}"  # what a crash leaves of it is tidied up as a draft is
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)
    except OSError as error:
        raise ActFailed(f"the capture can't be written: {error.strerror}") from error
    return fd


# ------------------------------------------------------------ the child


def _start(argv: Sequence[str], network: int) -> Child:
    out, out_child = os.pipe2(os.O_CLOEXEC)
    err, err_child = os.pipe2(os.O_CLOEXEC)
    us = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become(argv, network, us, (out_child, err_child))
    except OSError as error:
        os.close(out)
        os.close(err)
        raise ActFailed(f"tcpdump can't be started: {error.strerror}") from error
    finally:
        os.close(out_child)
        os.close(err_child)
    return Child(pid, out, err)


def _become(argv: Sequence[str], network: int, parent: int, pipes: tuple[int, int]) -> NoReturn:
    """In the child: tcpdump with CAP_NET_RAW, as nobody, without any other descriptor."""
    try:
        out, err = pipes
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):  # the nursery and Python ignore them
            signal.signal(signo, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, number in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, number)
        enter(network)
        _keep_only_net_raw()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        tie_to_parent(parent)  # after the change of user, which forgets it (prctl(2))
        os.execve(argv[0], list(argv), {"LC_ALL": "C", "TZ": "UTC"})
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror or error}\n".encode())
    finally:
        os._exit(127)


def _keep_only_net_raw() -> None:
    """Raises OSError. capabilities(7): ambient ones stay over an exec of a file without capabilities of its own."""
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    wanted = 1 << _NET_RAW
    held = (ctypes.c_uint32 * 6)(wanted, wanted, wanted, 0, 0, 0)
    ambient = (_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _NET_RAW, 0, 0)
    if libc.capset(header, held) or libc.prctl(*ambient):
        number = ctypes.get_errno()
        raise OSError(number, f"CAP_NET_RAW can't be kept: {os.strerror(number)}")
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


# ------------------------------------------------------------ what it says


EARLY = {
    "size": "it had {} bytes, the act's bound, before its time was over",
    "pod": "the pod's network ended with its first process, before the capture's time was over",
}
"""Why tcpdump was ended before its time. A pod that has gone would live on as a network namespace else."""


def _gather(teller: Teller, job: TrafficJob, child: Child, spool: int, pod: int) -> tuple[bytes, str]:
    """Take the capture until time or size is over or the pod (a pidfd) has ended, then end tcpdump.

    Gives what it said, and why it ended early, or "".
    """
    said, size, stopping = b"", 0, ""
    until = time.monotonic() + job.duration_s
    poll = select.poll()
    for fd in (child.out, child.err, pod):
        poll.register(fd, select.POLLIN)
    open_ends = 2
    try:
        while open_ends:
            left = until - time.monotonic()
            if left <= 0 and stopping:
                break  # it does not end on SIGINT
            if left <= 0:
                stopping, until = "time", time.monotonic() + FINISH_SECONDS
                os.kill(child.pid, signal.SIGINT)
                continue
            for fd, _ in poll.poll(min(left, BEAT_SECONDS) * 1000):
                if fd == pod:
                    poll.unregister(pod)
                    if not stopping:
                        stopping, until = "pod", time.monotonic() + FINISH_SECONDS
                        os.kill(child.pid, signal.SIGINT)
                    continue
                data = os.read(fd, CHUNK)
                if not data:
                    poll.unregister(fd)
                    open_ends -= 1
                elif fd == child.err:
                    said = (said + data)[:COMPLAINT_BYTES]
                elif size < job.bytes:
                    data = data[: job.bytes - size]
                    size += len(data)
                    _write(spool, data)
                elif not stopping:
                    stopping, until = "size", time.monotonic() + FINISH_SECONDS
                    os.kill(child.pid, signal.SIGINT)
            teller.phase(VOLATILE)
    finally:
        status = _end(child)
    if stopping in EARLY:
        return said, EARLY[stopping].format(job.bytes)
    return said, "" if stopping else f"tcpdump ended before its time (status {status})"


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise ActFailed(f"the capture can't be written: {error.strerror}") from error


def _end(child: Child) -> int:
    os.kill(child.pid, signal.SIGKILL)  # ours, and not waited for yet: the number is its own
    _, status = os.waitpid(child.pid, 0)
    os.close(child.out)
    os.close(child.err)
    return os.waitstatus_to_exitcode(status)


def _tell(teller: Teller, job: TrafficJob, spool: int, said: bytes, why: str) -> None:
    complaint = said.decode("utf-8", "backslashreplace").strip()
    size = os.fstat(spool).st_size
    if size < EMPTY_BYTES:
        raise ActFailed(f"tcpdump captured nothing: {complaint or why}")
    if why:
        teller.lacks(PART, f"{why}: {complaint}" if complaint else why)
    os.lseek(spool, 0, os.SEEK_SET)
    about = {"seconds": job.duration_s, "snaplen": job.snaplen, "network": job.network, "tcpdump": complaint}
    if teller.begin(PART, size, about):
        for piece in pieces(spool, size):
            teller.piece(piece)
        teller.end()
