"""A pod that knows Stoop: raw frames, a flush from inside, links that lie, namespaces that are full."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from agent.node import hands
from agent.node.host import LinuxHost
from agent.node.network import Network
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from stoop.errors import ActFailed
from tests.real.conftest import PATIENCE_S, Spawn, await_that, line, say
from tests.real.netlab import (
    ACT,
    NEEDS,
    TABLE,
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

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
PACKET_QDISC_BYPASS, SOL_PACKET = 20, 263


def frame(pod: Pod, lab: Lab, protocol: int, payload: bytes) -> bytes:
    """A whole Ethernet frame to the node, as a raw sender makes it."""
    mac = [bytes.fromhex(_mac(pid, name)) for pid, name in ((lab.pid, pod.host_end), (pod.pid, "eth0"))]
    addresses = socket.inet_aton(pod.address) + socket.inet_aton(pod.gateway)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return mac[0] + mac[1] + struct.pack("!H", ETH_P_IP) + head + payload


def datagram(port: int, word: bytes) -> bytes:
    return struct.pack("!HHHH", 4000, port, 8 + len(word), 0) + word


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
            raw.send(frame(pod, lab, socket.IPPROTO_UDP, datagram(node.getsockname()[1], word)))
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


@pytest.mark.parametrize("flags", [0x10, 0x12, 0x04, 0x01, 0x00])
async def test_answers_to_probes_that_nobody_made_do_not_get_out(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, flags: int
) -> None:
    applied = await put_up(network, host, pod, IsolatePolicy(probes=True))
    run_inside(pod.pid, "nft", "flush", "ruleset")
    raw = pod.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.bind(("eth0", 0))
    raw.send(frame(pod, lab, socket.IPPROTO_TCP, struct.pack("!HHIIBBHHH", 80, 4000, 1, 1, 0x50, flags, 1000, 0, 0)))
    raw.send(frame(pod, lab, socket.IPPROTO_UDP, datagram(4000, b"the last")))
    seen = await network.counters(applied.state)
    assert seen["host"]["allowed_out"] == (0, 0)
    assert seen["host"]["dropped_out"][0] >= 2


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
    for words in ("link set eth0 down", 'link set eth0 name a"};drop', 'link set a"};drop up'):
        run_inside(pod.pid, "ip", *words.split(" "))
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


async def test_a_namespace_that_was_filled_up_is_closed_all_the_same(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    chains = "".join(f"chain c{number} {{ }}\n" for number in range(20_000))
    run_inside(pod.pid, "nft", "-f", "-", text=f"table inet big {{\n{chains}}}\n")
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert sorted(applied.places) == ["host netdev", "pod inet", "pod netdev"]
    assert (await network.undo(applied.state)).complete
    assert "big" in rules(pod.pid)


async def test_neither_end_is_a_failure(lab: Lab, pod: Pod, network: Network, host: LinuxHost, spawn: Spawn) -> None:
    """A table with an owner can't be touched by anybody else: here one of our name stands at each end."""
    for pid, family, name in ((lab.pid, "netdev", "stoop"), (pod.pid, "inet", TABLE)):
        owner = spawn("nsenter", "--target", str(pid), "--net", "nft", "--interactive")
        say(owner, f"table {family} {name} {{ flags owner; }}")
        await_that(lambda pid=pid, name=name: f" {name} " in rules(pid), "the owner's table")  # type: ignore[misc]
    with pytest.raises(ActFailed, match=r"(?s)(?=.*host: )(?=.*pod: )"):
        await put_up(network, host, pod, IsolatePolicy())


