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
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import trio

from agent.node.finding import find_namespace
from agent.node.hands import Hands, open_hands
from agent.node.held import LinuxHeld
from agent.node.jobs import DEVICES, PLAIN_NAME, Apply, Part, Put, Read, Remove, Reply, Sever, Standing
from agent.node.netns import HostLinks, LinkEnd, Namespace, namespace_at, namespace_of
from agent.node.sockets import Cutting
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from stoop.actions.network.ruleset import Place, check_act_id, rule_counts, table, table_name
from stoop.errors import ActFailed, TargetRefused

PLAN_SECONDS = 2.0
"""For reading the pod's links: some 0.1 ms, unless a change to a link elsewhere holds the kernel's lock of links."""

HOST_PLACES = (Place.HOST_LINK,)
POD_PLACES = (Place.POD_LINK, Place.POD_SOCKETS)

Policy = IsolatePolicy | BlockPolicy


class State(msgspec.Struct, frozen=True):
    """What an undo needs, and what was put up, as far as it is known. `fingerprints`: place → family → of the table."""

    act: str
    netns: int
    pid: int  # in whose namespace it was found; it may have gone
    links: tuple[tuple[int, str], ...] = ()  # the host's ends: number and name
    fingerprints: dict[str, dict[str, str]] = {}


class Plan:
    """An act that can be carried out. It holds the namespace: `close` it, or use it as a context manager."""

    def __init__(self, namespace: Namespace, state: State, policy: Policy, ends: tuple[LinkEnd, ...]) -> None:
        self.namespace = namespace
        self.policy = policy
        self.ends = ends
        self._state = state

    @property
    def state(self) -> dict[str, Any]:
        """For the journal, before anything is changed."""
        built: dict[str, Any] = msgspec.to_builtins(self._state)
        return built

    @property
    def act(self) -> str:
        """The id of the act, which its chains carry."""
        return self._state.act

    def put_up(self, fingerprints: dict[str, dict[str, str]]) -> dict[str, Any]:
        """The state with what stands now."""
        built: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self._state, fingerprints=fingerprints))
        return built

    def close(self) -> None:
        """Let go of the namespace. Idempotent."""
        self.namespace.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Applied(msgspec.Struct, frozen=True):
    """What stands now. `weaker`: one line each for what is less than it should be; empty when all is as meant.

    `state` replaces the plan's: it has fingerprints. `again`: tables of this act were there already and were replaced.
    `ended`: connections that were ended. `ms`: milliseconds until both ends stood, and until all was done.
    """

    state: dict[str, Any]
    places: tuple[str, ...]
    weaker: tuple[str, ...] = ()
    again: bool = False
    ended: int = 0
    ms: dict[str, float] = {}


