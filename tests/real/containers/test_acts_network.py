"""A pod cut off through the whole agent: what gets in and out, who is refused, and what a pod does that knows Stoop."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoop.giveback import LOOK_SECONDS
from tests.real.conftest import await_that
from tests.real.containers.node import GATEWAY, Node, host_programs
from tests.real.containers.on_node import MakeOnNode, Scene, acts_of, look, make_on_node, rule, scene, told_of, undone
from tests.real.containers.pod import Pod
from tests.real.netlab import UDP, arrives, inside, rules, run_inside

__all__ = ["make_on_node", "scene"]

pytestmark = [pytest.mark.root, pytest.mark.real]

ISOLATE, BLOCK = "network:isolate", "network:block"
THE_NODE = GATEWAY[0].partition("/")[0]
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800


class Wires:
    """Sockets of the node and of pods; `reaches` tells whether a datagram gets from one to another now."""

    def __init__(self, node: Node, keep: contextlib.ExitStack) -> None:
        self._node = node
        self._keep = keep
        self._sockets: dict[str, socket.socket] = {}

    def _socket(self, pid: int, address: str) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(*UDP)
            made.bind((address, 0))
            return made

        if address not in self._sockets:
            self._sockets[address] = self._keep.enter_context(inside(pid, make))
        return self._sockets[address]

    def of(self, end: Pod | None) -> socket.socket:
        """The socket of a pod, None: of the node."""
        return self._socket(*((self._node.pid, THE_NODE) if end is None else (end.sandbox.init_pid, end.ip)))

    def reaches(self, one: Pod | None, other: Pod | None) -> bool:
        """Whether a datagram that is sent now arrives."""
        receiver = self.of(other)
        return arrives(self.of(one), receiver, receiver.getsockname())


@pytest.fixture
def wires(the_node: Node) -> Iterator[Wires]:
    with contextlib.ExitStack() as keep:
        yield Wires(the_node, keep)


def test_isolated_nothing_gets_in_or_out_and_the_other_pod_never_notices(
    make_on_node: MakeOnNode, scene: Scene, wires: Wires
) -> None:
    pod, other = scene.pod, scene.stranger.pod
    ways = [(pod, None), (None, pod), (pod, other), (other, pod)]
    assert all(wires.reaches(*way) for way in ways)
    agent = make_on_node(rule(ISOLATE, ttl="5s"))
    record = agent.answer(told_of(scene.victim, rule=ISOLATE))
    assert (record["outcome"], record["reason"]) == ("done", ""), record
    assert sorted(record["details"]["places"]) == ["host netdev", "pod inet", "pod netdev"]
    assert not any(wires.reaches(*way) for way in ways)
    assert wires.reaches(other, None)
    assert wires.reaches(None, other)
    assert "1 packets received" in scene.sibling.run("ping", "-c", "1", "127.0.0.1")
    await_that(lambda: bool(undone(agent)), "its time is over")
    (row,) = undone(agent)
    assert row["outcome"] == "done"
    assert (
        row["details"]["counters"]["host"]["dropped_out"][0] + row["details"]["counters"]["pod"]["dropped_out"][0] > 0
    )
    assert all(wires.reaches(*way) for way in ways)


def test_a_blocked_peer_is_cut_off_and_no_other(make_on_node: MakeOnNode, scene: Scene, wires: Wires) -> None:
    pod, other = scene.pod, scene.stranger.pod
    agent = make_on_node(rule(BLOCK, cidr=[]))
    peer = wires.of(other).getsockname()
    record = agent.answer(told_of(scene.victim, rule=BLOCK, fd_rip=peer[0], fd_rport=peer[1]))
    assert record["outcome"] == "done", record
    assert not wires.reaches(pod, other)
    assert wires.reaches(pod, None)
    assert wires.reaches(None, pod)
    assert wires.reaches(other, None)
    (gone,) = agent.undo()
    assert gone["outcome"] == "done"
    assert wires.reaches(pod, other)


# ---------------------------------------------------------------- whom it refuses


def test_a_pod_on_the_nodes_own_network_is_refused(make_on_node: MakeOnNode, the_node: Node) -> None:
    victim = the_node.pod("whole", "shop", host_network=True).container("sleep", "1000")
    agent = make_on_node(rule(ISOLATE) + rule(BLOCK))
    before = rules(the_node.pid)
    for actionner in (ISOLATE, BLOCK):
        record = agent.answer(told_of(victim, rule=actionner))
        assert (record["outcome"], "hostNetwork" in record["reason"]) == ("refused", True), record
    assert rules(the_node.pid) == before
    assert agent.active() == []


def test_two_pods_with_one_network_are_refused(make_on_node: MakeOnNode, scene: Scene) -> None:
    joined = scene.stranger.pod.container(
        *("sleep", "1000"), name="joined", options=["--with-ns", f"network:{scene.pod.netns}"]
    )
    agent = make_on_node(rule(ISOLATE))
    before = scene.whole()
    record = agent.answer(told_of(scene.victim, rule=ISOLATE))
    assert record["outcome"] == "refused", record
    assert joined.id[:12] in record["reason"]
    assert scene.whole() == before


def test_a_process_that_left_its_network_is_told_and_the_pod_is_cut_off(
    make_on_node: MakeOnNode, the_node: Node, wires: Wires
) -> None:
    pod = the_node.pod("web-1", "shop")
    victim = pod.container("sleep", "1000", capabilities=["CAP_SYS_ADMIN"])
    pid = victim.exec("unshare", "--net", "sleep", "3000")
    await_that(lambda: b"3000" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2], "it has left")
    agent = make_on_node(rule(ISOLATE))
    record = agent.answer(told_of(victim, pid, ISOLATE))
    assert (record["outcome"], record["details"]["process_elsewhere"]) == ("done", ["net"]), record
    assert rules(pid) == ""
    assert not wires.reaches(pod, None)
    assert [gone["outcome"] for gone in agent.undo()] == ["done"]
    assert wires.reaches(pod, None)


# ---------------------------------------------------------------- a pod that knows Stoop


def frame(pod: Pod, the_node: Node, port: int, word: bytes) -> bytes:
    """A datagram to the node as a whole Ethernet frame."""

    def mac(pid: int, link: str) -> bytes:
        return bytes.fromhex(run_inside(pid, "ip", "-brief", "link", "show", "dev", link).split()[2].replace(":", ""))

    udp = struct.pack("!HHHH", 4000, port, 8 + len(word), 0) + word
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    ip += socket.inet_aton(pod.ip) + socket.inet_aton(THE_NODE)
    total = sum(struct.unpack("!10H", ip))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
    return mac(the_node.pid, "cni0") + mac(pod.sandbox.init_pid, "eth0") + struct.pack("!H", ETH_P_IP) + ip + udp


def test_a_flush_from_inside_and_raw_frames_do_not_get_out_and_drift_is_told(
    make_on_node: MakeOnNode, the_node: Node, wires: Wires
) -> None:
    pod = the_node.pod("web-1", "shop")
    liar = pod.container(
        "sleep", "1000", capabilities=["CAP_NET_ADMIN", "CAP_NET_RAW"], mounts=[*host_programs("/etc/alternatives")]
    )
    agent = make_on_node(rule(ISOLATE))
    node = wires.of(None)
    with inside(liar.init_pid, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ETH_P_ALL)) as raw:
        raw.bind(("eth0", 0))

        def gets_out(word: bytes) -> bool:
            with contextlib.suppress(OSError):  # ENOBUFS, EPERM: the egress hook tells the sender
                raw.send(frame(pod, the_node, node.getsockname()[1], word))
            node.settimeout(0.3)
            try:
                return node.recv(100) == word
            except TimeoutError:
                return False

        assert gets_out(b"before")
        assert agent.answer(told_of(liar, rule=ISOLATE))["outcome"] == "done"
        assert not gets_out(b"isolated")
        assert look(liar).pod_rules != ""
        liar.run("/usr/sbin/nft", "flush", "ruleset")
        assert look(liar).pod_rules == ""
        assert not gets_out(b"flushed")
        assert not wires.reaches(pod, None)
        assert not wires.reaches(None, pod)

        def trouble() -> str:
            return "".join(agent.status()["holds"]["trouble"].values())

        await_that(lambda: "took it away at the pod" in trouble(), "it is told", seconds=1.5 * LOOK_SECONDS)
        assert trouble() == agent.active()[0]["trouble"]
        assert "somebody else changed what is held" in agent.said()
        assert agent.stoop("active").returncode == 1
        (gone,) = agent.undo()
        assert gone["outcome"] == "done", gone
        assert gone["reason"].startswith("taken away: host netdev; taken away by somebody else before: pod ")
        assert gets_out(b"given back")
    assert len(acts_of(agent)) == 1
