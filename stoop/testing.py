"""Fakes for whoever tests against the responder: a node whose processes are values, clocks, a ledger kept in memory.

`FakeHost` is a `NodeHost`, `FakeLedger` a `Ledger`, `FakeClock` a `Clocks`. `Workbench` puts a real responder on them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from stoop import guard
from stoop.alert import Alert, decode
from stoop.engine import Memory
from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.giveback import GiveBack
from stoop.holdings import Holdings
from stoop.holds import Hold
from stoop.judge import Judge
from stoop.metrics import Metrics
from stoop.node import ContainerFacts, HostFacts, ProcessFacts
from stoop.parts import Parts
from stoop.pods import NOTHING, NamespaceFacts, PodFacts, Source, Told
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

SECOND_NS = 1_000_000_000

NOW_NS = 1_800_000_000 * SECOND_NS
"""When every test begins (2027-01-15 08:00 UTC)."""

BOOT_ID = "0123456789abcdef"

HOST_NAMESPACE, CONTAINER_NAMESPACE = 1, 2
"""Inodes of the fake node's namespaces, of either kind."""

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


class FakeProcess:
    """A process as a value. It ends by `exit`, or by a signal out of `ends_on`.

    `precise`: what taskstats would say of its start; `more`: its facts with what `hold` leaves out.
    """

    def __init__(self, facts: ProcessFacts) -> None:
        self.facts = facts
        self.precise = (facts.start_ns, facts.start_slack_ns)
        self.more = facts
        self.ends_on = frozenset({int(signal.SIGKILL)})
        self.signals: list[int] = []
        self.exited = trio.Event()

    def exit(self) -> None:
        """It ends now."""
        self.exited.set()


class FakeHold:
    """A `HeldProcess`. Used after `close` it fails, as a closed descriptor does."""

    def __init__(self, host: FakeHost, process: FakeProcess) -> None:
        self._host = host
        self._process = process
        self._closed = False
        self.facts = process.facts

    def signal(self, signo: int) -> bool:
        """Remember it, and end where the process ends on it."""
        process = self._held()
        if process.exited.is_set():
            return False
        process.signals.append(signo)
        if signo in process.ends_on:
            process.exit()
        return True

    def has_exited(self) -> bool:
        """Whether it ended."""
        return self._held().exited.is_set()

    async def wait_exited(self) -> None:
        """Until it ended."""
        await self._held().exited.wait()

    def state(self) -> str:
        """Asleep or gone."""
        return "X" if self._held().exited.is_set() else "S"

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            self._host.open_holds -= 1

    def _held(self) -> FakeProcess:
        if self._closed:
            raise ValueError(f"the hold of pid {self.facts.pid} was closed")
        return self._process


