"""`python -m agent.courier FD`: takes what was captured to where a rule's output says. It is there only while something
is to be sent.

It gets the stores' credentials and read-only descriptors of bundles over its socket (`agent.letters`), drops every
right once it has read what only root can, and has nothing then but the network. It ends with its socket. One thread for
each thing under way: obstore leaves the interpreter to the others while it sends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading

from agent import privileges
from agent.letters import (
    MAX_LETTER,
    NOT_INSTALLED,
    Fate,
    LetterError,
    Open,
    Send,
    Sent,
    Setup,
    can_send,
    encode,
    to_courier,
)


def main(argv: list[str]) -> int:
    """Read the credentials, drop every right, carry. The exit code: 0 ended with its socket, 2 wrongly started."""
    for signo in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C reaches the whole group, but the agent decides
        signal.signal(signo, signal.SIG_IGN)
    try:
        sock = socket.socket(fileno=int(argv[0]))
        setup = to_courier(sock.recv(MAX_LETTER))
    except (IndexError, ValueError, OSError) as error:
        sys.stderr.write(f"agent.courier is started by stoop-agent, with a socket: {error}\n")
        return 2
    if not isinstance(setup, Setup):
        return 2
    # Everything is imported before the rights go: the program may lie where only root can read.
    from agent.carry import put, stores, sts  # noqa: F401

    if can_send():
        import obstore.exceptions
        import obstore.store  # noqa: F401
    access = stores.Access(setup)
    access.read(os.environ)  # type: ignore[arg-type]  # it is one, all but in name
    faults = privileges.drop()
    sock.send(encode(Open(faults)))
    hidden = (*setup.secrets(), *access.secrets())
    return _carry(sock, access, hidden)


def _carry(sock: socket.socket, access: object, hidden: tuple[str, ...]) -> int:
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, MAX_LETTER, 4, socket.MSG_CMSG_CLOEXEC)
            letter = to_courier(data) if data else None
        except LetterError as error:
            sys.stderr.write(f"agent.courier: the reflex does not speak this protocol: {error}\n")
            return 2
        except OSError:
            return 0
        if not isinstance(letter, Send) or len(fds) != 1:
            return 0
        threading.Thread(target=_one, args=(sock, access, letter, fds[0], hidden), daemon=True).start()


def _one(sock: socket.socket, access: object, send: Send, fd: int, hidden: tuple[str, ...]) -> None:
    from agent.carry import put, stores

    assert isinstance(access, stores.Access)
    try:
        sent = put.put(access, send, fd, hidden) if can_send() else Sent(send.id, Fate.MEND, NOT_INSTALLED)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # the agent has gone
        sock.send(encode(sent))


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nobody waits for what is under way