class UndoReport(msgspec.Struct, frozen=True):
    """What was taken away. `failed`: why something of ours may still stand, one line each; empty when nothing does.

    `gone`: what had ended by itself. `removed`: tables taken away, as `place family`. `changed`: those among them that
    were not as we had left them. `missing`: those that somebody else had taken away before. `counters`: what the
    removed ones had seen, place → counter → packets and bytes.
    """

    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    counters: dict[str, dict[str, tuple[int, int]]] = {}

    @property
    def complete(self) -> bool:
        """Whether nothing of the act stands any more."""
        return not self.failed


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
        state = State(check_act_id(act_id), namespace.inode, held.facts.pid, pairs)
        return Plan(namespace, state, policy, ends)

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
            if _devices(plan):
                nursery.start_soon(self._do, answers, "host", _host_job(plan), self._host.fd)
            nursery.start_soon(self._do, answers, "pod", _pod_job(plan), plan.namespace.fd)
        stood = time.monotonic()
        if all(answer.fault for answer in answers.values()):
            raise ActFailed("; ".join(f"{place}: {answer.fault}" for place, answer in answers.items()))
        severed = await self._severed(plan)
        done = time.monotonic()
        standing = {place: answer.standing for place, answer in answers.items() if not answer.fault}
        return Applied(
            state=plan.put_up({place: _prints(tables) for place, tables in standing.items()}),
            places=tuple(f"{place} {family}" for place, tables in standing.items() for family in tables),
            weaker=(*_weaker(plan, answers), *severed.remarks),
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
            reply = await self._hands["pod"].do(Sever(_cutting(plan.policy)), plan.namespace.fd)
        except ActFailed as error:
            reply = Reply(error.reason, 1)
        if reply.fault:
            return Reply(remarks=(f"live connections were not ended, only their packets: {reply.fault}",))
        return reply

    # ------------------------------------------------------------ counters, undo

    async def counters(self, state: dict[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
        """What an act's tables have seen so far: place → counter → (packets, bytes). Places that are gone are left out.

        Raises ActFailed when a place that is there can't be read.
        """
        known = msgspec.convert(state, State)
        replies = await self._both(known, Read)
        faults = [f"{place}: {reply.fault}" for place, reply in replies.items() if reply.fault]
        if faults:
            raise ActFailed("; ".join(faults))
        return {place: _counted(reply.standing) for place, reply in replies.items() if reply.standing}

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
        counted = {place: _counted(reply.standing) for place, reply in replies.items() if reply.standing}
        return UndoReport(tuple(removed), tuple(changed), tuple(missing), tuple(gone), tuple(failed), counted)

    async def _both(self, known: State, job: type[Remove] | type[Read]) -> dict[str, Reply]:
        """The same job at the host's end and in the pod; no "pod" when its namespace is gone."""
        answers: dict[str, Reply] = {}
        namespace = await trio.to_thread.run_sync(find_namespace, known.netns, known.pid, self._reference_pid)
        with contextlib.ExitStack() as stack:
            if namespace is not None:
                stack.enter_context(namespace)
            async with trio.open_nursery() as nursery:
                if known.links:
                    nursery.start_soon(self._do, answers, "host", job(_parts(known.act, HOST_PLACES)), self._host.fd)
                if namespace is not None and namespace.inode != self._host.inode:
                    nursery.start_soon(self._do, answers, "pod", job(_parts(known.act, POD_PLACES)), namespace.fd)
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


def _host_job(plan: Plan) -> Apply:
    return Apply(_puts(plan.act, plan.policy, HOST_PLACES), _devices(plan))


def _devices(plan: Plan) -> tuple[tuple[str, int], ...]:
    """The host's ends that rules can name: all, unless somebody on the host called one oddly."""
    return tuple((end.host, end.host_index) for end in plan.ends if PLAIN_NAME.fullmatch(end.host))


def _pod_job(plan: Plan) -> Apply:
    """Where nothing at the host's end tells probes from others, none are let in."""
    policy = plan.policy
    if isinstance(policy, IsolatePolicy) and not plan.ends:
        policy = msgspec.structs.replace(policy, probes=False)
    return Apply(_puts(plan.act, policy, POD_PLACES))


def _parts(act: str, places: tuple[Place, ...]) -> tuple[Part, ...]:
    return tuple(_part(act, place) for place in places)


def _part(act: str, place: Place) -> Part:
    chains = tuple(f"{way}-{act}" for way in place.ways)
    return Part(place.family, table_name(place, act), chains, shared=place is Place.HOST_LINK)


def _puts(act: str, policy: Policy, places: tuple[Place, ...]) -> tuple[Put, ...]:
    rules = {place: policy.rules(place) for place in places}
    return tuple(
        Put(_part(act, place), table(place, act, held, DEVICES), rule_counts(place, act, held))
        for place, held in rules.items()
    )


def _cutting(policy: Policy) -> Cutting:
    """Of an isolated pod all but those allowed. Queries to a resolver are short, and begin anew."""
    if isinstance(policy, IsolatePolicy):
        return Cutting(spared=policy.allow)
    return Cutting(peers=policy.peers, ports=policy.ports, protocol=policy.protocol)


def _weaker(plan: Plan, answers: dict[str, Reply]) -> list[str]:
    told = [f"not at the {place}: {answer.fault}" for place, answer in answers.items() if answer.fault]
    told += [remark for answer in answers.values() for remark in answer.remarks]
    ended = {end.pod_index for end in plan.ends}
    for number, name, kind in answers["pod"].links:
        if number not in ended:
            told.append(
                f"{name} ({kind or 'a device'}) has no end on the host: closed in the pod only, by root to be opened"
            )
    told += [f"packets may pass the host's end {end.host} by: {end.ahead}" for end in plan.ends if end.ahead]
    odd = [end.host for end in plan.ends if not PLAIN_NAME.fullmatch(end.host)]
    if odd:
        told.append(f"the host's end {odd[0]!r} has a name that no rule can hold: closed in the pod only")
    if isinstance(plan.policy, IsolatePolicy) and plan.policy.probes and not plan.ends:
        told.append("probes are not let in: without a host's end they can't be told from others")
    return told


def _prints(tables: dict[str, Standing]) -> dict[str, str]:
    return {family: standing.fingerprint for family, standing in tables.items()}


def _counted(tables: dict[str, Standing]) -> dict[str, tuple[int, int]]:
    """The counters of a place. In the pod a packet that its first table lets through is counted by both."""
    found: dict[str, tuple[int, int]] = {}
    for standing in tables.values():
        for name, (packets, size) in standing.counters.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + packets, before[1] + size)
    return found