class FakeHost:
    """A node of values. `held`: every pid that was asked for; `open_holds`: how many holds nobody closed yet."""

    def __init__(self) -> None:
        self.processes: dict[int, FakeProcess] = {}
        self.refusals: dict[int, TargetError] = {}
        self.held: list[int] = []
        self.open_holds = 0
        self.frozen: list[tuple[str, bool]] = []
        self.controls: dict[tuple[str, str, str], str] = {}
        self.pods: dict[str, PodFacts] = {}

    def add(self, pid: int, **changes: Any) -> FakeProcess:
        """One more process, by itself an old one of the host."""
        facts = ProcessFacts(
            pid=pid,
            birth=pid + 1_000_000,
            start_ns=NOW_NS - 3600 * SECOND_NS,
            start_slack_ns=10_000_000,
            boot_id=BOOT_ID,
            ppid=1,
            comm="sh",
            exe="/bin/sh",
            uid=0,
            kernel_thread=False,
            mnt_ns=HOST_NAMESPACE,
            pid_ns=HOST_NAMESPACE,
            cgroups=(("", "/"),),
        )
        process = self.processes[pid] = FakeProcess(msgspec.structs.replace(facts, **changes))
        return process

    def add_in_container(self, pid: int, container_id: str, **changes: Any) -> FakeProcess:
        """One more process in this container."""
        inside = {"mnt_ns": CONTAINER_NAMESPACE, "pid_ns": CONTAINER_NAMESPACE, "container_id": container_id}
        return self.add(pid, **(inside | {"cgroups": (("", f"/pods/{container_id}"),)} | changes))

    def hold(self, pid: int) -> FakeHold:
        """Raises what `refusals` holds for it, TargetGone where there is none, TargetRefused for what is no target."""
        self.held.append(pid)
        if pid <= 1:
            raise TargetRefused(f"pid {pid} is no target")
        if pid in self.refusals:
            raise self.refusals[pid]
        process = self.processes.get(pid)
        if process is None or process.exited.is_set():
            raise TargetGone(f"no process {pid}")
        self.open_holds += 1
        return FakeHold(self, process)

    def precise_start(self, facts: ProcessFacts) -> tuple[int, int]:
        """As the process says."""
        return self.processes[facts.pid].precise

    def more_facts(self, facts: ProcessFacts) -> ProcessFacts:
        """As the process says."""
        return self.processes[facts.pid].more

    def descendants(self, pid: int) -> tuple[int, ...]:
        """Parents before children."""
        found = [pid]
        for parent in found:
            found += [child for child, process in self._living() if process.facts.ppid == parent]
        return tuple(found[1:])

    def session_entry(self, facts: ProcessFacts) -> tuple[int, tuple[int, ...]]:
        """There are no sessions here."""
        raise TargetRefused("it belongs to no exec session")

    def find_container(self, container_id: str) -> ContainerFacts:
        """The container of the first living process in it."""
        found = [process.facts for _, process in self._living() if process.facts.container_id.startswith(container_id)]
        if not found:
            raise TargetGone(f"no container {container_id[:12]}")
        first = found[0]
        return ContainerFacts(
            container_id=first.container_id,
            pod_uid=first.pod_uid,
            boot_id=BOOT_ID,
            cgroup_v2=f"/pods/{first.container_id}",
            cgroup_freezer="",
            init_pid=first.pid,
            members=tuple(facts.pid for facts in found),
        )

    def pod_of(self, container_id: str, pod_uid: str) -> PodFacts:
        """What `pods` holds, else what its cgroup says."""
        uid = Told(pod_uid, Source.CGROUP) if pod_uid else NOTHING
        return self.pods.get(container_id, PodFacts(container_id, uid=uid, in_pod=bool(pod_uid) or None, why="unknown"))

    def namespaces_of(self, container: ContainerFacts, process: ProcessFacts | None = None) -> NamespaceFacts:
        """Those of every container here."""
        if not self.container_members(container):
            raise TargetGone("the first process of the container has ended")
        inside, outside = CONTAINER_NAMESPACE, HOST_NAMESPACE
        return NamespaceFacts(
            container_id=container.container_id,
            init_pid=container.init_pid,
            holder_pid=container.init_pid,
            sandbox_id=self.pod_of(container.container_id, container.pod_uid).sandbox_id,
            net=inside,
            pid=inside,
            mnt=inside,
            pod_net=inside,
            host_net=outside,
            host_pid=outside,
            host_mnt=outside,
            elsewhere=("mnt",) if process is not None and process.mnt_ns != inside else (),
        )

    def container_members(self, container: ContainerFacts) -> tuple[int, ...]:
        """Those that live."""
        return tuple(pid for pid, process in self._living() if process.facts.container_id == container.container_id)

    def kill_container(self, container: ContainerFacts) -> None:
        """All that live end."""
        for pid in self.container_members(container):
            self.processes[pid].exit()

    def freeze(self, container: ContainerFacts, frozen: bool) -> bool:
        """Remembered; whether this changed it."""
        was = dict(self.frozen).get(container.container_id, False)
        self.frozen.append((container.container_id, frozen))
        return was is not frozen

    def is_frozen(self, container: ContainerFacts) -> bool:
        """As it was left."""
        return dict(self.frozen).get(container.container_id, False)

    def holds_signals(self, container: ContainerFacts) -> bool:
        """It is v2 here."""
        return False

    def has_control(self, container: ContainerFacts, controller: str, file: str) -> bool:
        """As `controls` says."""
        return (container.container_id, controller, file) in self.controls

    def block_devices(self) -> tuple[str, ...]:
        """One disk."""
        return ("8:0",)

    def read_control(self, container: ContainerFacts, controller: str, file: str) -> str:
        """As `controls` says."""
        try:
            return self.controls[container.container_id, controller, file]
        except KeyError:
            raise ActFailed(f"there is no {file}") from None

    def write_control(self, container: ContainerFacts, controller: str, file: str, value: str) -> None:
        """Written as it is."""
        self.read_control(container, controller, file)
        self.controls[container.container_id, controller, file] = value

    async def wait_container_empty(self, container: ContainerFacts) -> None:
        """Until all have ended."""
        for pid in self.container_members(container):
            await self.processes[pid].exited.wait()

    def _living(self) -> list[tuple[int, FakeProcess]]:
        return [(pid, process) for pid, process in self.processes.items() if not process.exited.is_set()]


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
    """`HoldFiles` in memory. `trouble`: why nothing can be kept, "" for nothing."""

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
        recorder = Recorder(self.ledger, self.metrics, lambda: self.mode, (self.shown.append,))
        self.giveback = GiveBack(self.holdings, catalogue, self.host, recorder, self.clock, self.say)
        self.responder = Responder(
            Parts(
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
        )
        self.use(rules)

    def say(self, level: str, event: str, **fields: Any) -> None:
        """Remembered in `said`."""
        self.said.append((level, event, fields))

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
