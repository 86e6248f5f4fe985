"""Before `ready`: alerts about the agent's own helper go the whole way but the act, so that the first real one is fast.

The first time costs most: sockets are opened, pages touched, caches filled. Everything here is thrown away afterwards,
the mode is observe and no act is ever begun.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from stoop import guard
from stoop.alert import decode
from stoop.catalogue import CATALOGUE
from stoop.engine import Memory
from stoop.holdings import Holdings, NoFiles
from stoop.judge import Judge
from stoop.metrics import Metrics
from stoop.node import HostFacts, NodeHost
from stoop.parts import Parts
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.respond import Responder
from stoop.ring import Intent
from stoop.rules import ActionForm, MatchForm, RuleForm, RuleSet
from stoop.runs import Clocks
from stoop.skew import Skew
from stoop.spec import (
    Mode,
)

TURNS = 20
"""Some 10 ms in all. The interpreter specialises its code after a few turns (PEP 659)."""

RULE = RuleForm(
    rule="rehearsal",
    match=MatchForm(rules=("rehearsal",)),
    actions=(ActionForm("rehearsal", "process:kill", continue_=False),),
    allow_host=True,
)


class _NoLedger:
    """Keeps nothing."""

    def reserve(self, intent: Intent) -> int:
        return -1

    def acted(self, slot: int) -> None:
        pass

    def put(self, record: Record, slot: int) -> None:
        pass

    def repeats(self, act: str, count: int) -> None:
        pass

    def accepted(self, count: int, now_ns: int) -> None:
        pass

    def settled(self, count: int, now_ns: int) -> None:
        pass


def rehearse(host: NodeHost, facts: HostFacts, policy: guard.Policy, clocks: Clocks, pid: int) -> None:
    """Let alerts about this process, which is the agent's own, go the whole way but the act."""
    stranger = msgspec.structs.replace(facts, own_pids=frozenset(), pid_ns_is_root=True)
    keeps = guard.Guard(policy, guard.Limits(policy, {}), Skew())
    judge = Judge(
        host=host, host_facts=lambda: stranger, catalogue=CATALOGUE, keeps=keeps, disarmed=lambda rule, reason: None
    )
    recorder = Recorder(_NoLedger(), Metrics(), lambda: Mode.OBSERVE, ())
    responder = Responder(
        Parts(
            node="rehearsal",
            host=host,
            judge=judge,
            memory=Memory(0),
            recorder=recorder,
            holdings=Holdings(NoFiles(), clocks, facts.boot_id, lambda level, event, **fields: None),
            clocks=clocks,
            mode=lambda: Mode.OBSERVE,
            act_deadline_s=0.0,
        )
    )
    responder.use(RuleSet.of((RULE,)))
    for turn in range(TURNS):
        now_ns = clocks.now_ns()
        at = f"{datetime.fromtimestamp(now_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{now_ns % 10**9:09d}Z"
        fields = f'"proc.pid":{pid},"proc.ppid":1,"container.id":"host","evt.num":{turn}'
        line = f'{{"rule":"rehearsal","time":"{at}","output_fields":{{{fields}}}}}'
        responder.accept([decode(line.encode())], clocks.now_ns(), "unix", None)
