"""Isolation: until a pod's packets stop, and a hundred pods at once. Needs root, nft(8) and ip(8).

A pod sends a datagram every 0.1 ms (and what the sender's own sleep adds). The node's socket gets each with the time at
which it came (SO_TIMESTAMPNS), so the last one tells when the first was dropped: one interval later. The floor does the
same library calls in this process, at the host's end only, in a thread that has entered the node's namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator

import trio

from agent.node.host import LinuxHost
from agent.node.network import Network, open_network
from agent.node.nft import Nft
from bench.table import Row, ms, percentile
from bench.victims import idle
from stoop.actions.network.isolate import IsolatePolicy
from stoop.actions.network.ruleset import Place, table
from tests.real.netlab import Lab, Pod, inside

ROUNDS = 60
PODS = 100

SO_TIMESTAMPNS = 35
SENDER = """
import select, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        sender.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    except OSError:
        pass
    select.select([], [], [], 0.0001)
"""
QUIET_S = 0.05
"""So long nothing has come: it has stopped."""

FLOW_S = 5.0
FEW, MANY = 20, 1_000_000

AFTERMATH_S = 0.15
"""After an undo the kernel frees what was taken away, and makes the next transaction wait for that, some 25 ms. Acts do
not follow on undos, so the bench waits, for the floor too."""


@contextlib.contextmanager
def lab() -> Iterator[tuple[Lab, Callable[..., subprocess.Popen[str]]]]:
    """A node's namespace; what is started in it ends with the block."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*argv: str, **options: object) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        started.append(process)
        return process

    with contextlib.ExitStack() as keep:
        try:
            yield Lab(spawn, keep), spawn
        finally:
            for process in started:
                process.kill()
                process.wait()


class Stream:
    """A pod that sends without a pause, as the node's socket sees it."""

    def __init__(self, node: Lab, pod: Pod, spawn: Callable[..., subprocess.Popen[str]]) -> None:
        self._socket = node.socket(socket.AF_INET, socket.SOCK_DGRAM, (pod.gateway, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        port = str(self._socket.getsockname()[1])
        spawn("nsenter", "--target", str(pod.pid), "--net", "python3", "-c", SENDER, pod.gateway, port)
        self.flowing()

    def flowing(self) -> None:
        """Return when some datagrams have come just now."""
        self._arrivals(0.0, MANY)
        self._before = self._arrivals(FLOW_S, FEW)
        if len(self._before) < FEW:
            raise RuntimeError("the pod's datagrams do not come")

    def _arrivals(self, patience: float, most: int) -> list[float]:
        """When those came that are here, or come until none has for so long. Seconds since the epoch."""
        found: list[float] = []
        self._socket.settimeout(patience)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while len(found) < most:
                _, extra, _, _ = self._socket.recvmsg(10, 100)
                seconds, nanoseconds = struct.unpack("qq", extra[0][2])
                found.append(seconds + nanoseconds / 1e9)
        return found

    def stopped_after(self, begun: float) -> float:
        """Seconds from `begun` until the first datagram that did not come."""
        came = self._before + self._arrivals(QUIET_S, MANY)
        gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
        return came[-1] + statistics.median(gaps) - begun


async def _times(
    stream: Stream, act: Callable[[], Awaitable[None]], undo: Callable[[], Awaitable[None]]
) -> list[float]:
    found = []
    for _ in range(ROUNDS):
        stream.flowing()
        begun = time.time()
        await act()
        found.append(stream.stopped_after(begun))
        await undo()
        idle(AFTERMATH_S)
    return found


async def _floor(node: Lab, pod: Pod, stream: Stream) -> list[float]:
    policy = IsolatePolicy()
    text = table(Place.HOST_LINK, "0" * 32, policy.rules(Place.HOST_LINK), f'"{pod.host_end}"')

    def run(command: str) -> None:
        with contextlib.closing(Nft()) as nft:
            nft.run(command)

    async def act() -> None:
        inside(node.pid, lambda: run(text))

    async def undo() -> None:
        inside(node.pid, lambda: run("delete table netdev stoop"))

    return await _times(stream, act, undo)


async def _measured(network: Network, host: LinuxHost, pod: Pod, stream: Stream) -> list[float]:
    state: dict[str, object] = {}

    async def act() -> None:
        with host.hold(pod.pid) as held, await network.plan(held, "0" * 32, IsolatePolicy()) as plan:
            state.update((await network.apply(plan)).state)

    async def undo() -> None:
        await network.undo(state)

    return await _times(stream, act, undo)


def first_drop() -> Iterator[Row]:
    """From the call to the first packet that is dropped."""
    host = LinuxHost()
    with lab() as (node, spawn), contextlib.closing(host):
        pod = node.pod()
        stream = Stream(node, pod, spawn)

        async def run() -> tuple[list[float], list[float]]:
            async with open_network(node.pid) as network:
                return await _floor(node, pod, stream), await _measured(network, host, pod, stream)

        floor, measured = trio.run(run)
    over = percentile(measured, 0.5) - percentile(floor, 0.5)
    yield Row(
        "isolate: first packet dropped",
        f"{ms(percentile(floor, 0.5))}, p99 {ms(percentile(floor, 0.99))}",
        f"{ms(percentile(measured, 0.5))}, p99 {ms(percentile(measured, 0.99))}, over {ms(over)}",
        "≤ 1.50 ms over (p50)",
        over <= 0.0015,
        ROUNDS,
    )


def hundred() -> Iterator[Row]:
    """A hundred pods at once, until all are verified."""
    host = LinuxHost()
    with lab() as (node, _), contextlib.closing(host):
        pods = [node.pod() for _ in range(PODS)]

        async def one(network: Network, number: int, states: list[dict[str, object]]) -> None:
            policy = IsolatePolicy()
            with host.hold(pods[number].pid) as held, await network.plan(held, f"{number:032x}", policy) as plan:
                applied = await network.apply(plan)
                if applied.weaker or len(applied.places) != 3:
                    raise RuntimeError(f"pod {number}: {applied}")
                states.append(applied.state)

        async def run() -> list[float]:
            found = []
            async with open_network(node.pid) as network:
                for _ in range(5):
                    states: list[dict[str, object]] = []
                    begun = time.perf_counter()
                    async with trio.open_nursery() as nursery:
                        for number in range(PODS):
                            nursery.start_soon(one, network, number, states)
                    found.append(time.perf_counter() - begun)
                    for state in states:
                        await network.undo(state)
                    idle(AFTERMATH_S)
            return found

        found = trio.run(run)
    worst = max(found)
    yield Row(
        f"isolate: {PODS} pods at once, all verified",
        "-",
        f"{ms(percentile(found, 0.5))}, at most {ms(worst)}",
        "≤ 500 ms",
        percentile(found, 0.5) <= 0.5,
        len(found),
    )
