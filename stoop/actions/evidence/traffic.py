"""What `evidence:pcap` and `kubernetes:tcpdump` share: whose network it is, and how long a capture may take."""

from __future__ import annotations

import msgspec

from stoop.actions.evidence import reading
from stoop.actions.evidence.acting import ANSWER_SECONDS
from stoop.actions.evidence.reading import Data
from stoop.captures import TrafficWanted
from stoop.errors import TargetError, TargetGone
from stoop.spec import (
    ActContext,
    Outcome,
    Verdict,
)

DATA = Data("tcpdump.pcap", "tcpdump.pcap")

NODE_RIGHTS = ("CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_NET_RAW", "CAP_KILL")
"""The namespace of another's process; to enter it; to be nobody there; to hear packets; to end what is nobody's."""

LANE = "traffic"

MAX_TOLD = 8
"""Containers of other pods in the same network that a record names: their traffic is in the capture too."""

MAX_SECONDS = 3600
"""A capture has a worker of eight for as long as it lasts."""

START_SECONDS = 20.0
"""What a capture may wait for a worker's place, and tcpdump for the processor, beyond its own time."""

BYTES_PER_SECOND = 16 * 2**20
"""What a disk takes at least, for the deadline: the capture is written twice."""


def deadline_s(seconds: int, most_bytes: int) -> float:
    """Seconds for all of a capture of so many seconds, that has so many bytes at most."""
    return seconds + START_SECONDS + 2 * most_bytes / BYTES_PER_SECOND


def answer_s(seconds: int, most_bytes: int) -> float:
    """The act's own deadline: it hears of its capture's."""
    return deadline_s(seconds, most_bytes) + ANSWER_SECONDS


async def take(ctx: ActContext, seconds: int, snaplen: int, most_bytes: int) -> Outcome:
    """Capture what passes in the pod's network: the sandbox's, from outside. The node's own network is refused."""
    assert ctx.about is not None
    try:
        facts = ctx.host.namespaces_of(reading.need(ctx))
        if facts.on_host_network:
            return Outcome(
                Verdict.REFUSED, "it is on the node's own network (hostNetwork): a capture there has all traffic"
            )
        held = ctx.host.hold(facts.holder_pid)
    except TargetGone as error:
        return Outcome(Verdict.SKIPPED, error.reason)
    except TargetError as error:
        return Outcome(Verdict.REFUSED, error.reason)
    wanted = TrafficWanted(
        about=ctx.about(),
        deadline_s=deadline_s(seconds, most_bytes),
        target=reading.target(ctx),
        network=facts.pod_net,  # the worker compares: a number given anew is in another one
        host_networks=(facts.host_net,) if facts.host_net else (),
        duration_s=float(seconds),
        snaplen=snaplen,
        bytes=most_bytes,
    )
    try:
        outcome = await reading.take(ctx, wanted, [held], DATA)
    finally:
        held.close()
    if not facts.shared_with:
        return outcome
    shared = {"network_shared_with": [container[:12] for container in facts.shared_with[:MAX_TOLD]]}
    return msgspec.structs.replace(outcome, details=outcome.details | shared)
