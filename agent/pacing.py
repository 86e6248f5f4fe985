"""The pacemaker's process: cheap system calls at an even rate, so that Falco's reader does not fall asleep.

    python -m agent.pacing FD RATE ADAPTIVE

FD is one end of a SOCK_SEQPACKET pair, whose other end the agent holds. It ends when that is closed, and by
PR_SET_PDEATHSIG with the thread that started it. About every LOOK_SECONDS it sends a `REPORT` of what it did; a
message to it (`STAY_AWAKE`) forbids rest for a while. It has no right at all, opens no file but /proc/stat, and imports
as little as it can: its memory is the interpreter's.

The call is fchdir(2) to the directory that it is in anyway: nothing is looked up or changed, it never fails, and it is
among those that Falco always traces, because they change what it knows of a process (EF_MODIFIES_STATE; falco.org,
"Adaptive syscalls selection").
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import sys
import time

from agent import privileges

LOOK_SECONDS = 5
"""Between two looks at the node's load. A busy node does not change from one second to the next."""

HEED_SECONDS = 0.1
"""Between two looks at whether the agent is still there."""

LEAST_PAUSE = 0.5
"""Of a turn's time: where the machine is so late that less would be needed, it is not asleep, and neither is Falco."""

BUSY_SWITCHES = 30_000
"""Switches between tasks a second, on the whole node, above which Falco has enough to read (rest begins). The pacemaker
and a Falco that it keeps awake make at most 8,000 of them."""

CALM_SWITCHES = 15_000
"""Below it rest ends: half, so that a node in between does not go to and fro."""

AWAKE_SECONDS = 600.0
"""How long it does not rest after it was told that its rest was felt."""

STAY_AWAKE = b"\x01"

REPORT = struct.Struct("<BII")
"""Whether it rests, calls a second, millionths of a processor: since the last report."""

PROC_STAT_BYTES = 256 * 1024
"""The line of interrupts is the longest: some 10 KiB a thousand of them."""

PR_SET_PDEATHSIG = 1
"""include/uapi/linux/prctl.h; prctl(2)."""


class Rest:
    """Whether to rest, from the node's count of task switches (`ctxt` in /proc/stat, proc(5))."""

    def __init__(self) -> None:
        self._busy = False
        self._last: tuple[int, float] | None = None
        self._awake_until = 0.0

    def felt(self, mono_s: float) -> None:
        """A rest was felt: none for a while."""
        self._awake_until = mono_s + AWAKE_SECONDS

    def look(self, switches: int | None, mono_s: float) -> bool:
        """Whether to rest until the next look. `switches`: the count of now, None when it can't be told."""
        last, self._last = self._last, (switches, mono_s) if switches is not None else None
        if switches is None or last is None or mono_s <= last[1]:
            self._busy = False
        else:
            rate = (switches - last[0]) / (mono_s - last[1])
            self._busy = rate > (CALM_SWITCHES if self._busy else BUSY_SWITCHES)
        return self._busy and mono_s >= self._awake_until


def switches_in(stat: bytes) -> int | None:
    """The count of task switches in the text of /proc/stat."""
    at = stat.find(b"\nctxt ")
    digits = stat[at + 6 :].partition(b"\n")[0] if at >= 0 else b""
    return int(digits) if digits.isdigit() else None


class Pacing:
    """The loop. `fd`: the socket; `rate`: calls a second."""

    def __init__(self, fd: int, rate: int, adaptive: bool) -> None:
        self._fd = fd
        self._rate = rate
        self._adaptive = adaptive
        self._rest = Rest()
        self._here = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.set_blocking(fd, False)

    def run(self) -> None:
        """Until the agent has gone."""
        rests = self._rest.look(_switches(), time.monotonic())
        while True:
            begun, used = time.monotonic(), time.process_time()
            calls = self._sleep() if rests else self._beat(begun + LOOK_SECONDS)
            now = time.monotonic()
            cpu = (time.process_time() - used) / (now - begun)
            rests = self._adaptive and self._rest.look(_switches(), now)
            if calls < 0 or not self._report(rests, calls / (now - begun), cpu):
                return

    def _beat(self, until: float) -> int:
        """Calls until then (CLOCK_MONOTONIC); how many there were, -1 when the agent has gone.

        A turn is two calls and nothing else: in a process that has just woken every line is dear. What sleeps are late
        by (a wake-up, the timer's slack) is taken off the next ones.
        """
        fchdir, here = os.fchdir, self._here
        sleep = time.sleep  # noqa: TID251 - an even rate is all that is wanted here
        whole = pause = 1 / self._rate
        turns = range(max(1, round(self._rate * HEED_SECONDS)))
        calls, begun = 0, time.monotonic()
        while True:
            for _ in turns:
                fchdir(here)
                sleep(pause)
            calls += len(turns)
            if not self._heeds():
                return -1
            now = time.monotonic()
            if now >= until:
                return calls
            late = (now - begun) / len(turns) - whole
            pause = min(max(pause - late / 2, whole * LEAST_PAUSE), whole)
            begun = now

    def _sleep(self) -> int:
        """LOOK_SECONDS without calls: 0, or -1 when the agent has gone."""
        waits = select.poll()
        waits.register(self._fd, select.POLLIN)
        waits.poll(LOOK_SECONDS * 1000)
        return 0 if self._heeds() else -1

    def _heeds(self) -> bool:
        """Whether the agent is still there; what it says is taken."""
        try:
            said = os.read(self._fd, 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if said == STAY_AWAKE:
            self._rest.felt(time.monotonic())
        return bool(said)

    def _report(self, rests: bool, rate: float, cpu: float) -> bool:
        """Whether there is somebody to report to. A report that nobody takes in time is left out."""
        try:
            os.write(self._fd, REPORT.pack(rests, round(rate), round(cpu * 1e6)))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _switches() -> int | None:
    try:
        fd = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return switches_in(os.read(fd, PROC_STAT_BYTES))
    except OSError:
        return None
    finally:
        os.close(fd)


def main(argv: list[str]) -> int:
    """Drop every right, then beat. Gives the exit code: 0 so ended, 2 wrongly started."""
    # Ctrl-C reaches the whole group, but the agent decides.
    for signo in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    try:
        fd, rate, adaptive = map(int, argv)
        pacing = Pacing(fd, rate, bool(adaptive))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"agent.pacing is started by stoop-agent, with a socket: {error}\n")
        return 2
    fault = privileges.drop()
    if fault:
        sys.stderr.write(f"agent.pacing: {fault}\n")
    # After the rights: a change of user clears it (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    pacing.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
