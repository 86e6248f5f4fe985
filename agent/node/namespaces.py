"""Which namespaces a container and its pod have, and who else has them: by inode (namespaces(7)), never by name.

Read of the container's first process and of the pod's sandbox, not of the process that the alert names: that one may
have gone elsewhere (`unshare`, `setns`, `chroot`), which is told.
"""

from __future__ import annotations

import os

from agent.node.container_index import ContainerIndex
from agent.node.procfs import Procfs, namespace_inode, read_list
from stoop.errors import TargetGone, TargetRefused
from stoop.node import (
    ContainerFacts,
    ProcessFacts,
)
from stoop.pods import NamespaceFacts

KINDS = ("net", "pid", "mnt")

MAX_OTHERS = 2048
"""Other containers that are asked for their network: some 20 µs each; a node has some hundred."""

_GONE = (FileNotFoundError, ProcessLookupError)


class Namespaces:
    """`reference_pid`: whose namespaces stand for the host's. Where they can't be read, the agent's own do."""

    def __init__(self, procfs: Procfs, index: ContainerIndex, reference_pid: int) -> None:
        self._procfs = procfs
        self._index = index
        self._reference = self._host(reference_pid)

    def of(
        self, container: ContainerFacts, sandbox: ContainerFacts | None, process: ProcessFacts | None = None
    ) -> NamespaceFacts:
        """The namespaces of a container whose pod has this sandbox (None: not known).

        Raises TargetGone (its first process has ended), TargetRefused (they can't be read).
        """
        own = self._need(container)
        holder, pod_net = container, own["net"]
        if sandbox is not None and sandbox.container_id != container.container_id:
            holder, pod_net = sandbox, self._need(sandbox)["net"]
        return NamespaceFacts(
            container_id=container.container_id,
            init_pid=container.init_pid,
            holder_pid=holder.init_pid,
            sandbox_id=sandbox.container_id if sandbox is not None else "",
            net=own["net"],
            pid=own["pid"],
            mnt=own["mnt"],
            pod_net=pod_net,
            host_net=self._reference.get("net", 0),
            host_pid=self._reference.get("pid", 0),
            host_mnt=self._reference.get("mnt", 0),
            shared_with=self._shared_with(container, pod_net),
            elsewhere=self._elsewhere(process, container.init_pid, own) if process is not None else (),
        )

    def _need(self, container: ContainerFacts) -> dict[str, int]:
        found = self._inodes(container.init_pid) if container.init_pid else None
        if found is None:
            raise TargetGone(f"the first process of container {container.container_id[:12]} has ended")
        return found

    def _host(self, reference_pid: int) -> dict[str, int]:
        for pid in (reference_pid, os.getpid()):
            try:
                return self._read(pid)
            except OSError:  # a sandbox hides the first process's
                continue
        return {}

    def _inodes(self, pid: int) -> dict[str, int] | None:
        """None when it has gone. Raises TargetRefused when they can't be read."""
        try:
            return self._read(pid)
        except _GONE:
            return None
        except PermissionError as error:
            raise TargetRefused(f"the namespaces of pid {pid} can't be read (CAP_SYS_PTRACE is needed)") from error

    def _read(self, pid: int) -> dict[str, int]:
        return {kind: namespace_inode(f"{self._procfs.root}/{pid}/ns/{kind}") for kind in KINDS}

    def _shared_with(self, container: ContainerFacts, net: int) -> tuple[str, ...]:
        """Containers of other pods (where there are pods) in this network namespace."""
        found = []
        for number, other in enumerate(self._index.every()):
            same_pod = other.pod_uid == container.pod_uid if container.pod_uid else False
            if number >= MAX_OTHERS or same_pod or other.container_id == container.container_id:
                continue
            if self._net_of(other.directory) == net:
                found.append(other.container_id)
        return tuple(found)

    def _net_of(self, directory: str) -> int:
        """Of the first process in a cgroup; 0 where there is none."""
        try:
            pids = read_list(f"{directory}/cgroup.procs")
            return namespace_inode(f"{self._procfs.root}/{pids[0]}/ns/net") if pids and pids[0] else 0
        except OSError:
            return 0

    def _elsewhere(self, process: ProcessFacts, init_pid: int, own: dict[str, int]) -> tuple[str, ...]:
        theirs = self._inodes(process.pid)
        if theirs is None:
            return ()
        found = [kind for kind in KINDS if theirs[kind] != own[kind]]
        if "mnt" not in found and self._root(process.pid) != self._root(init_pid):
            found.append("root")
        return tuple(found)

    def _root(self, pid: int) -> str:
        """The root directory as it is named in its own mount namespace: `/` where nobody has changed it."""
        try:
            return os.readlink(f"{self._procfs.root}/{pid}/root")
        except OSError:
            return ""
