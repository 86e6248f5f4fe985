"""`python -m agent.worker FD`: the nursery, which forks a worker for each job that the reflex sends.

Starting Python takes some 100 ms, forking this small program about one. It keeps root's rights, has one thread, reads
no file of a target, and waits for nothing but its sockets and children. A worker may hang in whatever a target made; it
is killed at its deadline, and abandoned and counted when that does not help. The nursery ends with its socket, and
every worker with the nursery (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass, field

from agent.jobs import (
    MAX_FDS,
    MAX_MESSAGE,
    READY,
    Abandoned,
    Cancel,
    Ended,
    JobError,
    Result,
    Start,
    Started,
    ToNursery,
    decode_job,
    decode_to_nursery,
    encode,
)
from agent.work import perform
from agent.work.aside import PR_SET_CHILD_SUBREAPER, prctl, tie_to_parent

KILL_SECONDS = 0.25
"""How long a process may take to end on SIGKILL. What takes longer hangs in the kernel, most likely for ever."""

OUTBOX = 1024
"""Messages that wait for a reflex that does not read: three for each of the few jobs there are at a time. Beyond them
the reflex is gone or broken, and the nursery ends."""

OPEN_FILES = 16_384
"""Descriptors that a worker may open, where the hard limit allows it: two for each of 4,096 processes."""

OOM_SCORE = 500
"""Added to a worker's badness (proc(5), oom_score_adj): memory that runs short ends it before the agent."""


@dataclass(slots=True)
class Child:
    """A process of a job: its worker, or one that the worker left behind."""

    id: int
    pid: int
    pidfd: int
    deadline: float  # CLOCK_MONOTONIC; when it is killed, or, once it was, counts as abandoned
    group: int  # the process group of the job: its worker's pid
    killed: bool = False
    abandoned: bool = False


