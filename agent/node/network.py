"""What the agent does to a pod's network: cuts it off, blocks peers, and gives it back.

    plan ──▶ (journal) ──▶ apply ──▶ (journal) … undo
             state        host's end and pod's own end at once, read back, connections ended

The host's end is what counts: nobody in the pod can reach it. The pod's own end comes besides, since a network plugin
may lead packets past the host's hooks (said, where it is seen), and is all there is where the link has no end on the
host. Each is one transaction, by a thread of a process beside the agent (`agent.node.hand`).

`plan` changes nothing and gives all that an undo needs, as JSON can hold it. A state is of one boot: tables and
namespaces end with the machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import trio

from agent.node.finding import find_namespace
from agent.node.hands import Hands, open_hands
from agent.node.held import LinuxHeld
from agent.node.jobs import Apply, Read, Remove, Reply, Sever, Survey
from agent.node.netns import HostLinks, LinkEnd, Namespace, namespace_at, namespace_of
from agent.node.network_plan import (
    POD_PLACES,
    Plan,
    Policy,
    State,
    counted,
    cutting_of,
    devices,
    fingerprints,
    host_job,
    host_places,
    parts,
    pod_job,
    weaker_by,
)
from stoop.actions.network.ruleset import SHARED_TABLE, check_act_id
from stoop.errors import ActFailed, TargetRefused
from stoop.network import Applied, UndoReport
from stoop.node import HeldProcess

PLAN_SECONDS = 2.0
"""For reading the pod's links: some 0.1 ms, unless a change to a link elsewhere holds the kernel's lock of links."""


class Network:
    """The node's network hands. Made by `open_network`."""

    def __init__(self, hands: dict[str, Hands], host: Namespace, links: HostLinks, reference_pid: int) -> None:
        self._hands = hands  # by place
        self._host = host
        self._links = links
        self._reference_pid = reference_pid

    @property
    def unavailable(self) -> str:
        """Why nothing of this can be done on this node (library, capability, kernel), "" when it can."""
        return self._hands["pod"].unavailable or self._hands["host"].unavailable

    @property
    def hand_pids(self) -> tuple[int, ...]:
        """The processes that do the jobs: the agent's own, which no act may touch."""
        return tuple(hands.pid for hands in self._hands.values() if hands.pid)

    @property
    def host_inode(self) -> int:
        """The node's own network namespace, by inode."""
        return self._host.inode

    # ------------------------------------------------------------ plan

    async def plan(self, held: LinuxHeld, act_id: str, policy: Policy, others: Mapping[int, str] | None = None) -> Plan:
        """What `apply` would do to the network of a held process: the pod's sandbox or its container's init.

        `others`: inodes of network namespaces that must not be touched, and whose they are (other pods').
        Changes nothing. Raises TargetGone; TargetRefused (the node's own network, another pod's); ActFailed.
        """
        namespace = namespace_of(held)
        try:
            if namespace.inode == self._host.inode:
                raise TargetRefused("it is on the node's own network (hostNetwork): that is never cut off")
            owner = (others or {}).get(namespace.inode)
            if owner is not None:
                raise TargetRefused(f"its network is that of {owner}")
            ends = await self._within_limit(namespace)
        except BaseException:
            namespace.close()
            raise
        pairs = tuple((end.host_index, end.host) for end in ends)
        state = State(check_act_id(act_id), namespace.inode, held.facts.pid, pairs, host_places(ends))
        return Plan(namespace, state, policy, ends)

    def elsewhere(self, held: LinuxHeld, plan: Plan) -> str:
        """Where a process of the container is, if not in the plan's namespace; "" if it is there.

        It may have made a namespace of its own or gone into another's: to be told, and no reason to spare the pod.
        Raises TargetGone, TargetRefused.
        """
        with namespace_of(held) as namespace:
            if namespace.inode == plan.namespace.inode:
                return ""
            whose = (
                "on the node's own network" if namespace.inode == self._host.inode else "in another network namespace"
            )
            return f"pid {held.facts.pid} is {whose} ({namespace.inode}), not in its pod's"

    async def _within_limit(self, namespace: Namespace) -> tuple[LinkEnd, ...]:
        with trio.move_on_after(PLAN_SECONDS):
            return await trio.to_thread.run_sync(self._links.ends, namespace, abandon_on_cancel=True)
        raise ActFailed(f"the kernel does not tell the pod's links within {PLAN_SECONDS:g} s")

    # ------------------------------------------------------------ apply

    async def apply(self, plan: Plan) -> Applied:
        """Carry a plan out at both ends at once, read it back, end the connections. Twice is harmless.

        Raises ActFailed when it stands at neither end. Cancelled, it may stand: undo by the plan's state.
        """
        begun = time.monotonic()
        answers: dict[str, Reply] = {}
        async with trio.open_nursery() as nursery:
            if devices(plan):
                nursery.start_soon(self._do, answers, "host", host_job(plan), self._host.fd)
            nursery.start_soon(self._do, answers, "pod", pod_job(plan), plan.namespace.fd)
        stood = time.monotonic()
        if all(answer.fault for answer in answers.values()):
            raise ActFailed("; ".join(f"{place}: {answer.fault}" for place, answer in answers.items()))
        severed = await self._severed(plan)
        done = time.monotonic()
        standing = {place: answer.standing for place, answer in answers.items() if not answer.fault}
        return Applied(
            state=plan.put_up({place: fingerprints(tables) for place, tables in standing.items()}),
            places=tuple(f"{place} {family}" for place, tables in standing.items() for family in tables),
            weaker=(*weaker_by(plan, answers), *severed.remarks),
            again=any(answer.replaced for answer in answers.values()),
            ended=severed.ended,
            ms={"stood": round((stood - begun) * 1000, 3), "done": round((done - begun) * 1000, 3)},
        )

    async def _do(self, answers: dict[str, Reply], place: str, job: Apply | Remove | Read, fd: int) -> None:
        try:
            answers[place] = await self._hands[place].do(job, fd)
        except ActFailed as error:
            answers[place] = Reply(error.reason, 1)

    async def _severed(self, plan: Plan) -> Reply:
        try:
            reply = await self._hands["pod"].do(Sever(cutting_of(plan.policy)), plan.namespace.fd)
        except ActFailed as error:
            reply = Reply(error.reason, 1)
        if reply.fault:
            return Reply(remarks=(f"live connections were not ended, only their packets: {reply.fault}",))
        return reply

    async def cut(self, held: HeldProcess, act: str, policy: Policy, keep: Callable[[dict[str, Any]], None]) -> Applied:
        """Plan, keep, apply, keep: as `NetworkHands.cut`."""
        assert isinstance(held, LinuxHeld)
        with await self.plan(held, act, policy) as plan:
            keep(plan.state)
            applied = await self.apply(plan)
        keep(applied.state)
        return applied

    # ------------------------------------------------------------ what stands, counters, undo

    async def standing(self) -> frozenset[str]:
        """The ids of acts that have chains at the host's ends, whether anybody still knows of them or not.

        Raises ActFailed.
        """
        reply = await self._hands["host"].do(Survey("netdev", SHARED_TABLE), self._host.fd)
        if reply.fault:
            raise ActFailed(reply.fault)
        return frozenset(chain.partition("-")[2] for chain in reply.chains)

    async def counters(self, state: dict[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
        """What an act's tables have seen so far: place → counter → (packets, bytes). Places that are gone are left out.

        Raises ActFailed when a place that is there can't be read.
        """
        known = msgspec.convert(state, State)
        replies = await self._both(known, Read)
        faults = [f"{place}: {reply.fault}" for place, reply in replies.items() if reply.fault]
        if faults:
            raise ActFailed("; ".join(faults))
        return {place: counted(reply.standing) for place, reply in replies.items() if reply.standing}

    async def undo(self, state: dict[str, Any]) -> UndoReport:
        """Take the act's tables away, wherever they are, and nothing else. Twice is harmless. Raises nothing of ours.

        Works from the state alone: after a restart, and when process, link or namespace are gone.
        """
        known = msgspec.convert(state, State)
        replies = await self._both(known, Remove)
        removed, changed, missing, failed = [], [], [], []
        for place, reply in replies.items():
            noted = known.fingerprints.get(place, {})
            if reply.fault:
                failed.append(f"{place}: {reply.fault}")
                continue
            removed += [f"{place} {family}" for family in reply.standing]
            missing += [f"{place} {family}" for family in noted if family not in reply.standing]
            changed += [
                f"{place} {family}"
                for family, stood in reply.standing.items()
                if noted.get(family, stood.fingerprint) != stood.fingerprint
            ]
        gone = [] if "pod" in replies else ["the pod's network namespace"]
        gone += await self._links_gone(known)
        seen = {place: counted(reply.standing) for place, reply in replies.items() if reply.standing}
        return UndoReport(tuple(removed), tuple(changed), tuple(missing), tuple(gone), tuple(failed), seen)

    async def _both(self, known: State, job: type[Remove] | type[Read]) -> dict[str, Reply]:
        """The same job at the host's end and in the pod; no "pod" when its namespace is gone."""
        answers: dict[str, Reply] = {}
        namespace = await trio.to_thread.run_sync(find_namespace, known.netns, known.pid, self._reference_pid)
        with contextlib.ExitStack() as stack:
            if namespace is not None:
                stack.enter_context(namespace)
            async with trio.open_nursery() as nursery:
                if known.links:
                    nursery.start_soon(self._do, answers, "host", job(parts(known.act, known.host)), self._host.fd)
                if namespace is not None and namespace.inode != self._host.inode:
                    nursery.start_soon(self._do, answers, "pod", job(parts(known.act, POD_PLACES)), namespace.fd)
        return answers

    async def _links_gone(self, known: State) -> list[str]:
        """A link that ended takes the chains on it along; the table that is left was ours all the same."""
        gone = []
        for number, name in known.links:
            try:
                now = await trio.to_thread.run_sync(self._links.name, number)
            except ActFailed:
                continue
            if now != name:
                gone.append(f"the host's end {name}")
        return gone


@contextlib.asynccontextmanager
async def open_network(reference_pid: int = 1) -> AsyncIterator[Network]:
    """The hands, started. `reference_pid`: whose network namespace is the node's own. Look at `unavailable`.

    Raises TargetRefused when the node's namespace can't be opened: without it nothing can be told from it.
    """
    try:
        host = namespace_at(f"/proc/{reference_pid}/ns/net")
    except OSError as error:
        hint = "CAP_SYS_PTRACE is needed, or another reference pid"
        raise TargetRefused(
            f"the node's network namespace (of pid {reference_pid}): {error.strerror} ({hint})"
        ) from error
    with host:
        try:
            links = HostLinks(host)
        except OSError as error:
            raise TargetRefused(f"the node's links can't be read: {error.strerror}") from error
        with contextlib.closing(links):
            async with open_hands(one=True) as first, open_hands() as second:
                yield Network({"host": first, "pod": second}, host, links, reference_pid)
