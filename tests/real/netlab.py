"""A node and pods as far as networks go: namespaces and links that end with the processes that hold them.

The machine's own network is left alone: the "node" is a namespace too, and its holder the reference pid.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest

from agent.node.host import LinuxHost
from agent.node.netns import enter, namespace_at
from agent.node.network import Network
from agent.node.network_plan import Policy
from stoop.network import Applied
from tests.real.conftest import PATIENCE_S, Process, Spawn, await_that

T = TypeVar("T")

NEEDS = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None or shutil.which("ip") is None, reason="needs nft(8) and ip(8)"),
]
"""The marks of every test here. `.ci/run` installs the programs."""

ACT = "0123456789abcdef0123456789abcdef"
TABLE = f"stoop-{ACT}"
UDP = (socket.AF_INET, socket.SOCK_DGRAM)
TCP = (socket.AF_INET, socket.SOCK_STREAM)

SOON_S = 0.3
"""How long what must not come is waited for. On one machine it would be there within a millisecond."""

WORD = b"well"

_numbers = itertools.count(1)


def inside(pid: int, work: Callable[[], T]) -> T:
    """Do something in a process's network namespace: in a thread that ends after it. Sockets stay of it."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with namespace_at(f"/proc/{pid}/ns/net") as namespace:
                enter(namespace.fd)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised anew by the one who waits
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_S)
    if failed:
        raise failed[0]
    return done[0]


def run_inside(pid: int, *argv: str, text: str = "") -> str:
    """A program in a process's network namespace, to its end; its output."""
    with_entry = ("nsenter", "--target", str(pid), "--net", *argv)
    return subprocess.run(with_entry, check=True, timeout=PATIENCE_S, input=text, text=True, capture_output=True).stdout


def rules(pid: int) -> str:
    """All nftables rules of a namespace."""
    return run_inside(pid, "nft", "--stateless", "list", "ruleset")


@dataclass
class Pod:
    """A pod's network: `init` holds it. `address` is its own, `gateway` the node's end of its link."""

    init: Process
    number: int
    address: str
    gateway: str
    host_end: str
    keep: contextlib.ExitStack

    @property
    def pid(self) -> int:
        return self.init.pid

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of the pod's, with a bound on waiting."""
        made = inside(self.pid, lambda: socket.socket(family, kind, protocol))
        made.settimeout(PATIENCE_S)
        return self.keep.enter_context(made)


class Lab:
    """A node's namespace, to which pods are added. All ends with the processes of `spawn`, sockets with `keep`."""

    def __init__(self, spawn: Spawn, keep: contextlib.ExitStack) -> None:
        self._spawn = spawn
        self.keep = keep
        self.node = self.holder()
        run_inside(self.node.pid, "ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self.node.pid

    def holder(self) -> Process:
        """A process that holds a new network namespace."""
        process = self._spawn("unshare", "--net", "sleep", "1000")
        await_that(lambda: netns(process.pid) != netns(0), "a network namespace")
        return process

    def pod(self, bridge: bool = False) -> Pod:
        """A pod with one link to the node: 10.9.N.2 and fd09:N::2, the node's end is 10.9.N.1.

        `bridge`: that end is a port of a bridge, which has the address, as the CNI's bridge plugin does it.
        """
        number = next(_numbers) % 250 + 1
        init = self.holder()
        pod = Pod(init, number, f"10.9.{number}.2", f"10.9.{number}.1", f"veth{number}", self.keep)
        near = f"br{number}" if bridge else pod.host_end
        lines = f"""
link add {pod.host_end} type veth peer name eth0 netns {init.pid}
{f"link add {near} type bridge" if bridge else ""}
{f"link set {pod.host_end} master {near}" if bridge else ""}
address add {pod.gateway}/24 dev {near}
address add fd09:{number:x}::1/64 dev {near} nodad
link set {pod.host_end} up
link set {near} up
"""
        run_inside(self.pid, "ip", "-batch", "-", text=lines)
        lines = f"""
link set lo up
address add {pod.address}/24 dev eth0
address add fd09:{number:x}::2/64 dev eth0 nodad
link set eth0 up
route add default via {pod.gateway}
"""
        run_inside(init.pid, "ip", "-batch", "-", text=lines)
        return pod

    def socket(self, family: int, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
        """A socket of the node's, bound where `address` says (port 0: any), with a bound on waiting."""
        made = self.keep.enter_context(inside(self.pid, lambda: socket.socket(family, kind)))
        made.settimeout(PATIENCE_S)
        if address is not None:
            made.bind(address)
        return made


def netns(pid: int) -> int:
    """The network namespace of a process by inode, 0: of ours."""
    with namespace_at(f"/proc/{pid or 'self'}/ns/net") as namespace:
        return namespace.inode


def arrives(sender: socket.socket, receiver: socket.socket, to: tuple[str, int], word: bytes = b"word") -> bool:
    """Whether a datagram arrives that is sent now. On a link of the same machine it does at once, or not at all."""
    try:
        sender.sendto(word, to)
    except PermissionError:  # dropped at the output hook, and the sender is told
        return False
    receiver.settimeout(SOON_S)
    try:
        return receiver.recv(len(word) + 1) == word
    except TimeoutError:
        return False
    finally:
        receiver.settimeout(PATIENCE_S)


def answers(client: socket.socket, to: tuple[str, int], patience: float = SOON_S) -> bool:
    """Whether a server says its word (`serving`) to this client. An allowed one is to be waited for: `PATIENCE_S`."""
    client.settimeout(patience)
    try:
        client.connect(to)
        return client.recv(10) == WORD
    except (TimeoutError, PermissionError):
        return False
    finally:
        client.close()


@contextlib.contextmanager
def serving(pod: Pod) -> Iterator[tuple[str, int]]:
    """A server in the pod that says one word to each client."""
    listener = pod.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((pod.address, 0))
    listener.listen()
    listener.settimeout(None)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.sendall(WORD)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)


async def put_up(network: Network, host: LinuxHost, pod: Pod, policy: Policy, act: str = ACT) -> Applied:
    """Plan and apply."""
    with host.hold(pod.pid) as held, await network.plan(held, act, policy) as plan:
        return await network.apply(plan)
