"""Pods and containers of a test node: cgroups, annotations, network and log files as the kubelet and the CRI make them.

Names of annotations: pkg/cri/annotations of containerd; of log files: pkg/kubelet/kuberuntime of Kubernetes.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.node.procfs import namespace_inode
from tests.real.containers import cgroups
from tests.real.containers.image import IMAGE

if TYPE_CHECKING:
    from tests.real.containers.node import Node

BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
CRI = "io.kubernetes.cri"

PAUSE = ("sleep", "2147483647")
"""What the sandbox runs, for want of a real pause program."""


class Who(NamedTuple):
    """What a pod is called."""

    name: str
    namespace: str
    uid: str


class Pod:
    """One pod: its sandbox container holds the namespaces that the others join.

    `number`: of its addresses, 0 for a pod in the host's network: that has no `ip`, no `ip6` and no `host_link`.
    """

    def __init__(self, node: Node, who: Who, *, qos: str, number: int) -> None:
        self.node = node
        self.name, self.namespace, self.uid = who
        self.host_network = not number
        self.ip = f"10.244.0.{number}" if number else ""
        self.ip6 = f"fd00:10:244::{number:x}" if number else ""
        self.host_link = f"veth{number}" if number else ""
        self.containers: list[Container] = []
        kind = "" if qos == "guaranteed" else f"{qos}/"
        self.cgroup = f"/{node.cgroups.name}/kubepods/{kind}pod{self.uid}"
        self.sandbox = Container(self, "", kind="sandbox", attempt=0)

    @property
    def netns(self) -> str:
        """The file of its network namespace."""
        return f"/proc/{self.sandbox.init_pid}/ns/net"

    def begin(self) -> None:
        """Start the sandbox and connect it."""
        share = ("--with-ns", f"network:{self.node.host_netns}") if self.host_network else ()
        self.sandbox.begin(PAUSE, share)
        if not self.host_network:
            self._connect()

    def container(
        self,
        *command: str,
        name: str = "app",
        capabilities: Sequence[str] = (),
        mounts: Sequence[str] = (),
        options: Sequence[str] = (),
        attempt: int = 0,
    ) -> Container:
        """Start one more container of this pod; it runs when this returns.

        `command`: a busybox command, or one of a program that `mounts` brings. `capabilities`: beside the usual
        ones of a container (`CAP_…`). `mounts`: as `ctr run --mount` takes them. `options`: more flags of `ctr run`
        (`--privileged`, `--read-only`, `--cap-drop CAP_…`, `--with-ns pid:/proc/PID/ns/pid`).
        """
        made = Container(self, name, kind="container", attempt=attempt)
        flags = [f"--cap-add={capability}" for capability in capabilities]
        flags += [f"--mount={mount}" for mount in mounts]
        for kind in ("network", "ipc", "uts"):
            file = {"network": "net"}.get(kind, kind)
            flags += ["--with-ns", f"{kind}:/proc/{self.sandbox.init_pid}/ns/{file}"]
        self.containers.append(made)
        made.begin(command, (*flags, *options))
        return made

    def again(self, container: Container, *command: str) -> Container:
        """Start a container that ended once more, as the kubelet does: what is left of it goes, another of its name
        comes under another id."""
        container.remove()
        return self.container(*command, name=container.name, attempt=container.attempt + 1)

    def renew(self) -> None:
        """Another sandbox in place of one that ended, in the same pod: the kubelet ends all its containers before."""
        for container in (*self.containers, self.sandbox):
            container.remove()
        self.sandbox = Container(self, "", kind="sandbox", attempt=self.sandbox.attempt + 1)
        self.begin()

    def forget(self) -> None:
        """Remove its cgroups and log files, as the kubelet does when all its containers have gone."""
        for root in self.node.cgroups.directories:
            cgroups.remove(root.parent / self.cgroup.lstrip("/"))
        logs = self.node.directory / "log"
        shutil.rmtree(logs / self.logs.removeprefix("/var/log/"))
        for container in self.containers:
            container.link.unlink(missing_ok=True)

    @property
    def logs(self) -> str:
        """The directory of its log files on the node."""
        return f"/var/log/pods/{self.namespace}_{self.name}_{self.uid}"

    def run(self, *argv: str) -> str:
        """Run a program of the machine to its end in the pod's network namespace; what it wrote."""
        return self.node.run("nsenter", f"--net={self.netns}", "--", *argv)

    def _connect(self) -> None:
        pid, link = self.sandbox.init_pid, self.host_link
        self.node.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.node.run("ip", "link", "set", link, "master", "cni0", "up")
        script = (
            f"ip link set lo up; ip address add {self.ip}/24 dev eth0; ip address add {self.ip6}/64 dev eth0 nodad; "
            "ip link set eth0 up; ip route add default via 10.244.0.1; ip -6 route add default via fd00:10:244::1"
        )
        self.run("sh", "-ec", script)


