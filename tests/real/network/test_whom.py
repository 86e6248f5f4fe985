"""Whose network it is, what leads out of it, and what makes an isolation weaker."""

from __future__ import annotations

import pytest

from agent.node.host import LinuxHost
from agent.node.network import Network
from agent.node.network_plan import AHEAD
from stoop.actions.network.isolate import IsolatePolicy
from stoop.errors import TargetGone, TargetRefused
from tests.real.conftest import PATIENCE_S, Spawn, await_that
from tests.real.netlab import (
    ACT,
    NEEDS,
    Lab,
    Pod,
    netns,
    put_up,
    rules,
    run_inside,
)

pytestmark = NEEDS


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
    words = ("ip", "link", "add", "link", carrier.host_end, "name", "net1", "netns", str(bare.pid), "type", "macvlan")
    run_inside(lab.pid, *words)
    pod = Pod(bare, 0, "", "", "", lab.keep)
    applied = await put_up(network, host, pod, IsolatePolicy(probes=True))
    assert sorted(applied.places) == ["pod inet", "pod netdev"]
    assert "net1 (macvlan) has no end on the host" in applied.weaker[0]
    assert "probes are not let in" in applied.weaker[1]
    assert (await network.undo(applied.state)).complete
    assert rules(bare.pid) == ""


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
async def test_filters_that_come_before_ours_make_it_weaker(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, kind: str
) -> None:
    run_inside(lab.pid, "tc", "qdisc", "add", "dev", pod.host_end, kind)
    applied = await put_up(network, host, pod, IsolatePolicy())
    said = AHEAD.format(pod.host_end, f"it has filters of tc ({kind}), which come first")
    assert applied.weaker == (said,)


async def test_two_containers_of_a_pod_have_one_network(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost, spawn: Spawn
) -> None:
    other = spawn("nsenter", "--target", str(pod.pid), "--net", "sleep", "1000")
    await_that(lambda: netns(other.pid) == netns(pod.pid), "a second container")
    first = await put_up(network, host, pod, IsolatePolicy(), "a" * 32)
    with host.hold(other.pid) as held, await network.plan(held, "b" * 32, IsolatePolicy()) as plan:
        second = await network.apply(plan)
        assert plan.namespace.inode == first.state["netns"]
    assert second.state["links"] == first.state["links"]
    for state in (first.state, second.state):
        assert (await network.undo(state)).complete
    assert rules(lab.pid) == rules(pod.pid) == ""


async def test_a_link_that_is_another_by_now_is_left_alone(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    """Between plan and act the host's end goes, and another pod's gets its name."""
    other = lab.pod()
    with host.hold(pod.pid) as held, await network.plan(held, ACT, IsolatePolicy()) as plan:
        run_inside(lab.pid, "ip", "link", "delete", pod.host_end)
        for words in (f"link set {other.host_end} down", f"link set {other.host_end} name {pod.host_end}"):
            run_inside(lab.pid, "ip", *words.split())
        applied = await network.apply(plan)
    assert applied.weaker[0] == f"not at the host: the host's end {pod.host_end} is not the link any more that it was"
    assert "chain" not in rules(lab.pid)


async def test_a_process_that_left_the_pods_network_is_told(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    own, node = lab.holder(), lab.node
    with host.hold(pod.pid) as held, await network.plan(held, ACT, IsolatePolicy()) as plan:
        assert network.elsewhere(held, plan) == ""
        with host.hold(own.pid) as left:
            assert "in another network namespace" in network.elsewhere(left, plan)
        with host.hold(node.pid) as left:
            assert "on the node's own network" in network.elsewhere(left, plan)