async def test_a_pods_end_that_hangs_does_not_hold_up_the_hosts(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "ANSWER_SECONDS", 0.3)
    node, inner = lab.socket(*UDP, (pod.gateway, 0)), pod.socket(*UDP)
    stuck = network.hand_pids[1]
    os.kill(stuck, signal.SIGSTOP)
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert applied.places == ("host netdev",)
    assert applied.weaker[0] == "not at the pod: no answer from the namespace within 0.3 s: nftables is held up there"
    assert not arrives(inner, node, node.getsockname())
    os.kill(stuck, signal.SIGCONT)
    monkeypatch.setattr(hands, "ANSWER_SECONDS", PATIENCE_S)
    # What was asked for late is done late, and the undo comes after it.
    report = await network.undo(applied.state)
    assert sorted(report.removed) == ["host netdev", "pod inet", "pod netdev"]
    assert rules(pod.pid) == ""


async def test_a_pod_that_keeps_its_nftables_busy_is_closed_at_the_host(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, spawn: Spawn, tmp_path: Path
) -> None:
    """It fills its rules and flushes them, ours too, as fast as it can, and would like to send meanwhile."""
    rule = "add rule inet big c ip saddr 10.0.0.1 drop\n"
    (tmp_path / "big").write_text("table inet big { chain c { }\n}\n" + rule * 5_000 + "flush ruleset\n")
    loop = f"echo on; while :; do nft -f {tmp_path}/big; done"
    busy = spawn("nsenter", "--target", str(pod.pid), "--net", "sh", "-c", loop)
    assert line(busy) == "on"
    node, inner = lab.socket(*UDP, (pod.gateway, 0)), pod.socket(*UDP)
    assert arrives(inner, node, node.getsockname())
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert "host netdev" in applied.places
    for _ in range(3):
        assert not arrives(inner, node, node.getsockname())
    busy.kill()
    busy.wait(PATIENCE_S)
    assert (await network.undo(applied.state)).complete


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
@pytest.mark.parametrize("policy", [IsolatePolicy(), BlockPolicy(ports=((1, 65535),))], ids=["isolate", "block"])
async def test_what_tc_leads_past_the_hooks_is_held_up_behind_them(
    lab: Lab, network: Network, host: LinuxHost, bridge: bool, policy: IsolatePolicy | BlockPolicy
) -> None:
    """As the CNI's bandwidth plugin does it: what comes in by the link goes through an ifb device, and is taken in
    again without a look at the link's hooks."""
    pod, other = lab.pod(bridge), lab.pod(bridge)
    for words in (
        "ip link add shaper type ifb",
        "ip link set shaper up",
        f"tc qdisc add dev {pod.host_end} ingress",
        f"tc filter add dev {pod.host_end} parent ffff: protocol all u32 match u32 0 0"
        " action mirred egress redirect dev shaper",
    ):
        run_inside(lab.pid, *words.split())
    node, inner = lab.socket(*UDP, (pod.gateway, 0)), pod.socket(*UDP)
    beside, theirs = lab.socket(*UDP, (other.gateway, 0)), other.socket(*UDP)
    assert arrives(inner, node, node.getsockname())
    applied = await put_up(network, host, pod, policy)
    run_inside(pod.pid, "nft", "flush", "ruleset")
    assert not arrives(inner, node, node.getsockname())
    assert arrives(theirs, beside, beside.getsockname())
    assert (await network.counters(applied.state))["host"]["dropped_out"][0] >= 1
    assert (await network.undo(applied.state)).complete
    assert rules(lab.pid) == ""
    assert arrives(inner, node, node.getsockname())


async def test_probes_are_answered_past_filters_of_tc_too(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    for words in (
        "ip link add shaper type ifb",
        "ip link set shaper up",
        f"tc qdisc add dev {pod.host_end} ingress",
        f"tc filter add dev {pod.host_end} parent ffff: protocol all u32 match u32 0 0"
        " action mirred egress redirect dev shaper",
    ):
        run_inside(lab.pid, *words.split())
    listener = lab.socket(*TCP, (pod.gateway, 0))
    listener.listen()
    with serving(pod) as address:
        await put_up(network, host, pod, IsolatePolicy(probes=True))
        assert answers(lab.socket(*TCP), address, PATIENCE_S)
    run_inside(pod.pid, "nft", "flush", "ruleset")
    assert not answers(pod.socket(*TCP), listener.getsockname())
