"""Peers blocked, and live connections ended."""

from __future__ import annotations

import socket

import pytest

from agent.node.host import LinuxHost
from agent.node.network import Network
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from tests.real.conftest import PATIENCE_S
from tests.real.netlab import (
    NEEDS,
    TCP,
    UDP,
    Lab,
    Pod,
    arrives,
    put_up,
    run_inside,
)

pytestmark = NEEDS

RSTS = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


async def test_a_blocked_peer_is_out_of_reach_and_others_are_not(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    blocked, free = lab.socket(*UDP, (pod.gateway, 0)), lab.socket(*UDP, (pod.gateway, 0))
    inner = pod.socket(*UDP)
    inner.bind((pod.address, 0))
    port = blocked.getsockname()[1]
    applied = await put_up(network, host, pod, BlockPolicy((f"{pod.gateway}/32",), ((port, port),)))
    assert applied.weaker == ()
    assert not arrives(inner, blocked, blocked.getsockname())
    assert not arrives(blocked, inner, inner.getsockname())
    assert arrives(inner, free, free.getsockname())
    run_inside(pod.pid, "nft", "flush", "ruleset")
    assert not arrives(inner, blocked, blocked.getsockname())
    assert (await network.counters(applied.state))["host"]["dropped_out"][0] >= 1
    assert (await network.undo(applied.state)).complete
    assert arrives(inner, blocked, blocked.getsockname())


async def test_ipv6_peers_are_blocked_and_their_fragments(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    peer = f"fd09:{pod.number:x}::1"
    six = (socket.AF_INET6, socket.SOCK_DGRAM)
    blocked, free = lab.socket(*six, (peer, 0)), lab.socket(*six, (peer, 0))
    inner = pod.socket(*six)
    port = blocked.getsockname()[1]
    await put_up(network, host, pod, BlockPolicy((f"{peer}/128",), ((port, port),)))
    assert arrives(inner, free, free.getsockname()[:2])
    run_inside(pod.pid, "nft", "flush", "ruleset")
    assert not arrives(inner, blocked, blocked.getsockname()[:2])
    assert not arrives(inner, free, free.getsockname()[:2], b"x" * 4000)


# ---------------------------------------------------------------- live connections


def connected(lab: Lab, pod: Pod) -> tuple[socket.socket, socket.socket, int]:
    """The pod's end, the node's end, and the node's port of a connection that the pod began."""
    listener = lab.socket(*TCP, (pod.gateway, 0))
    listener.listen()
    client = pod.socket(*TCP)
    client.connect(listener.getsockname())
    server = lab.keep.enter_context(listener.accept()[0])
    server.settimeout(PATIENCE_S)
    port = listener.getsockname()[1]
    listener.close()
    return client, server, port


async def test_live_connections_end_at_once_but_those_within_the_pod(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    client, _, _ = connected(lab, pod)
    listener, local = pod.socket(*TCP), pod.socket(*TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    local.connect(listener.getsockname())
    near = lab.keep.enter_context(listener.accept()[0])
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert applied.ended == 1
    with pytest.raises(RSTS):
        client.recv(1)
    local.sendall(b"on")
    assert near.recv(2) == b"on"


async def test_only_the_blocked_peers_connection_ends(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    cut_client, _, port = connected(lab, pod)
    client, server, _ = connected(lab, pod)
    applied = await put_up(network, host, pod, BlockPolicy((f"{pod.gateway}/32",), ((port, port),)))
    assert applied.ended == 1
    with pytest.raises(RSTS):
        cut_client.recv(1)
    client.sendall(b"on")
    assert server.recv(2) == b"on"
