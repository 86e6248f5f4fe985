"""The process that does jobs in network namespaces: how it begins, refuses and ends, and what it says it can't do."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.node.hands import MAX_REPLY_BYTES, open_hands
from agent.node.jobs import Probe, Read, Reply, encode, read_reply
from stoop.errors import ActFailed
from tests.real.conftest import PATIENCE_S, Spawn, await_that

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes rights, owners or mounts")

HAND = (sys.executable, "-P", "-m", "agent.node.hand")

ASK = """
import trio
from agent.node.hands import open_hands
async def main():
    async with open_hands() as hands:
        print(hands.unavailable or "available", flush=True)
trio.run(main)
"""

Started = tuple[subprocess.Popen[str], socket.socket]


@pytest.fixture
def hand(spawn: Spawn) -> Iterator[Started]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    with ours:
        with theirs:
            process = spawn(*HAND, str(theirs.fileno()), pass_fds=(theirs.fileno(),))
        yield process, ours


def ask(hand: socket.socket, data: bytes) -> Reply:
    """Send it with a socket for the reply, and wait for that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            socket.send_fds(hand, [data], [theirs.fileno()])
        ours.settimeout(PATIENCE_S)
        return read_reply(ours.recv(MAX_REPLY_BYTES))


@pytest.mark.parametrize("argv", [(), ("x",), ("1234",)])
def test_it_is_started_with_a_socket_only(argv: tuple[str, ...]) -> None:
    done = subprocess.run([*HAND, *argv], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.startswith("agent.node.hand is started by stoop-agent, with a socket: ")


def test_it_ends_when_the_agent_does(hand: Started) -> None:
    process, ours = hand
    ours.close()
    assert process.wait(PATIENCE_S) == 0


def test_signals_meant_for_the_group_do_not_end_it(hand: Started) -> None:
    process, ours = hand
    ask(ours, encode(Probe()))  # it is up
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(signo)
    assert ask(ours, b"x").fault.startswith("the agent sent something that is no job")


@pytest.mark.parametrize("data", [b"x", b"\xc1", encode(Read(()))[:-1], encode({"type": "format the disk"})])
def test_what_is_no_job_is_refused_and_the_next_one_done(hand: Started, data: bytes) -> None:
    _, ours = hand
    assert ask(ours, data).fault.startswith("the agent sent something that is no job")
    assert "no job" not in ask(ours, encode(Probe())).fault


def test_a_job_without_a_socket_for_its_reply_is_left(hand: Started) -> None:
    _, ours = hand
    ours.send(encode(Probe()))
    assert ask(ours, b"x").fault


def test_descriptors_do_not_stay(hand: Started) -> None:
    process, ours = hand
    ask(ours, encode(Probe()))
    before = len(os.listdir(f"/proc/{process.pid}/fd"))
    for _ in range(50):
        ask(ours, encode(Probe()))
        ask(ours, b"x")
    # A context is closed after its answer.
    await_that(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= before, "as few descriptors as before")


async def test_one_that_was_killed_is_replaced() -> None:
    async with open_hands() as hands:
        for _ in range(3):
            pid = hands.pid
            os.kill(pid, signal.SIGKILL)
            assert isinstance(await hands.do(Probe()), Reply)
            assert hands.pid != pid


async def test_a_namespace_that_is_none_is_a_fault(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        async with open_hands() as hands:
            reply = await hands.do(Read(()), fd)
    finally:
        os.close(fd)
    assert reply.fault.startswith("a network namespace can't be entered")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_root
async def test_it_keeps_two_rights_only() -> None:
    async with open_hands() as hands:
        held = status(hands.pid)
    assert int(held["CapEff"], 16) == int(held["CapPrm"], 16) == 1 << 12 | 1 << 21
    assert held["NoNewPrivs"] == "1"


async def test_closed_it_takes_no_more() -> None:
    async with open_hands() as hands:
        pass
    assert hands.pid == 0
    await hands.do(Probe())  # it starts anew
    assert hands.pid != 0
    await hands.close()


async def test_without_a_socket_nothing_is_done() -> None:
    async with open_hands() as hands:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(ActFailed, match="no socket can be made"):
                await hands.do(Probe())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- what this node can't do


def told(*prefix: str) -> str:
    argv = [*prefix, sys.executable, "-c", ASK]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()


@needs_root
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft(8) and ip(8)")
def test_with_every_right_it_is_available() -> None:
    assert told() == "available"


@needs_root
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft(8) and ip(8)")
@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("net_admin", "Operation not permitted (CAP_NET_ADMIN is needed)"),
        ("sys_admin", "no network namespace can be made: Operation not permitted (CAP_SYS_ADMIN is needed)"),
    ],
)
def test_a_missing_right_is_named(missing: str, reason: str) -> None:
    assert told("setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}").endswith(reason)


@needs_root
def test_a_missing_library_is_named() -> None:
    listed = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    path = next((line.split()[-1] for line in listed.splitlines() if "libnftables.so.1 " in line), "")
    if not path:
        assert "can't be loaded" in told()
        return
    hide = f'mount --bind /dev/null {Path(path).resolve()} && exec "$@"'
    assert told("unshare", "--mount", "sh", "-c", hide, "sh").startswith("libnftables.so.1 can't be loaded: ")
