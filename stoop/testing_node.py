"""A fake node for whoever tests against the responder: its processes and containers are values."""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import trio

from stoop.errors import ActFailed, TargetError, TargetGone, TargetRefused
from stoop.node import CaptureHands, ContainerFacts, ProcessFacts
from stoop.pods import NOTHING, NamespaceFacts, PodFacts, Source, Told, Upper

SECOND_NS = 1_000_000_000

NOW_NS = 1_800_000_000 * SECOND_NS
"""When every test begins (2027-01-15 08:00 UTC)."""

BOOT_ID = "0123456789abcdef"

HOST_NAMESPACE, CONTAINER_NAMESPACE = 1, 2
"""Inodes of the fake node's namespaces, of either kind."""


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

    def again(self) -> FakeHold:
        """The same process, held once more."""
        self._host.open_holds += 1
        return FakeHold(self._host, self._held())

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
        self.network = None
        self.capture: CaptureHands | None = None

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

    def children(self, pid: int) -> tuple[int, ...]:
        """Those that live."""
        return tuple(child for child, process in self._living() if process.facts.ppid == pid)

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

    def upper_of(self, container: ContainerFacts) -> Upper:
        """There are no files here."""
        return Upper(why="its files are not here")

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

    def pod_containers(self, container: ContainerFacts) -> tuple[str, ...]:
        """Of the processes that are in a container of the same pod."""
        facts = [process.facts for process in self.processes.values()]
        others = [each.container_id for each in facts if container.pod_uid and each.pod_uid == container.pod_uid]
        return tuple(dict.fromkeys((container.container_id, *others)))

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

    def pause(self, container: ContainerFacts) -> bool:
        """As `freeze`: there is one at a time here."""
        return self.freeze(container, True)

    def go_on(self, container: ContainerFacts) -> None:
        """As `freeze`."""
        self.freeze(container, False)

    def is_paused(self, container: ContainerFacts) -> bool:
        """Nothing is."""
        return False

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