@dataclass(slots=True)
class Nursery:
    """One nursery on one socket."""

    sock: socket.socket
    children: dict[int, Child] = field(default_factory=dict)  # by pidfd
    statuses: dict[int, int] = field(default_factory=dict)  # of jobs whose worker ended, while others of theirs live
    outbox: deque[bytes] = field(default_factory=deque)
    poll: select.poll = field(default_factory=select.poll)

    def run(self) -> int:
        """Serve until the reflex closes the socket. Gives the exit code."""
        self.sock.setblocking(False)
        self.poll.register(self.sock, select.POLLIN)
        self._say(Started(READY, os.getpid()))
        while True:
            for fd, events in self.poll.poll(self._patience_ms()):
                if fd != self.sock.fileno():
                    self._ended(self.children[fd])
                    continue
                if events & select.POLLOUT:
                    self._flush()
                if events & ~select.POLLOUT and not self._take():
                    self._end_all()
                    return 0
            self._look_at_deadlines()

    def _patience_ms(self) -> float | None:
        waiting = [child.deadline for child in self.children.values() if not child.abandoned]
        return max(0.0, min(waiting) - time.monotonic()) * 1000 + 1 if waiting else None

    # ------------------------------------------------------------ what is asked

    def _take(self) -> bool:
        """Read one message; False when the reflex has gone, or speaks another language."""
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, MAX_MESSAGE + 4096, MAX_FDS + 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            return bool(data) and self._obey(decode_to_nursery(data), fds, bool(flags & socket.MSG_CTRUNC))
        except JobError as error:
            sys.stderr.write(f"agent.worker: the reflex does not speak this protocol: {error}\n")
            return False
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, message: ToNursery, fds: list[int], cut: bool) -> bool:
        if isinstance(message, Start):
            self._start(message, fds, cut)
        elif isinstance(message, Cancel):
            for child in self.children.values():
                if child.id == message.id and not child.killed:
                    self._kill(child)
        return True

    def _start(self, start: Start, fds: list[int], cut: bool) -> None:
        if not fds:
            self._say(Ended(start.id, 1))
            return
        if cut:
            self._refuse(start, fds[0], "its descriptors did not fit (RLIMIT_NOFILE)")
            return
        sys.stderr.flush()
        us = os.getpid()
        deadline = time.monotonic() + start.deadline_s
        try:
            pid = os.fork()
        except OSError as error:
            self._refuse(start, fds[0], f"no worker can be started: {error.strerror}")
            return
        if pid == 0:
            self._become_worker(us, start, deadline, fds)
        self._add(Child(start.id, pid, os.pidfd_open(pid), deadline, pid))
        self._say(Started(start.id, pid))

    def _refuse(self, start: Start, fd: int, reason: str) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            sock.send(encode(Result(False, reason)))
        self._say(Ended(start.id, 1))

    def _become_worker(self, nursery: int, start: Start, deadline: float, fds: list[int]) -> None:
        """In the new process; never returns."""
        code = 1
        try:
            tie_to_parent(nursery)
            os.setpgid(0, 0)
            gc.disable()  # it lives for one bounded job, whose values hold no cycles
            self.sock.close()
            for pidfd in self.children:
                os.close(pidfd)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(OOM_SCORE))
            perform.perform(decode_job(start.job), socket.socket(fileno=fds[0]), deadline, tuple(fds[1:]))
            code = 0
        finally:
            if code:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)

    # ------------------------------------------------------------ children

    def _add(self, child: Child) -> None:
        self.children[child.pidfd] = child
        self.poll.register(child.pidfd, select.POLLIN)

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, os.WNOHANG)
        self.poll.unregister(child.pidfd)
        os.close(child.pidfd)
        del self.children[child.pidfd]
        self.statuses.setdefault(child.id, os.waitstatus_to_exitcode(status))
        self._adopt(child)
        if all(other.id != child.id for other in self.children.values()):
            self._say(Ended(child.id, self.statuses.pop(child.id)))

    def _adopt(self, parent: Child) -> None:
        """What a process of a job left is ours now (PR_SET_CHILD_SUBREAPER), and has to end. Its group tells whose it
        was: a worker leaves a reader, and that a program that it runs."""
        known = {child.pid for child in self.children.values()}
        for pid in _children():
            if pid in known or os.getpgid(pid) != parent.group:
                continue
            orphan = Child(parent.id, pid, os.pidfd_open(pid), 0.0, parent.group)
            self._add(orphan)
            self._kill(orphan)

    def _kill(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        child.killed = True
        child.deadline = time.monotonic() + KILL_SECONDS

    def _look_at_deadlines(self) -> None:
        now = time.monotonic()
        for child in tuple(self.children.values()):
            if child.abandoned or child.deadline > now:
                continue
            if not child.killed:
                self._kill(child)
            else:
                child.abandoned = True
                self._say(Abandoned(child.id, child.pid))

    def _end_all(self) -> None:
        for child in self.children.values():
            self._kill(child)

    # ------------------------------------------------------------ answers

    def _say(self, message: Started | Ended | Abandoned) -> None:
        self.outbox.append(encode(message))
        self._flush()

    def _flush(self) -> None:
        try:
            while self.outbox:
                self.sock.send(self.outbox[0])
                self.outbox.popleft()
        except BlockingIOError:
            if len(self.outbox) > OUTBOX:
                raise
        except OSError:
            self.outbox.clear()  # it has gone: the next read tells so too
        self.poll.modify(self.sock, select.POLLIN | (select.POLLOUT if self.outbox else 0))


def _children() -> list[int]:
    """Our children of now (CONFIG_PROC_CHILDREN; without it none are found, and orphans are not counted)."""
    us = os.getpid()
    try:
        with open(f"/proc/self/task/{us}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return []


def main(argv: list[str]) -> int:
    """Serve the socket whose number is the argument."""
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the reflex decides when it ends
        signal.signal(signo, signal.SIG_IGN)
    try:
        sock = socket.socket(fileno=int(argv[0]))
    except (IndexError, ValueError, OSError) as error:
        sys.stderr.write(f"agent.worker is started by stoop-agent, with a socket: {error}\n")
        return 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()
    return Nursery(sock).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
