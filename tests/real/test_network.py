"""Pods cut off and given back, by real nftables in real namespaces. What gets out is seen by who would get it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from agent.node.host import LinuxHost
from agent.node.network import Applied, Network, Policy, UndoReport, open_network
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from stoop.errors import ActFailed, TargetGone, TargetRefused
from tests.real.conftest import PATIENCE_S, Spawn, await_that, say
from tests.real.netlab import Lab, Pod, answers, arrives, inside, rules, run_inside, serving

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None or shutil.which("ip") is None, reason="needs nft(8) and ip(8)"),
]

ACT = "0123456789abcdef0123456789abcdef"
TABLE = f"stoop-{ACT}"
UDP = (socket.AF_INET, socket.SOCK_DGRAM)
TCP = (socket.AF_INET, socket.SOCK_STREAM)
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
PACKET_QDISC_BYPASS, SOL_PACKET = 20, 263
RSTS = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


@pytest.fixture
def lab(spawn: Spawn) -> Iterator[Lab]:
    with contextlib.ExitStack() as keep:
        yield Lab(spawn, keep)


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pod()


@pytest.fixture
async def network(lab: Lab) -> AsyncIterator[Network]:
    async with open_network(lab.pid) as made:
        assert made.unavailable == ""
        yield made


async def put_up(network: Network, host: LinuxHost, pod: Pod, policy: Policy, act: str = ACT) -> Applied:
    with host.hold(pod.pid) as held:
        plan = await network.plan(held, act, policy)
        with plan:
            return await network.apply(plan)


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


# ---------------------------------------------------------------- a hostile pod


def frame(pod: Pod, lab: Lab, port: int, word: bytes) -> bytes:
    """A whole Ethernet frame with a datagram to the node, as a raw sender makes it."""
    mac = [bytes.fromhex(_mac(pid, name)) for pid, name in ((lab.pid, pod.host_end), (pod.pid, "eth0"))]
    payload = struct.pack("!HHHH", 4000, port, 8 + len(word), 0) + word
    addresses = socket.inet_aton(pod.address) + socket.inet_aton(pod.gateway)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return mac[0] + mac[1] + struct.pack("!H", ETH_P_IP) + head + payload


def _mac(pid: int, link: str) -> str:
    return run_inside(pid, "ip", "-brief", "link", "show", "dev", link).split()[2].replace(":", "")


@pytest.mark.parametrize("bypass", [0, 1])
async def test_raw_frames_do_not_get_out_even_after_a_flush_from_inside(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, bypass: int
) -> None:
    node = lab.socket(*UDP, (pod.gateway, 0))
    raw = pod.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.bind(("eth0", 0))
    raw.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, bypass)

    def gets_out(word: bytes) -> bool:
        with contextlib.suppress(OSError):  # ENOBUFS, EPERM: the egress hook tells the sender
            raw.send(frame(pod, lab, node.getsockname()[1], word))
        node.settimeout(0.2)
        try:
            return node.recv(100) == word
        except TimeoutError:
            return False

    assert gets_out(b"before")
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert not gets_out(b"isolated")
    run_inside(pod.pid, "nft", "flush", "ruleset")
    assert rules(pod.pid) == ""
    before = (await network.counters(applied.state))["host"]["dropped_out"][0]
    assert not gets_out(b"flushed")
    assert (await network.counters(applied.state))["host"]["dropped_out"][0] > before
    report = await network.undo(applied.state)
    assert report.removed == ("host netdev",)
    assert sorted(report.missing) == ["pod inet", "pod netdev"]
    assert report.complete
    assert gets_out(b"given back")


async def test_raw_ip_sockets_do_not_get_out(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    receiver = lab.keep.enter_context(inside(lab.pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)))
    receiver.settimeout(0.2)
    raw = pod.socket(socket.AF_INET, socket.SOCK_RAW, 253)
    raw.sendto(b"before", (pod.gateway, 0))
    assert receiver.recv(100).endswith(b"before")
    await put_up(network, host, pod, IsolatePolicy())
    run_inside(pod.pid, "nft", "flush", "ruleset")
    raw.sendto(b"after", (pod.gateway, 0))
    with pytest.raises(TimeoutError):
        receiver.recv(100)


async def test_a_link_renamed_like_a_rule_is_not_named_in_one(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    for line in ("link set eth0 down", 'link set eth0 name a"};drop', 'link set a"};drop up'):
        run_inside(pod.pid, "ip", *line.split(" "))
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert sorted(applied.places) == ["host netdev", "pod inet"]
    assert applied.weaker == ("1 of the pod's links have names that no rule can hold",)
    assert (await network.undo(applied.state)).complete


async def test_a_pod_cannot_have_another_pods_link_closed(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    """It makes a pair of its own whose other end has the number of another pod's link on the host."""
    victim = lab.pod()
    number = inside(lab.pid, lambda: socket.if_nametoindex(victim.host_end))
    run_inside(pod.pid, "ip", "link", "add", "trap", "type", "veth", "peer", "name", "end", "index", str(number))
    with host.hold(pod.pid) as held, await network.plan(held, ACT, IsolatePolicy()) as plan:
        assert [end.host for end in plan.ends] == [pod.host_end]


