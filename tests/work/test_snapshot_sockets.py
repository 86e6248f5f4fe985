"""Sockets in a snapshot: who talks to whom."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.node.host import LinuxHost
from agent.work import unixpeers
from tests.real.conftest import Spawn, line
from tests.work.conftest import Bench, whom
from tests.work.snapshots import missing, taken

# A server and its client in two processes, over each protocol; tells the two ports.
TALK = """
import os, socket, sys
path = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
six = socket.create_server(("::1", 0), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(path.encode() + b"\\xff\\n")
unix.listen()
if os.fork() == 0:
    one = socket.create_connection(listener.getsockname())
    two = socket.create_connection(six.getsockname()[:2])
    for each in (listener, six, udp, unix):
        each.close()
    os.write(1, b"%d\\n" % os.getpid())
    sys.stdin.read()
    os._exit(0)
kept = listener.accept(), six.accept()
os.write(1, b"%d %d %d\\n" % (listener.getsockname()[1], six.getsockname()[1], udp.getsockname()[1]))
sys.stdin.read()
"""


async def test_sockets_with_both_ends(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    server = spawn(sys.executable, "-c", TALK, str(tmp_path / "s"))
    lines = [line(server), line(server)]
    client = int(next(each for each in lines if " " not in each))
    four, six, udp = map(int, next(each for each in lines if " " in each).split())
    _, parts = await taken(bench, bench.snapshot(whom(server.pid, host), whom(client, host)))
    ((network),) = json.loads(parts["sockets.json"])
    assert network["network"] == os.readlink(f"/proc/{server.pid}/ns/net")
    found = network["sockets"]

    def of(**wanted: object) -> list[dict[str, Any]]:
        return [each for each in found if all(each.get(key) == value for key, value in wanted.items())]

    (listening,) = of(kind="tcp", state="listen", local=f"127.0.0.1:{four}")
    assert [pid for pid, _ in listening["held_by"]] == [server.pid]
    (accepted,) = of(kind="tcp", state="established", local=f"127.0.0.1:{four}")
    assert [pid for pid, _ in accepted["held_by"]] == [server.pid]
    assert [pid for pid, _ in accepted["peer_held_by"]] == [client]
    (connected,) = of(kind="tcp", state="established", remote=f"127.0.0.1:{four}")
    assert (connected["inode"], connected["peer"]) == (accepted["peer"], accepted["inode"])
    assert len(of(kind="tcp6", state="established", local=f"[::1]:{six}")) == 1
    assert len(of(kind="udp", local=f"127.0.0.1:{udp}")) == 1
    (unix,) = of(kind="unix", state="listen")
    assert unix["path"].startswith(str(tmp_path / "s"))
    assert unix["type"] == "stream"


# In a network namespace of its own, in two processes: stream and datagram sockets with a path and with an abstract
# name, a pair, and two that are connected with sockets of the node. Tells its child's pid, and the descriptors.
UNIX = """
import ctypes, os, socket, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
    sys.exit("unshare failed")
paths = [sys.argv[1].encode(), b"\\0hidden\\xff"]
listeners = [socket.socket(socket.AF_UNIX) for _ in paths]
for listener, path in zip(listeners, paths):
    listener.bind(path)
    listener.listen()
named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
named.bind(b"\\0datagrams")
ours, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    os.dup2(theirs.fileno(), 100)
    for number, path in enumerate(paths):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        os.dup2(one.fileno(), 101 + number)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(b"\\0datagrams")
    os.dup2(sender.fileno(), 103)
    os.write(1, b"ready\\n")
    sys.stdin.read()
    os._exit(0)
theirs.close()
for number, listener in enumerate(listeners):
    accepted, _ = listener.accept()
    os.dup2(accepted.fileno(), 101 + number)
os.dup2(ours.fileno(), 100)
os.dup2(named.fileno(), 103)
node = socket.socket(socket.AF_UNIX)
node.connect(sys.argv[2].encode())
os.dup2(node.fileno(), 104)
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.connect(sys.argv[2].encode() + b"-log")
os.dup2(log.fileno(), 105)
os.write(1, b"%d\\n" % child)
sys.stdin.read()
"""


@pytest.mark.root
async def test_peers_of_unix_sockets(bench: Bench, spawn: Spawn, host: LinuxHost, tmp_path: Path) -> None:
    """In another network namespace than ours, and over its border; our own is left as it was."""
    with socket.socket(socket.AF_UNIX) as node, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        node.bind(str(tmp_path / "node"))
        log.bind(str(tmp_path / "node-log"))
        node.listen()
        parent = spawn(sys.executable, "-c", UNIX, str(tmp_path / "theirs"), str(tmp_path / "node"))
        lines = [line(parent), line(parent)]
        child = int(next(each for each in lines if each.isdigit()))
        accepted, _ = node.accept()
        with accepted:
            before = os.readlink("/proc/self/ns/net")
            manifest, parts = await taken(bench, bench.snapshot(whom(parent.pid, host), whom(child, host)))
            others = [os.fstat(each.fileno()).st_ino for each in (accepted, log)]
            ours = os.readlink(f"/proc/{parent.pid}/ns/net")
    assert os.readlink("/proc/self/ns/net") == before != ours
    assert missing(manifest) == {}
    ((network),) = json.loads(parts["sockets.json"])
    assert network["network"] == ours
    found = {tuple(holder): each for each in network["sockets"] for holder in each["held_by"]}
    for number in (100, 101, 102, 103):
        server, client = found[parent.pid, number], found[child, number]
        assert client["peer"] == server["inode"]
        assert [parent.pid, number] in client["peer_held_by"]
        if number != 103:  # one that is bound has no peer, whoever sends to it
            assert server["peer"] == client["inode"]
            assert [child, number] in server["peer_held_by"]
    over = [found[parent.pid, number] for number in (104, 105)]
    assert [each["peer"] for each in over] == others
    assert [each["peer_path"] for each in over] == [str(tmp_path / "node"), str(tmp_path / "node-log")]
    assert not any("peer_held_by" in each for each in over)
    assert [found[child, number]["peer_path"] for number in (102, 103)] == ["@hidden\\xff", "@datagrams"]


# So many pairs of sockets.
PAIRS = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = [socket.socketpair() for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
"""


async def test_more_unix_sockets_than_are_told(spawn: Spawn) -> None:
    wanted = unixpeers.MAX_CONNECTED + 16
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < wanted + 64:
        pytest.skip(f"no process may have {wanted} descriptors here (RLIMIT_NOFILE)")
    target = spawn(sys.executable, "-c", PAIRS, str(wanted // 2))
    assert line(target) == "ready"
    namespace = os.open(f"/proc/{target.pid}/ns/net", os.O_RDONLY)
    try:
        assert unixpeers.connected(namespace).cut
    finally:
        os.close(namespace)
