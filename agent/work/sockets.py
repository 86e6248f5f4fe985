"""/proc/PID/net/{tcp,tcp6,udp,udp6,unix} (proc(5)) and the other ends of unix sockets: who talks to whom. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

TABLES = ("tcp", "tcp6", "udp", "udp6", "unix")

_STATES = {
    1: "established",
    2: "syn-sent",
    3: "syn-received",
    4: "fin-wait-1",
    5: "fin-wait-2",
    6: "time-wait",
    7: "close",
    8: "close-wait",
    9: "last-ack",
    10: "listen",
    11: "closing",
    12: "new-syn-received",
}
# include/net/tcp_states.h

_UNIX_TYPES = {1: "stream", 2: "datagram", 5: "seqpacket"}
_ORDER = -1 if sys.byteorder == "little" else 1

_LISTENING = 0x10000
# __SO_ACCEPTCON in the flags of a unix socket.


def sockets(
    tables: Mapping[str, bytes],
    holders: Mapping[int, list[tuple[int, int]]],
    unix_peers: Mapping[int, int],
    unix_names: Mapping[int, str],
) -> list[dict[str, Any]]:
    """The sockets that `holders` (inode → (pid, descriptor)) has, of one network namespace.

    `peer` is the inode of the other end, with `peer_held_by` if it is held too: of TCP and UDP where it is one of the
    namespace's own, of unix sockets wherever it is (`unix_peers`). `peer_path`: its name (`unix_names`).
    """
    found = []
    for kind in TABLES[:4]:
        rows = list(_inet(tables.get(kind, b"").split(b"\n")[1:]))
        by_ends = {(words[1], words[2]): int(words[9]) for words in rows}
        for words in rows:
            if int(words[9]) not in holders:
                continue
            try:
                row = _told(kind, words)
            except ValueError:
                continue  # no line as the kernel writes them
            peer = by_ends.get((words[2], words[1]), 0)
            if peer and row["state"] != "listen":
                row["peer"] = peer
                if peer in holders:
                    row["peer_held_by"] = holders[peer]
            found.append(row)
    for row in _unix(tables.get("unix", b"").split(b"\n")[1:], holders):
        peer = unix_peers.get(row["inode"], 0)
        if peer:
            row["peer"] = peer
            if peer in holders:
                row["peer_held_by"] = holders[peer]
            if peer in unix_names:
                row["peer_path"] = unix_names[peer]
        found.append(row)
    for row in found:
        row["held_by"] = holders[row["inode"]]
    return found


def _inet(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The words of each line that is one of such a table."""
    for line in lines:
        words = line.split(None, 10)
        if len(words) >= 10 and words[9].isdigit():
            yield words


def _told(kind: str, words: list[bytes]) -> dict[str, Any]:
    return {
        "kind": kind,
        "inode": int(words[9]),
        "state": _STATES.get(int(words[3], 16), "?") if kind.startswith("tcp") else "",
        "local": address(words[1]),
        "remote": address(words[2]),
        "uid": int(words[7]),
    }


def _unix(lines: Iterable[bytes], wanted: Container[int]) -> Iterator[dict[str, Any]]:
    for line in lines:
        words = line.split(None, 7)
        if len(words) < 7:
            continue
        try:
            inode, flags, kind, state = int(words[6]), int(words[3], 16), int(words[4], 16), int(words[5], 16)
        except ValueError:
            continue
        if inode in wanted:
            yield {
                "kind": "unix",
                "inode": inode,
                "type": _UNIX_TYPES.get(kind, "?"),
                "state": "listen" if flags & _LISTENING else "connected" if state == 3 else "unconnected",
                "path": words[7].decode("utf-8", "backslashreplace") if len(words) > 7 else "",
            }


def address(word: bytes) -> str:
    """`0100007F:1F90` → `127.0.0.1:8080`: words of 4 bytes as the machine keeps them, then the port.

    Raises ValueError for what is none.
    """
    digits, _, port = word.partition(b":")
    raw = bytes.fromhex(digits.decode("ascii", "replace"))
    if len(raw) not in (4, 16):
        raise ValueError(word)
    # The kernel prints each word as a number; this machine's order of bytes is the one it was kept in.
    swapped = b"".join(raw[at : at + 4][::_ORDER] for at in range(0, len(raw), 4))
    host = str(ipaddress.ip_address(swapped))
    return f"[{host}]:{int(port, 16)}" if len(raw) == 16 else f"{host}:{int(port, 16)}"
