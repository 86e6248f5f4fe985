"""`python -m agent.helper [FD [EXTRA…]]`: the unprivileged helper, started by the reflex with one end of a
socketpair (fd 3). EXTRA: an extra of the distribution whose modules it will need (`pods`).

It ends by itself when the reflex closes the socket. Exit codes: 0 so ended, 1 the peer is no reflex, 2 wrongly started.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys

DEFAULT_FD = 3

WARM_UP = (
    """
- rule: all is well
  match: {rules: [A], output_fields: ["a=b"], priority: ">=Warning", tags: [t], source: syscall}
  actions: [{action: kill, actionner: "process:kill", parameters: {signal: TERM}}]
""",
    "- {rule: nothing, matches: 2020-01-01, actions: [{action: a, actionner: 'kubernetes:labelize'}]}",
    "- [",
)


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
    from agent import loading  # isort: skip  # noqa: F401 - before trio
    from agent import helping, privileges
    from stoop import log

    if "pods" in argv[1:]:
        from agent.pods import source, warm  # noqa: F401

        warm.warm_up()
    log.configure()
    _warm_up()
    fault = privileges.drop()
    return helping.serve(sock, (fault,) if fault else ())


def _warm_up() -> None:
    """Load each kind of rules file once, good and bad: what the standard library imports only then (codecs, difflib) is
    there before the rights go."""
    from stoop import rules
    from stoop.catalogue import CATALOGUE
    from stoop.errors import RulesError

    for text in WARM_UP:
        for encoding in ("utf-8-sig", "utf-16"):
            with contextlib.suppress(RulesError):
                rules.load((("warm-up", text.encode(encoding)),), CATALOGUE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