async def test_a_pod_with_very_many_links_is_closed_at_the_host(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    lines = "".join(f"link add br{number} type bridge\n" for number in range(70))
    run_inside(pod.pid, "ip", "-batch", "-", text=lines)
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert sorted(applied.places) == ["host netdev", "pod inet"]
    assert applied.weaker == ("the pod has more than 64 links: none is closed at its own end",)


async def test_tables_of_our_name_in_the_pod_are_replaced(pod: Pod, network: Network, host: LinuxHost) -> None:
    run_inside(pod.pid, "nft", f"table inet {TABLE} {{ chain out-{ACT} {{ type filter hook output priority 0; }}\n}}")
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert applied.again
    assert "policy drop" in rules(pod.pid)
    assert "priority 0" not in rules(pod.pid)


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


async def test_probes_of_the_node_are_answered_only_if_allowed(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    with serving(pod) as address:
        assert answers(lab.socket(*TCP), address)
        applied = await put_up(network, host, pod, IsolatePolicy())
        assert not answers(lab.socket(*TCP), address)
        assert (await network.undo(applied.state)).complete
        await put_up(network, host, pod, IsolatePolicy(probes=True))
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


# ---------------------------------------------------------------- block


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


# ---------------------------------------------------------------- whom


async def test_the_nodes_own_network_is_refused(lab: Lab, network: Network, host: LinuxHost) -> None:
    with host.hold(lab.pid) as held, pytest.raises(TargetRefused, match="hostNetwork"):
        await network.plan(held, ACT, IsolatePolicy())
    assert rules(lab.pid) == ""


async def test_another_pods_network_is_refused(pod: Pod, network: Network, host: LinuxHost) -> None:
    with host.hold(pod.pid) as held:
        with await network.plan(held, ACT, IsolatePolicy()) as plan:
            inode = plan.namespace.inode
        with pytest.raises(TargetRefused, match="that of pod b"):
            await network.plan(held, ACT, IsolatePolicy(), {inode: "pod b"})


async def test_a_process_that_has_exited_is_gone(pod: Pod, network: Network, host: LinuxHost) -> None:
    with host.hold(pod.pid) as held:
        pod.init.kill()
        pod.init.wait(PATIENCE_S)
        with pytest.raises(TargetGone):
            await network.plan(held, ACT, IsolatePolicy())


async def test_a_plan_changes_nothing(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    with host.hold(pod.pid) as held, await network.plan(held, ACT, IsolatePolicy()) as plan:
        assert plan.state["act"] == ACT
    assert rules(lab.pid) == rules(pod.pid) == ""


async def test_a_link_without_an_end_on_the_host_makes_it_weaker(lab: Lab, network: Network, host: LinuxHost) -> None:
    carrier = lab.pod()
    bare = lab.holder()
    line = ("ip", "link", "add", "link", carrier.host_end, "name", "net1", "netns", str(bare.pid), "type", "macvlan")
    run_inside(lab.pid, *line)
    pod = Pod(bare, 0, "", "", "", lab.keep)
    applied = await put_up(network, host, pod, IsolatePolicy(probes=True))
    assert sorted(applied.places) == ["pod inet", "pod netdev"]
    assert "net1 (macvlan) has no end on the host" in applied.weaker[0]
    assert "probes are not let in" in applied.weaker[1]
    assert (await network.undo(applied.state)).complete
    assert rules(bare.pid) == ""


# ---------------------------------------------------------------- twice, changed, gone


async def test_twice_is_harmless(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    first = await put_up(network, host, pod, IsolatePolicy())
    before = rules(lab.pid), rules(pod.pid)
    second = await put_up(network, host, pod, IsolatePolicy())
    assert (rules(lab.pid), rules(pod.pid)) == before
    assert (first.again, second.again) == (False, True)
    assert first.state == second.state
    assert len((await network.undo(first.state)).removed) == 3
    report = await network.undo(second.state)
    assert report.removed == ()
    assert len(report.missing) == 3
    assert report.complete


async def test_two_acts_on_one_pod_are_taken_back_one_by_one(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    node, inner = lab.socket(*UDP, (pod.gateway, 0)), pod.socket(*UDP)
    port = node.getsockname()[1]
    blocked = await put_up(network, host, pod, BlockPolicy(ports=((port, port),)), "a" * 32)
    isolated = await put_up(network, host, pod, IsolatePolicy(), "b" * 32)
    assert (await network.undo(isolated.state)).complete
    assert not arrives(inner, node, node.getsockname())
    assert (await network.undo(blocked.state)).complete
    assert arrives(inner, node, node.getsockname())


async def test_a_table_that_somebody_changed_is_taken_away_and_told(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    applied = await put_up(network, host, pod, IsolatePolicy())
    run_inside(pod.pid, "nft", "insert", "rule", "inet", TABLE, f"out-{ACT}", "accept")
    run_inside(lab.pid, "nft", "table inet theirs { chain c { }\n}")
    report = await network.undo(applied.state)
    assert report.changed == ("pod inet",)
    assert len(report.removed) == 3
    assert "theirs" in rules(lab.pid)


async def test_what_was_planned_only_can_be_undone(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    with host.hold(pod.pid) as held, await network.plan(held, ACT, IsolatePolicy()) as plan:
        before = plan.state
        assert await network.undo(before) == UndoReport()
        await network.apply(plan)
    # As after a SIGKILL in between: only the first state is in the journal.
    report = await network.undo(before)
    assert len(report.removed) == 3
    assert rules(lab.pid) == rules(pod.pid) == ""


async def test_undo_after_a_restart_and_when_the_process_has_gone(
    lab: Lab, pod: Pod, spawn: Spawn, host: LinuxHost
) -> None:
    sibling = spawn("nsenter", "--target", str(pod.pid), "--net", "sleep", "1000")
    async with open_network(lab.pid) as network:
        await_that(lambda: inside(sibling.pid, lambda: "eth0" in dict(_links())), "a second process in the pod")
        state = (await put_up(network, host, pod, IsolatePolicy())).state
    pod.init.kill()
    pod.init.wait(PATIENCE_S)
    async with open_network(lab.pid) as network:
        report = await network.undo(state)
    assert sorted(report.removed) == ["host netdev", "pod inet", "pod netdev"]
    assert rules(sibling.pid) == rules(lab.pid) == ""


def _links() -> list[tuple[str, int]]:
    return [(name, number) for number, name in socket.if_nameindex()]


async def test_undo_when_the_pod_has_gone(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    state = (await put_up(network, host, pod, IsolatePolicy())).state
    pod.init.kill()
    pod.init.wait(PATIENCE_S)
    await_that(lambda: pod.host_end not in run_inside(lab.pid, "ip", "link"), "the link is gone with the pod")
    report = await network.undo(state)
    assert report.complete
    assert report.gone == ("the pod's network namespace", f"the host's end {pod.host_end}")
    assert rules(lab.pid) == ""
    assert (await network.undo(state)).complete


async def test_undo_when_the_link_has_gone(lab: Lab, pod: Pod, network: Network, host: LinuxHost) -> None:
    state = (await put_up(network, host, pod, IsolatePolicy())).state
    run_inside(pod.pid, "ip", "link", "delete", "eth0")
    report = await network.undo(state)
    assert report.complete
    assert report.gone == (f"the host's end {pod.host_end}",)
    assert rules(lab.pid) == rules(pod.pid) == ""


async def test_cancelled_amid_it_an_undo_still_comes_after(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    with host.hold(pod.pid) as held:
        for number in range(20):
            with await network.plan(held, f"{number:032x}", IsolatePolicy()) as plan:
                with trio.move_on_after(number * 0.0002):
                    await network.apply(plan)
                assert (await network.undo(plan.state)).complete
    assert rules(lab.pid) == rules(pod.pid) == ""


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


async def test_when_a_hand_is_killed_another_does_the_job(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    for pid in network.hand_pids:
        os.kill(pid, signal.SIGKILL)
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert len(applied.places) == 3
    assert (await network.undo(applied.state)).complete


async def test_neither_end_is_a_failure(lab: Lab, pod: Pod, network: Network, host: LinuxHost, spawn: Spawn) -> None:
    """A table with an owner can't be touched by anybody else: here one of our name stands at each end."""
    for pid, family, name in ((lab.pid, "netdev", "stoop"), (pod.pid, "inet", TABLE)):
        owner = spawn("nsenter", "--target", str(pid), "--net", "nft", "--interactive")
        say(owner, f"table {family} {name} {{ flags owner; }}")
        await_that(lambda pid=pid, name=name: f" {name} " in rules(pid), "the owner's table")  # type: ignore[misc]
    with pytest.raises(ActFailed, match=r"(?s)(?=.*host: )(?=.*pod: )"):
        await put_up(network, host, pod, IsolatePolicy())
