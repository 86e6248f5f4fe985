"""What an act wants to keep → the job for a worker, one function a kind. Nothing here looks into what a target made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent.capture import box, processes
from agent.jobs import (
    AsideJob,
    DownloadJob,
    Job,
    KeepFileJob,
    KeptFile,
    LogJob,
    LogTail,
    MemoryJob,
    SnapshotJob,
    SyscallsJob,
    TrafficJob,
)
from agent.programs import POD_LOGS, SYSDIG, TCPDUMP, find
from stoop.captures import (
    AsideWanted,
    DownloadWanted,
    FileWanted,
    KeepFileWanted,
    LogWanted,
    MemoryWanted,
    SnapshotWanted,
    SyscallsWanted,
    TrafficWanted,
    Wanted,
)
from stoop.evidence.limits import Limits
from stoop.evidence.manifest import Origin
from stoop.node import ContainerFacts, Lookup, ProcessFacts
from stoop.pods import PodFacts


class Orders(msgspec.Struct, frozen=True):
    """Makes jobs. `store`: the evidence store's directory."""

    node_name: str
    boot_id: str
    store: str
    limits: Limits
    node: Lookup

    def job(self, wanted: Wanted, given: Sequence[ProcessFacts], container: ContainerFacts | None) -> Job:
        """The job that keeps what is wanted of these processes, and of this container."""
        about = wanted.about
        common: dict[str, Any] = {
            "key": container.container_id if container is not None else (given[0].container_id or given[0].identity),
            "origin": Origin(
                node=self.node_name,
                boot_id=self.boot_id,
                alert=about.alert,
                run=about.run,
                act=about.act,
                rule=about.rule,
                action=about.action,
                actionner=about.actionner,
            ),
            "store": self.store,
            "limits": self.limits,
            "target": wanted.target,
            "processes": processes(given),
            "container": box(container) if container is not None else None,
        }
        return ORDERS[type(wanted)](self.node, wanted, container, common)


def _memory(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, MemoryWanted)
    return MemoryJob(**common, regions=wanted.regions, bytes=wanted.bytes)


def _snapshot(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, SnapshotWanted)
    changes = wanted.changes and container is not None
    return SnapshotJob(
        **common,
        executable_bytes=wanted.executable_bytes,
        # The runtime's word. Where there is none the reader asks the target's own mount table, and says so.
        upper=node.upper_of(container).directory if changes and container is not None else "",
        list_upper=changes,
        log=_log_tail(node, container, wanted.log_bytes),
    )


def _keep_file(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, KeepFileWanted)
    return KeepFileJob(**common, **_of_file(node, wanted, container), path=wanted.path, limit=wanted.limit)


def _aside(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, AsideWanted)
    return AsideJob(
        **common,
        **_of_file(node, wanted, container),
        file=msgspec.convert(wanted.file, KeptFile),
        step=wanted.step,
        bundle=wanted.bundle,
        sha256=wanted.sha256,
    )


def _of_file(node: Lookup, wanted: FileWanted, container: ContainerFacts | None) -> dict[str, Any]:
    assert container is not None
    upper = node.upper_of(container)
    return {
        "upper": upper.directory,
        "device": upper.device,
        "lower": wanted.image_files,
        "interpreters": wanted.interpreters,
        "host_mounts": wanted.host_mounts,
    }


def _log(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, LogWanted)
    assert container is not None
    pod, _, name = log_directory(node.pod_of(container.container_id, container.pod_uid)).rstrip("/").partition("/")
    return LogJob(
        **common,
        directory=POD_LOGS,
        pod=pod,  # "" where a name is missing: that the worker refuses
        containers=(name,),
        others=True,
        lines=wanted.lines,
        tell=wanted.tell,
    )


def _download(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, DownloadWanted)
    return DownloadJob(**common, path=wanted.path, limit=wanted.limit, host_mounts=wanted.host_mounts)


def _traffic(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, TrafficWanted)
    return TrafficJob(
        **common,
        program=find(TCPDUMP) or TCPDUMP,
        network=wanted.network,
        host_networks=wanted.host_networks,
        duration_s=wanted.duration_s,
        snaplen=wanted.snaplen,
        bytes=wanted.bytes,
    )


def _syscalls(node: Lookup, wanted: Wanted, container: ContainerFacts | None, common: dict[str, Any]) -> Job:
    assert isinstance(wanted, SyscallsWanted)
    return SyscallsJob(
        **common,
        program=find(SYSDIG) or SYSDIG,
        containers=wanted.containers,
        seconds=wanted.seconds,
        snaplen=wanted.snaplen,
        bytes=wanted.bytes,
    )


Order = Callable[[Lookup, Wanted, ContainerFacts | None, dict[str, Any]], Job]

ORDERS: dict[type[Wanted], Order] = {
    MemoryWanted: _memory,
    SnapshotWanted: _snapshot,
    KeepFileWanted: _keep_file,
    AsideWanted: _aside,
    LogWanted: _log,
    DownloadWanted: _download,
    TrafficWanted: _traffic,
    SyscallsWanted: _syscalls,
}
"""Each kind of what is wanted: the job that keeps it."""


def _log_tail(node: Lookup, container: ContainerFacts | None, most: int) -> LogTail | None:
    """The newest of the kubelet's log files of this container; None where the node does not tell its names."""
    if container is None or not most:
        return None
    name = log_directory(node.pod_of(container.container_id, container.pod_uid))
    return LogTail(POD_LOGS, name, most) if name else None


def log_directory(pod: PodFacts) -> str:
    """The directory of a container's log files below POD_LOGS, with a `/` at its end; "" where a name is missing."""
    names = (pod.namespace.value, pod.name.value, pod.uid.value, pod.container.value)
    plain = all(name and "/" not in name and name not in (".", "..") for name in names)
    return f"{names[0]}_{names[1]}_{names[2]}/{names[3]}/" if plain else ""
