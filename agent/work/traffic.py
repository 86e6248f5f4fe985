"""evidence:pcap and kubernetes:tcpdump: tcpdump in a pod's network namespace, from outside the pod.

A child enters the namespace, becomes nobody with CAP_NET_RAW and nothing else, and runs tcpdump, which writes to a pipe
and takes no packet apart (`-w`). The pod has no part in it: its files, its mounts and its programs are not used.
"""

from __future__ import annotations

import ctypes
import os

from agent.jobs import VOLATILE, TrafficJob
from agent.node.netns import enter
from agent.work.aside import libc, prctl
from agent.work.held import Process, hold
from agent.work.recording import Recording, keep, record, spool
from agent.work.telling import Teller
from stoop.errors import ActFailed, TargetGone, TargetRefused

PART = "tcpdump.pcap"
MAX_SNAPLEN = 262_144
"""Bytes; tcpdump's own bound (MAXIMUM_SNAPLEN)."""

EMPTY_BYTES = 24
"""Of a capture without packets: the file's header (pcap-savefile(5))."""

NOBODY = 65534
_KILL, _NET_RAW = 5, 13
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 38, 47, 2
_CAPABILITY_VERSION_3 = 0x20080522


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
            with spool(job.store) as into:
                _capture(teller, job, held, network, into)
        finally:
            os.close(network)
    finally:
        held.close()


def _capture(teller: Teller, job: TrafficJob, held: Process, network: int, into: int) -> None:
    def prepare() -> None:
        enter(network)
        _keep_only_net_raw()

    recording = Recording(arguments(job), prepare, job.duration_s, job.bytes, held.pidfd)
    recorded = record(lambda: teller.phase(VOLATILE), recording, into)
    if os.fstat(into).st_size < EMPTY_BYTES:
        raise ActFailed(f"tcpdump captured nothing: {recorded.said or recorded.why}")
    about = {"seconds": job.duration_s, "snaplen": job.snaplen, "network": job.network, "tcpdump": recorded.said}
    keep(teller, PART, into, recorded, about)


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
