"""Fakes for whoever tests against the responder: a node whose processes are values, clocks, a ledger kept in memory.

`FakeHost` is a `NodeHost`, `FakeLedger` a `Ledger`, `FakeClock` a `Clocks`. `Workbench` puts a real responder on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from stoop import guard
from stoop.alert import Alert, decode
from stoop.engine import Memory
from stoop.evidence_first import First
from stoop.giveback import GiveBack
from stoop.holdings import Holdings
from stoop.holds import Hold
from stoop.judge import Judge
from stoop.metrics import Metrics
from stoop.node import HostFacts
from stoop.parts import Parts
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.respond import Responder
from stoop.ring import Intent
from stoop.rules import RuleForm, RuleSet
from stoop.skew import Skew
from stoop.spec import (
    Action,
    Catalogue,
    Mode,
)
from stoop.testing_node import BOOT_ID, HOST_NAMESPACE, NOW_NS, SECOND_NS, FakeHost

HOST_FACTS = HostFacts(
    boot_id=BOOT_ID,
    pid_ns=HOST_NAMESPACE,
    mnt_ns=HOST_NAMESPACE,
    pid_ns_is_root=True,
    own_pids=frozenset({900}),
    own_cgroups=frozenset(),
)

POLICY = guard.Policy(
    protected_namespaces=frozenset({"kube-system"}),
    protected_executables=guard.executables(["kubelet"]),
    max_alert_age_ns=60 * SECOND_NS,
    max_targets=0,
    max_targets_total=0,
    any_pid_namespace=False,
)


class FakeClock:
    """Both clocks. They stand still, but for `step_ns` that each look at the time of day takes."""

    def __init__(self, now_ns: int = NOW_NS, step_ns: int = 0) -> None:
        self.now = now_ns
        self.mono = SECOND_NS
        self.step_ns = step_ns

    def now_ns(self) -> int:
        """CLOCK_REALTIME."""
        self.now += self.step_ns
        return self.now

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.mono

    def advance(self, seconds: float) -> None:
        """Let time pass on both."""
        self.now += int(seconds * SECOND_NS)
        self.mono += int(seconds * SECOND_NS)


class FakeLedger:
    """A `Ledger` in memory, whose slots are given anew as soon as they are free, as the ring's are.

    `misused`: slots that were stamped or freed while nobody held them, which would hit another act's intent.
    """

    def __init__(self) -> None:
        self.intents: list[Intent] = []
        self.open: dict[int, Intent] = {}
        self.begun: list[Intent] = []
        self.records: list[Record] = []
        self.counts: list[tuple[str, int]] = []
        self.misused: list[int] = []
        self.accepted_alerts = 0
        self.settled_alerts = 0

    def reserve(self, intent: Intent) -> int:
        """The lowest free slot."""
        slot = next(number for number in range(len(self.open) + 1) if number not in self.open)
        self.open[slot] = intent
        self.intents.append(intent)
        return slot

    def acted(self, slot: int) -> None:
        """Remembered."""
        self.begun.append(self.open[slot])

    def put(self, record: Record, slot: int) -> None:
        """Remembered; the slot is free at once."""
        self.records.append(record)
        if slot >= 0 and (slot not in self.open or self.open.pop(slot).act != record.act):
            self.misused.append(slot)

    def repeats(self, act: str, count: int) -> None:
        """Remembered."""
        self.counts.append((act, count))

    def accepted(self, count: int, now_ns: int) -> None:
        """Counted."""
        self.accepted_alerts += count

    def settled(self, count: int, now_ns: int) -> None:
        """Counted."""
        self.settled_alerts += count


class FakeFiles:
    """`hold_files` in memory. `trouble`: why nothing can be kept, "" for nothing."""

    def __init__(self) -> None:
        self.kept: dict[str, Hold] = {}
        self.synced: list[str] = []
        self.trouble = ""

    def load(self) -> tuple[list[Hold], list[str]]:
        """What was kept."""
        return list(self.kept.values()), []

    def keep(self, hold: Hold, *, synced: bool) -> str:
        """Remembered."""
        if not self.trouble:
            self.kept[hold.act] = hold
            self.synced += [hold.act] if synced else []
        return self.trouble

    def remove(self, act: str) -> str:
        """Forgotten."""
        self.kept.pop(act, None)
        return ""


class Workbench:
    """A real responder on fakes, with these actions and rules. It must be served for whatever has to be awaited."""

    def __init__(
        self,
        actions: Iterable[Action],
        rules: Sequence[RuleForm],
        *,
        policy: guard.Policy = POLICY,
        window_s: float = 5.0,
        deadline_s: float = 2.0,
        clock: FakeClock | None = None,
    ) -> None:
        self.host = FakeHost()
        self.clock = clock or FakeClock()
        self.ledger = FakeLedger()
        self.metrics = Metrics()
        self.mode = Mode.ENFORCE
        self.memory = Memory(int(window_s * SECOND_NS))
        self.limits = guard.Limits(policy, {})
        self.disarmed: list[tuple[str, str]] = []
        self.shown: list[Record] = []
        self.actions = {action.spec.name: action for action in actions}
        catalogue = Catalogue(actions=self.actions, outputs={}, notifiers={})
        self.judge = Judge(
            host=self.host,
            host_facts=lambda: HOST_FACTS,
            catalogue=catalogue,
            keeps=guard.Guard(policy, self.limits, Skew()),
            disarmed=lambda rule, reason: self.disarmed.append((rule, reason)),
        )
        self.files = FakeFiles()
        self.said: list[tuple[str, str, dict[str, Any]]] = []
        self.holdings = Holdings(self.files, self.clock, BOOT_ID, self.say)
        self._catalogue = catalogue
        self.recorder = recorder = Recorder(self.ledger, self.metrics, lambda: self.mode, (self.shown.append,))
        self.giveback = GiveBack(self.holdings, catalogue, self.host, recorder, self.clock, self.say)
        self._parts = Parts(
            node="node-1",
            host=self.host,
            judge=self.judge,
            memory=self.memory,
            recorder=recorder,
            holdings=self.holdings,
            clocks=self.clock,
            mode=lambda: self.mode,
            act_deadline_s=deadline_s,
        )
        self.responder = Responder(self._parts)
        self.use(rules)

    def say(self, level: str, event: str, **fields: Any) -> None:
        """Remembered in `said`."""
        self.said.append((level, event, fields))

    def evidence_first(self, first: First, rules: Sequence[RuleForm]) -> None:
        """The same, with evidence before acts that destroy. Before it is served."""
        parts = self._parts
        self.responder = Responder(replace(parts, first=first))
        self.giveback = GiveBack(self.holdings, self._catalogue, self.host, parts.recorder, self.clock, self.say, first)
        self.use(rules)

    def use(self, rules: Sequence[RuleForm]) -> None:
        """Swap the rules."""
        self.responder.use(RuleSet.of(rules))

    def accept(self, *alerts: Alert, settled: Callable[[], None] | None = None) -> None:
        """These came together, just now."""
        self.responder.taken(len(alerts), self.clock.now_ns())
        self.responder.accept(list(alerts), self.clock.now_ns(), "unix", settled)

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """(rule, verdict, reason) of each record, in order."""
        return [(record.rule, str(record.verdict), record.reason) for record in self.ledger.records]


def alert_of(rule: str = "Shell", *, time_ns: int = NOW_NS - 1_000_000, **fields: object) -> Alert:
    """An alert of Falco about `proc_pid`; two underscores in a field's name stand for one, one for a dot."""
    second = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    sent: dict[str, object] = {
        "rule": rule,
        "priority": "Notice",
        "source": "syscall",
        "output": f"{rule} happened",
        "output_fields": {key.replace("__", "\0").replace("_", ".").replace("\0", "_"): fields[key] for key in fields},
    }
    if time_ns:
        sent["time"] = f"{second:%Y-%m-%dT%H:%M:%S}.{time_ns % SECOND_NS:09d}Z"
    return decode(msgspec.json.encode(sent))
