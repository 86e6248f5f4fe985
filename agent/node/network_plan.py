"""What is known of an act on a pod's network: planned, put up, taken away; and the jobs that follow. No I/O."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from agent.node.jobs import DEVICES, PLAIN_NAME, Apply, Part, Put, Reply, Standing
from agent.node.netns import LinkEnd, Namespace
from agent.node.sockets import Cutting
from stoop.actions.network.block import BlockPolicy
from stoop.actions.network.isolate import IsolatePolicy
from stoop.actions.network.ruleset import Place, Rules, rule_counts, table, table_name

CACHED_RULES = 192
"""Rules of policies at their three places that are kept: 64 policies, some 20 KiB each at most. 256 networks take 13 ms
to read, which would otherwise stand in the way of each act."""

POD_PLACES = (Place.POD_LINK, Place.POD_SOCKETS)

Policy = IsolatePolicy | BlockPolicy


AHEAD = "the host's end {} is not the first that packets meet: {}; those that the host takes in are held up there"


class State(msgspec.Struct, frozen=True):
    """What an undo needs, and what was put up, as far as it is known. `fingerprints`: place → family → of the table."""

    act: str
    netns: int
    pid: int  # in whose namespace it was found; it may have gone
    links: tuple[tuple[int, str], ...] = ()  # the host's ends: number and name
    host: tuple[Place, ...] = (Place.HOST_LINK,)  # where on the host its chains are
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
    def host(self) -> tuple[Place, ...]:
        """The places on the host."""
        return self._state.host

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


def host_job(plan: Plan) -> Apply:
    return Apply(_puts(plan.act, plan.policy, plan.host), devices(plan))


def host_places(ends: tuple[LinkEnd, ...]) -> tuple[Place, ...]:
    """Where rules stand on the host: at the link; where packets may be led past that, also where they come in then."""
    late = [Place.HOST_BRIDGE if end.bridged else Place.HOST_STACK for end in ends if end.ahead]
    return (Place.HOST_LINK, *sorted(set(late)))


def devices(plan: Plan) -> tuple[tuple[str, int], ...]:
    """The host's ends that rules can name: all, unless somebody on the host called one oddly."""
    return tuple((end.host, end.host_index) for end in plan.ends if PLAIN_NAME.fullmatch(end.host))


def pod_job(plan: Plan) -> Apply:
    """Where nothing at the host's end tells probes from others, none are let in."""
    policy = plan.policy
    if isinstance(policy, IsolatePolicy) and not plan.ends:
        policy = msgspec.structs.replace(policy, probes=False)
    return Apply(_puts(plan.act, policy, POD_PLACES))


def parts(act: str, places: tuple[Place, ...]) -> tuple[Part, ...]:
    return tuple(_part(act, place) for place in places)


def _part(act: str, place: Place) -> Part:
    chains = tuple(f"{way}-{act}" for way in place.ways)
    return Part(place.family, table_name(place, act), chains, shared=place is Place.HOST_LINK)


@lru_cache(maxsize=CACHED_RULES)
def _rules(policy: Policy, place: Place) -> Rules:
    return policy.rules(place)


def _puts(act: str, policy: Policy, places: tuple[Place, ...]) -> tuple[Put, ...]:
    rules = {place: _rules(policy, place) for place in places}
    return tuple(
        Put(_part(act, place), table(place, act, held, DEVICES), rule_counts(place, act, held))
        for place, held in rules.items()
    )


def cutting_of(policy: Policy) -> Cutting:
    """Of an isolated pod all but those allowed. Queries to a resolver are short, and begin anew."""
    if isinstance(policy, IsolatePolicy):
        return Cutting(spared=policy.allow)
    return Cutting(peers=policy.peers, ports=policy.ports, protocol=policy.protocol)


def weaker_by(plan: Plan, answers: dict[str, Reply]) -> list[str]:
    told = [f"not at the {place}: {answer.fault}" for place, answer in answers.items() if answer.fault]
    told += [remark for answer in answers.values() for remark in answer.remarks]
    ended = {end.pod_index for end in plan.ends}
    for number, name, kind in answers["pod"].links:
        if number not in ended:
            told.append(
                f"{name} ({kind or 'a device'}) has no end on the host: closed in the pod only, by root to be opened"
            )
    told += [AHEAD.format(end.host, end.ahead) for end in plan.ends if end.ahead]
    odd = [end.host for end in plan.ends if not PLAIN_NAME.fullmatch(end.host)]
    if odd:
        told.append(f"the host's end {odd[0]!r} has a name that no rule can hold: closed in the pod only")
    if isinstance(plan.policy, IsolatePolicy) and plan.policy.probes and not plan.ends:
        told.append("probes are not let in: without a host's end they can't be told from others")
    if isinstance(plan.policy, IsolatePolicy) and plan.policy.probes and Place.HOST_BRIDGE in plan.host:
        told.append("probes are not answered: behind such filters, on a bridge, answers can't be told from others")
    return told


def fingerprints(tables: dict[str, Standing]) -> dict[str, str]:
    return {family: standing.fingerprint for family, standing in tables.items()}


def counted(tables: dict[str, Standing]) -> dict[str, tuple[int, int]]:
    """The counters of a place. In the pod a packet that its first table lets through is counted by both."""
    found: dict[str, tuple[int, int]] = {}
    for standing in tables.values():
        for name, (packets, size) in standing.counters.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + packets, before[1] + size)
    return found
