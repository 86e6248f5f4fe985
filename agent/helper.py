"""`python -m agent.helper [FD]`: the unprivileged helper, started by the reflex with one end of a socketpair (fd 3).

It ends by itself when the reflex closes the socket. Exit codes: 0 so ended, 1 the peer is no reflex, 2 wrongly started.
"""

from __future__ import annotations

import signal
import socket
import sys

DEFAULT_FD = 3


def main(argv: list[str]) -> int:
    """Drop every right, then serve."""
    # First of all: Ctrl-C and a group's SIGTERM reach the helper too, but the reflex decides when it ends, so that the
    # last acts are logged.
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    try:
        sock = socket.socket(fileno=int(argv[0]) if argv else DEFAULT_FD)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"agent.helper is started by stoop-agent, with a socket: {error}\n")
        return 2
    # Everything is imported before the rights go: the program may lie where only root can read.
    from agent import helping, privileges
    from stoop import log

    log.configure()
    fault = privileges.drop()
    return helping.serve(sock, (fault,) if fault else ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
