"""What would have been done about these alerts, to whom and how often: the agent's own decisions, without a node.

Everything between an alert and an act is the real thing: `respond`, `judge`, `guard`, `engine`. Only three parts are
stand-ins: a node that confirms whatever an alert claims (`ClaimedNode`), clocks that show each alert's own time, and
acts that end as `would` instead of beginning. So a refusal here is one that the alert alone leads to; on a real node
the proof of identity may refuse more. No I/O; the same alerts give the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from stoop.alert import Alert
from stoop.engine import Memory
from stoop.guard import Claims, Guard, Limits, Policy, claims
from stoop.holdings import Holdings, NoFiles
from stoop.judge import Judge
from stoop.metrics import Metrics
from stoop.node import ContainerFacts, HeldProcess, HostFacts, NodeHost, ProcessFacts
from stoop.parts import Parts
from stoop.pods import PodFacts, Upper
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.respond import Responder
from stoop.ring import Intent
from stoop.rules import RuleForm, RuleSet
from stoop.skew import Skew
from stoop.spec import (
    ActContext,
    Action,
    Catalogue,
    Mode,
    Outcome,
    Verdict,
)

BORN_BEFORE_NS = 1_000_000_000
"""How long before its event a claimed process is taken to have begun: enough that its identity counts as proven."""

HOST_NAMESPACE, CONTAINER_NAMESPACE = 1, 2
"""Inodes of the claimed node's namespaces: those of its host, and those of every container."""

HOST = HostFacts(
    boot_id="replayed",
    pid_ns=HOST_NAMESPACE,
    mnt_ns=HOST_NAMESPACE,
    pid_ns_is_root=True,
    own_pids=frozenset(),
    own_cgroups=frozenset(),
)


class Trip(msgspec.Struct, frozen=True):
    """A limit that would have tripped: which rule disarmed itself (`*`: all), why, and at which alert (from 1)."""

    rule: str
    reason: str
    alert: int
    time_ns: int


class Replayed(msgspec.Struct, frozen=True):
    """What would have come of the alerts: (number of the alert, its time, record) in order, and which limits tripped.

    `repeats`: how often acts would have been asked for again and only be counted. `unmatched`: alerts no rule took.
    """

    records: tuple[tuple[int, int, Record], ...]
    trips: tuple[Trip, ...]
    alerts: int
    unmatched: int
    repeats: int


class RuleSummary(msgspec.Struct, frozen=True):
    """One rule over all alerts: how many acts, on how many distinct targets, and what was not done, by reason."""

    rule: str
    acts: int
    targets: int
    not_done: dict[str, int]  # "outcome: reason" -> how often


def replay(alerts: Iterable[Alert], forms: Sequence[RuleForm], catalogue: Catalogue, settings: Settings) -> Replayed:
    """Let the rules answer these alerts in the order of their times, which are the clock.

    One without a time has that of the one before it.
    """
    return _Replay(forms, catalogue, settings).run(alerts)


class Settings(msgspec.Struct, frozen=True):
    """What of the configuration decides: see the `guard` part."""

    node: str
    policy: Policy
    dedup_window_ns: int


def would_act(record: Record) -> bool:
    """Whether the act itself would have been begun (a dry run or a disarmed rule has a reason, this has none)."""
    return record.verdict is Verdict.WOULD and not record.reason


def summarize(replayed: Replayed) -> tuple[RuleSummary, ...]:
    """Each rule that matched anything, in the order of its first match."""
    by_rule: dict[str, list[Record]] = {}
    for _, _, record in replayed.records:
        by_rule.setdefault(record.rule, []).append(record)
    return tuple(
        RuleSummary(
            rule=rule,
            acts=sum(map(would_act, records)),
            targets=len({_target(record) for record in records if would_act(record)}),
            not_done=dict(Counter(_why_not(record) for record in records if not would_act(record)).most_common()),
        )
        for rule, records in by_rule.items()
    )


def _target(record: Record) -> str:
    """The container, else the executable: what the limits count."""
    target = record.target
    return str(target.get("container_id") or target.get("exe") or target.get("pid"))


def _why_not(record: Record) -> str:
    reason = record.reason.partition(" of ")[0] if record.verdict is Verdict.SKIPPED else record.reason
    return f"{record.verdict}: {reason}"


def _timed(alerts: Iterable[Alert]) -> list[tuple[int, int, Alert]]:
    """Each alert with its time and its number from 1."""
    timed: list[tuple[int, int, Alert]] = []
    now_ns = 0
    for number, alert in enumerate(alerts, 1):
        now_ns = alert.time_ns or now_ns
        timed.append((now_ns, number, alert))
    return timed