class Container:
    """One container, run by containerd's shim and runc. `pid`s are the machine's."""

    def __init__(self, pod: Pod, name: str, *, kind: str, attempt: int) -> None:
        self.pod = pod
        self.node = pod.node
        self.name = name
        self.kind = kind
        self.attempt = attempt
        self.id = secrets.token_hex(32)
        self.init_pid = 0
        self.cgroup = f"{pod.cgroup}/{self.id}"
        self._execs = itertools.count()

    # ------------------------------------------------------------ looking

    @property
    def bundle(self) -> Path:
        """Its bundle (config.json, init.pid, rootfs), as seen from outside the node."""
        return self.node.path(f"{BUNDLES}/{self.id}")

    @property
    def log(self) -> str:
        """Its log file's path on the node."""
        return f"{self._log_directory()}/{self.attempt}.log"

    @property
    def v2(self) -> Path:
        """Its cgroup v2."""
        return self.node.cgroups.v2.parent / self.cgroup.lstrip("/")

    @property
    def directories(self) -> list[Path]:
        """Its cgroups, in each hierarchy."""
        return [root.parent / self.cgroup.lstrip("/") for root in self.node.cgroups.directories]

    @property
    def upper(self) -> Path:
        """The upper directory of its overlay, which no mount hides."""
        rootfs = f"{BUNDLES}/{self.id}/rootfs"
        for line in Path(f"/proc/{self.node.pid}/mounts").read_text().splitlines():
            _, target, _, options, *_ = line.split()
            if target == rootfs:
                return Path(next(word.partition("=")[2] for word in options.split(",") if word.startswith("upperdir")))
        raise AssertionError(f"{rootfs} is not mounted")

    def namespace(self, kind: str) -> int:
        """The inode of its init's namespace (`net`, `pid`, `mnt`)."""
        return namespace_inode(f"/proc/{self.init_pid}/ns/{kind}")

    def pids(self) -> set[int]:
        """Who is in its cgroup v2 now, directly."""
        return {int(pid) for pid in (self.v2 / "cgroup.procs").read_text().split()}

    # ------------------------------------------------------------ doing

    def begin(self, command: Sequence[str], flags: Sequence[str]) -> None:
        """Start it, with its log file and links."""
        pid_file = self.node.directory / f"{self.id}.pid"
        annotations = [f"--annotation={key}={value}" for key, value in self._annotations()]
        self._write_log_links()
        logger = f"binary://{self.node.directory}/logger?log={self.log}"
        log = ("--null-io",) if self.kind == "sandbox" else ("--log-uri", logger)
        self.node.ctr(
            *("run", "--detach", "--snapshotter", "overlayfs", "--pid-file", str(pid_file), "--cgroup", self.cgroup),
            *(*annotations, *log, *flags, IMAGE, self.id, *command),
        )
        self.init_pid = int(pid_file.read_text())

    def exec(self, *command: str) -> int:
        """Start a command in it as `kubectl exec` does, detached; its pid. Its parent is the shim."""
        name = f"exec{next(self._execs)}"
        self.node.ctr("task", "exec", "--detach", "--exec-id", name, self.id, *command)
        for line in self.node.ctr("task", "ps", self.id).splitlines():
            pid, _, info = line.strip().partition(" ")
            if f"ExecID:{name}," in info:
                return int(pid)
        raise AssertionError(f"no process is {name} of {self.id[:12]}: it has ended already")

    def run(self, *command: str) -> str:
        """Run a command in it to its end; what it wrote. Raises AssertionError when it fails."""
        return self.node.ctr("task", "exec", "--exec-id", f"run{next(self._execs)}", self.id, *command)

    def remove(self) -> None:
        """SIGKILL, then take away task, bundle and snapshot, as the kubelet does after a container's end."""
        self.node.ctr("task", "delete", "--force", self.id)
        self.node.ctr("containers", "delete", self.id)

    # ------------------------------------------------------------ what the kubelet and the CRI lay out

    def _annotations(self) -> Iterator[tuple[str, str]]:
        yield f"{CRI}.container-type", self.kind
        yield f"{CRI}.sandbox-id", self.id if self.kind == "sandbox" else self.pod.sandbox.id
        yield f"{CRI}.sandbox-name", self.pod.name
        yield f"{CRI}.sandbox-namespace", self.pod.namespace
        yield f"{CRI}.sandbox-uid", self.pod.uid
        if self.kind == "sandbox":
            yield f"{CRI}.sandbox-log-directory", self.pod.logs
        else:
            yield f"{CRI}.container-name", self.name
            yield f"{CRI}.image-name", IMAGE

    def _log_directory(self) -> str:
        return f"{self.pod.logs}/{self.name}" if self.name else self.pod.logs

    @property
    def link(self) -> Path:
        """The link to its log file, outside the node."""
        name = f"{self.pod.name}_{self.pod.namespace}_{self.name}-{self.id}.log"
        return self.node.directory / "log/containers" / name

    def _write_log_links(self) -> None:
        """`/var/log` of the node lies in the state directory: what is written there shows on the node."""
        logs = self.node.directory / "log"
        below = logs / self._log_directory().removeprefix("/var/log/")
        below.mkdir(parents=True, exist_ok=True)
        if self.kind == "sandbox":
            return
        (below / f"{self.attempt}.log").touch(mode=0o640)
        self.link.symlink_to(self.log)

    def config(self) -> dict[str, object]:
        """What its bundle's config.json says."""
        told = json.loads((self.bundle / "config.json").read_bytes())
        assert isinstance(told, dict)
        return told
