"""Pods cut off, by real nftables in real namespaces. What gets out is seen by who would get it."""

from __future__ import annotations

import ctypes
import socket
from typing import Any

import pytest
import trio

from agent.node.host import LinuxHost
from agent.node.network import Network
from stoop.actions.network.isolate import IsolatePolicy
from tests.real.conftest import PATIENCE_S
from tests.real.netlab import (
    NEEDS,
    TCP,
    UDP,
    Lab,
    Pod,
    answers,
    arrives,
    inside,
    put_up,
    rules,
    run_inside,
    serving,
)

pytestmark = NEEDS


async def test_an_isolated_pod_reaches_nothing_and_nothing_reaches_it_until_it_is_given_back(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    node, inner = lab.socket(*UDP, (pod.gateway, 0)), pod.socket(*UDP)
    inner.bind((pod.address, 0))
    out, into = node.getsockname(), inner.getsockname()
    assert arrives(inner, node, out)
    assert arrives(node, inner, into)
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert applied.weaker == ()
    assert sorted(applied.places) == ["host netdev", "pod inet", "pod netdev"]
    assert not arrives(inner, node, out)
    assert not arrives(node, inner, into)
    seen = await network.counters(applied.state)
    assert seen["pod"]["dropped_out"][0] >= 1
    assert seen["host"]["dropped_in"][0] >= 1
    report = await network.undo(applied.state)
    assert sorted(report.removed) == ["host netdev", "pod inet", "pod netdev"]
    assert (report.changed, report.missing, report.gone, report.failed) == ((), (), (), ())
    assert report.counters["host"]["dropped_in"][0] >= 1
    assert arrives(inner, node, out)
    assert arrives(node, inner, into)
    assert rules(lab.pid) == rules(pod.pid) == ""


async def test_ipv6_is_dropped_too(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    node = lab.socket(socket.AF_INET6, socket.SOCK_DGRAM, (f"fd09:{pod.number:x}::1", 0))
    inner = pod.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    assert arrives(inner, node, node.getsockname()[:2])
    await put_up(network, host, pod, IsolatePolicy())
    assert not arrives(inner, node, node.getsockname()[:2])


async def test_the_pods_own_loopback_goes_on(pod: Pod, network: Network, host: LinuxHost) -> None:
    receiver, sender = pod.socket(*UDP), pod.socket(*UDP)
    receiver.bind(("127.0.0.1", 0))
    await put_up(network, host, pod, IsolatePolicy())
    assert arrives(sender, receiver, receiver.getsockname())


async def test_another_pod_does_not_notice(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    other = lab.pod()
    node, inner = lab.socket(*UDP, (other.gateway, 0)), other.socket(*UDP)
    await put_up(network, host, pod, IsolatePolicy())
    assert arrives(inner, node, node.getsockname())
    assert rules(other.pid) == ""


# ---------------------------------------------------------------- what stays allowed


async def test_allowed_networks_stay_reachable_both_ways(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    run_inside(lab.pid, "ip", "address", "add", "10.99.0.1/32", "dev", "lo")
    other, node = lab.socket(*UDP, ("10.99.0.1", 0)), lab.socket(*UDP, (pod.gateway, 0))
    inner = pod.socket(*UDP)
    inner.bind((pod.address, 0))
    applied = await put_up(network, host, pod, IsolatePolicy(allow=("10.99.0.0/24",)))
    run_inside(pod.pid, "ip", "neigh", "flush", "all")  # who has the gateway must be asked anew
    assert arrives(inner, other, other.getsockname())
    assert arrives(other, inner, inner.getsockname())
    assert not arrives(inner, node, node.getsockname())
    seen = await network.counters(applied.state)
    assert seen["host"]["allowed_out"][0] == 1
    assert seen["host"]["allowed_in"][0] == 1


@pytest.mark.parametrize("policy", [IsolatePolicy(), IsolatePolicy(dns=("10.99.0.53/32",))])
async def test_dns_is_off_unless_a_resolver_is_named(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, policy: IsolatePolicy
) -> None:
    run_inside(lab.pid, "ip", "address", "add", "10.99.0.53/32", "dev", "lo")
    resolver, beside = lab.socket(*UDP, ("10.99.0.53", 53)), lab.socket(*UDP, ("10.99.0.53", 54))
    await put_up(network, host, pod, policy)
    assert arrives(pod.socket(*UDP), resolver, resolver.getsockname()) == bool(policy.dns)
    assert not arrives(pod.socket(*UDP), beside, beside.getsockname())


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
async def test_probes_of_the_node_are_answered_only_if_allowed(
    lab: Lab, network: Network, host: LinuxHost, bridge: bool
) -> None:
    pod = lab.pod(bridge)
    with serving(pod) as address:
        assert answers(lab.socket(*TCP), address, PATIENCE_S)
        applied = await put_up(network, host, pod, IsolatePolicy())
        assert applied.weaker == ()
        assert not answers(lab.socket(*TCP), address)
        assert (await network.undo(applied.state)).complete
        await put_up(network, host, pod, IsolatePolicy(probes=True))
        assert answers(lab.socket(*TCP), address, PATIENCE_S)


def nobodys_socket() -> socket.socket:
    """In a thread that ends after it: setfsuid(2) is of one thread."""
    ctypes.CDLL(None).setfsuid(65534)
    return socket.socket(*TCP)


async def test_only_root_on_the_node_counts_as_a_probe(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    with serving(pod) as address:
        await put_up(network, host, pod, IsolatePolicy(probes=True))
        assert not answers(lab.keep.enter_context(inside(lab.pid, nobodys_socket)), address)
        assert answers(lab.socket(*TCP), address, PATIENCE_S)


async def test_where_probes_may_come_in_the_pod_still_begins_nothing(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    listener = lab.socket(*TCP, (pod.gateway, 0))
    listener.listen()
    await put_up(network, host, pod, IsolatePolicy(probes=True))
    client = pod.socket(*TCP)
    client.settimeout(0.3)
    with pytest.raises((TimeoutError, PermissionError)):
        client.connect(listener.getsockname())
    run_inside(pod.pid, "nft", "flush", "ruleset")
    client = pod.socket(*TCP)
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.connect(listener.getsockname())


async def test_a_client_elsewhere_with_the_nodes_address_is_no_probe(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    """What comes in through the node (a NodePort) gets the node's address on its way."""
    other = lab.pod()
    inside(lab.pid, lambda: _write("/proc/sys/net/ipv4/ip_forward", "1"))
    masquerade = "table ip lab { chain c { type nat hook postrouting priority 100; masquerade;\n}\n}"
    run_inside(lab.pid, "nft", "-f", "-", text=masquerade)
    with serving(pod) as address:
        assert answers(other.socket(*TCP), address, PATIENCE_S)
        await put_up(network, host, pod, IsolatePolicy(probes=True))
        assert not answers(other.socket(*TCP), address)
        assert answers(lab.socket(*TCP), address, PATIENCE_S)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


async def test_a_hundred_pods_at_once(lab: Lab, network: Network, host: LinuxHost) -> None:
    pods = [lab.pod() for _ in range(20)]
    states: dict[str, Any] = {}

    async def one(number: int, pod: Pod) -> None:
        states[pod.host_end] = (await put_up(network, host, pod, IsolatePolicy(), f"{number:032x}")).state

    async with trio.open_nursery() as nursery:
        for number, pod in enumerate(pods):
            nursery.start_soon(one, number, pod)
    assert all(rules(pod.pid).count("policy drop") == 5 for pod in pods)
    assert rules(lab.pid).count("policy drop") == 40
    async with trio.open_nursery() as nursery:
        for state in states.values():
            nursery.start_soon(network.undo, state)
    assert rules(lab.pid) == ""