class _Replay:
    """The responder with its stand-ins. It is a `Clocks`, and a `Ledger` that keeps nothing."""

    def __init__(self, forms: Sequence[RuleForm], catalogue: Catalogue, settings: Settings) -> None:
        self._now_ns = 0
        self._number = 0
        self._records: list[tuple[int, int, Record]] = []
        self._trips: list[Trip] = []
        self._repeats = 0
        self._unmatched = 0
        self._node = ClaimedNode()
        guard = Guard(settings.policy, Limits(settings.policy, {}), Skew())
        self._rules = RuleSet.of(forms)
        node = cast(NodeHost, self._node)  # the acts of this catalogue ask nothing more of it
        judge = Judge(
            host=node,
            host_facts=lambda: HOST,
            catalogue=_harmless(catalogue),
            keeps=guard,
            disarmed=self._tripped,
        )
        recorder = Recorder(self, Metrics(), lambda: Mode.ENFORCE, (self._recorded,))
        self._responder = Responder(
            Parts(
                node=settings.node,
                host=node,
                judge=judge,
                memory=Memory(settings.dedup_window_ns),
                recorder=recorder,
                holdings=Holdings(NoFiles(), self, HOST.boot_id, lambda level, event, **fields: None),
                clocks=self,
                mode=lambda: Mode.ENFORCE,
                act_deadline_s=0.0,
            )
        )
        self._responder.use(self._rules)

    def run(self, alerts: Iterable[Alert]) -> Replayed:
        timed = _timed(alerts)
        for self._now_ns, self._number, alert in sorted(timed, key=lambda item: item[:2]):
            self._node.alert = alert
            self._unmatched += not any(rule.test(alert).possible for rule in self._rules.route(alert))
            self._responder.accept([alert], self._now_ns, "file", None)
        return Replayed(tuple(self._records), tuple(self._trips), len(timed), self._unmatched, self._repeats)

    def _tripped(self, rule: str, reason: str) -> None:
        if all(trip.rule != rule for trip in self._trips):
            self._trips.append(Trip(rule, reason, self._number, self._now_ns))

    def _recorded(self, record: Record) -> None:
        self._records.append((self._number, self._now_ns, record))

    # ------------------------------------------------------------ Clocks

    def now_ns(self) -> int:
        return self._now_ns

    def mono_ns(self) -> int:
        return self._now_ns

    # ------------------------------------------------------------ Ledger

    def reserve(self, intent: Intent) -> int:
        return -1

    def acted(self, slot: int) -> None:
        pass

    def put(self, record: Record, slot: int) -> None:
        pass

    def repeats(self, act: str, count: int) -> None:
        self._repeats += 1

    def accepted(self, count: int, now_ns: int) -> None:
        pass

    def settled(self, count: int, now_ns: int) -> None:
        pass


def _would(_context: ActContext) -> Outcome:
    """The act that replaces every act."""
    return Outcome(Verdict.WOULD)


def _harmless(catalogue: Catalogue) -> Catalogue:
    """The same catalogue, in which no act does anything. What is declared only stays so."""
    actions = {
        name: action if action.begin is None else Action(spec=action.spec, begin=_would)
        for name, action in catalogue.actions.items()
    }
    return Catalogue(actions=actions, outputs=catalogue.outputs, notifiers=catalogue.notifiers)


class ClaimedNode:
    """A node that confirms whatever the alert claims, and on which nothing can be done."""

    def __init__(self) -> None:
        self.alert: Alert | None = None

    def hold(self, pid: int) -> HeldProcess:
        """The process as the alert describes it."""
        assert self.alert is not None
        return _Claimed(_facts(self.alert, pid))

    def precise_start(self, facts: ProcessFacts) -> tuple[int, int]:
        """The same: what is claimed is exact."""
        return facts.start_ns, facts.start_slack_ns

    def more_facts(self, facts: ProcessFacts) -> ProcessFacts:
        """Nothing more is claimed."""
        return facts

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container that is claimed, with its one known process."""
        assert self.alert is not None
        said = claims(self.alert)
        return ContainerFacts(
            container_id=container_id,
            pod_uid=_field(self.alert, "k8s.pod.uid"),
            boot_id=HOST.boot_id,
            cgroup_v2=f"/claimed/{container_id}",
            cgroup_freezer="",
            init_pid=said.pid,
            members=(said.pid,),
        )

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        """What the alert claims is all there is."""
        return PodFacts(container_id)

    def upper_of(self, container: ContainerFacts) -> Upper:
        """No alert claims one."""
        return Upper(why="there is no node")


class _Claimed:
    """A `HeldProcess` that is only claimed."""

    def __init__(self, facts: ProcessFacts) -> None:
        self.facts = facts

    def again(self) -> _Claimed:
        return self

    def signal(self, signo: int) -> bool:
        return False

    def has_exited(self) -> bool:
        return False

    async def wait_exited(self) -> None:
        pass

    def state(self) -> str:
        return "S"

    def close(self) -> None:
        pass


def _field(alert: Alert, name: str) -> str:
    value = alert.fields.get(name)
    return value if isinstance(value, str) and value != "<NA>" else ""


def _number(alert: Alert, name: str) -> int:
    value: Any = alert.fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _facts(alert: Alert, pid: int) -> ProcessFacts:
    said: Claims = claims(alert)
    container = said.container_id if said.container_id != "host" else ""
    namespace = CONTAINER_NAMESPACE if container else HOST_NAMESPACE
    start_ns = alert.time_ns - BORN_BEFORE_NS
    return ProcessFacts(
        pid=pid,
        birth=said.pid_ts,
        start_ns=start_ns,
        start_slack_ns=0,
        boot_id=HOST.boot_id,
        ppid=said.ppid,
        comm=_field(alert, "proc.name"),
        exe=_field(alert, "proc.exepath"),
        uid=_number(alert, "user.uid"),
        kernel_thread=False,
        mnt_ns=namespace,
        pid_ns=namespace,
        cgroups=(),
        container_id=container,
        pod_uid=_field(alert, "k8s.pod.uid"),
    )
