"""What was put up is taken away: twice, late, changed, gone, and after a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from agent.node.host import LinuxHost
from agent.node.network import Network, open_network
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from stoop.network import UndoReport
from tests.real.conftest import PATIENCE_S, Spawn, alive, await_that, line
from tests.real.netlab import (
    ACT,
    NEEDS,
    TABLE,
    UDP,
    Lab,
    Pod,
    arrives,
    inside,
    netns,
    put_up,
    rules,
    run_inside,
)

pytestmark = NEEDS


async def test_a_namespace_without_a_process_is_found_by_its_mount(
    lab: Lab, pod: Pod, host: LinuxHost, spawn: Spawn, tmp_path: Path
) -> None:
    """As the CNI keeps a pod's namespace. The node here has a mount namespace of its own, which ends with it."""
    at = tmp_path / "cni"
    at.touch()
    script = f"mount --bind /proc/{pod.pid}/ns/net {at} && echo mounted && exec sleep 1000"
    node = spawn("nsenter", "--target", str(lab.pid), "--net", "unshare", "--mount", "sh", "-c", script)
    assert line(node) == "mounted"
    async with open_network(node.pid) as network:
        state = (await put_up(network, host, pod, IsolatePolicy())).state
        pod.init.kill()
        pod.init.wait(PATIENCE_S)
        report = await network.undo(state)
    assert sorted(report.removed) == ["host netdev", "pod inet", "pod netdev"]
    assert report.gone == ()


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


async def test_what_stands_on_the_host_is_known_without_a_journal(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    assert await network.standing() == frozenset()
    states = [(await put_up(network, host, pod, IsolatePolicy(), letter * 32)).state for letter in "ab"]
    run_inside(lab.pid, "nft", "table netdev stoop-not-ours { chain c { }\n}")
    assert await network.standing() == {"a" * 32, "b" * 32}
    assert (await network.undo(states[0])).complete
    assert await network.standing() == {"b" * 32}


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
    report = await network.undo(json.loads(json.dumps(before)))
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


async def test_when_a_hand_is_killed_another_does_the_job(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    for pid in network.hand_pids:
        os.kill(pid, signal.SIGKILL)
    applied = await put_up(network, host, pod, IsolatePolicy())
    assert len(applied.places) == 3
    assert (await network.undo(applied.state)).complete


async def test_a_plan_whose_namespace_has_a_new_owner_is_harmless(
    lab: Lab, pod: Pod, network: Network, host: LinuxHost
) -> None:
    """An inode can be given anew: an undo that finds another pod's namespace finds nothing of its act there."""
    other = lab.pod()
    state = (await put_up(network, host, pod, IsolatePolicy())).state
    theirs = await put_up(network, host, other, IsolatePolicy(), "b" * 32)
    before = rules(other.pid)
    report = await network.undo({**state, "netns": netns(other.pid), "pid": other.pid})
    assert report.removed == ("host netdev",)
    assert rules(other.pid) == before
    assert (await network.undo(state)).complete
    assert (await network.undo(theirs.state)).complete


AGENT = """
import json, sys, trio
from agent.node.host import LinuxHost
from agent.node.network import open_network
from stoop.actions.network.isolate import IsolatePolicy
async def main():
    node, pod, act = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    async with open_network(node) as network:
        with LinuxHost().hold(pod) as held, await network.plan(held, act, IsolatePolicy()) as plan:
            print(json.dumps([network.hand_pids, plan.state]), flush=True)
            await network.apply(plan)
            print("stands", flush=True)
            await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("seen", ["planned", "host", "pod", "stands"])
async def test_an_agent_killed_at_any_step_leaves_nothing_that_its_plan_cannot_undo(
    lab: Lab, pod: Pod, network: Network, spawn: Spawn, seen: str
) -> None:
    agent = spawn(sys.executable, "-c", AGENT, str(lab.pid), str(pod.pid), ACT)
    hand_pids, state = json.loads(line(agent))
    if seen == "stands":
        assert line(agent) == "stands"
    elif seen != "planned":
        await_that(lambda: ACT in rules(lab.pid if seen == "host" else pod.pid), f"rules at the {seen}")
    agent.kill()
    agent.wait(PATIENCE_S)
    for pid in hand_pids:  # they end by themselves, and with them what they were at
        await_that(lambda pid=pid: not alive(pid), "the hand has ended")  # type: ignore[misc]
    assert (await network.undo(state)).complete
    assert rules(lab.pid) == rules(pod.pid) == ""
