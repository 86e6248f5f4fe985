"""A Kubernetes node without Kubernetes: real containerd, runc, pods and containers, laid out as the kubelet lays them.

    with node() as n:
        pod = n.pod(namespace="shop", name="web-1")
        container = pod.container("sh", "-c", "sleep 1000", name="app", capabilities=("CAP_NET_RAW",))
        container.id, container.init_pid, container.exec("sleep", "60")

containerd runs in a mount and a network namespace of its own, with its own /run and /var/log; pids and cgroups are the
machine's. A program started by `inside` sees the standard paths (/run/containerd, /var/log/pods), and from outside they
are at `path`. Everything is born into cgroups named after this process (`cgroups.py`), and ends with them; mounts and
links end with the namespaces. Needs root and the programs of PROGRAMS. Processes that do more than busybox can get the
machine's own programs by `mounts=host_programs()`.

Times on a machine of 2 cores: node 0.3 s, pod 0.2 s, container 0.15 s, exec 0.2 s; its end 0.1 s.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from tests.real.conftest import await_that, line
from tests.real.containers import cgroups, image
from tests.real.containers.cgroups import below
from tests.real.containers.machine import MARK
from tests.real.containers.pod import Pod, Who

PROGRAMS = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
"""What is needed, and the Debian package that has it. `.ci/run` installs them."""

SOCKET = "/run/containerd/containerd.sock"
GATEWAY = ("10.244.0.1/24", "fd00:10:244::1/64")
"""The node's end of the bridge `cni0` that every pod is on."""

COMMAND_S = 30.0
"""How long one command of `ctr`, `ip` or `runc` may take."""

_numbers = itertools.count()

# Without CAP_SYS_RESOURCE no oom score can be lowered: 0 leaves it alone. The CRI has no client here.
_CONFIG = """
version = 2
root = "{root}"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
"""

_UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")
_HOLDER = """
mount -t tmpfs -o mode=755 stoop-run /run
mount --bind "$1" /var/log
mkdir -p /var/log/pods /var/log/containers /run/lock
ip link set lo up
ip link add cni0 type bridge
ip link set cni0 up
for address in $2; do ip address add "$address" dev cni0 nodad 2>/dev/null || ip address add "$address" dev cni0; done
echo held
exec sleep infinity
"""

# A line of a container as the CRI writes it (k8s.io/cri-api, "CRI logging": time, stream, F for a whole line, text).
# containerd gives stdout as 3, stderr as 4, and waits for 5 to be closed (runtime/v2/README.md, "Logging").
_LOGGER = """#!/bin/sh
exec >>"$2" 5>&-
copy() { while IFS= read -r said; do printf '%s %s F %s\\n' "$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)" "$1" "$said"; done; }
copy stderr <&4 &
copy stdout <&3
wait
"""


def missing() -> str:
    """Empty, or what a node needs that this machine has not, for the reason of a skip."""
    if os.geteuid() != 0:
        return "needs root: it makes namespaces, cgroups and containers"
    absent = sorted(program for program in PROGRAMS if shutil.which(program) is None)
    if not absent:
        static = image.is_static(shutil.which("busybox") or "")
        return "" if static else "busybox is not static here (Debian: apt-get install busybox-static)"
    packages = sorted({PROGRAMS[program] for program in absent})
    return f"no {', '.join(absent)} here (Debian: apt-get install {' '.join(packages)})"


class Node:
    """The node. `pid` holds its mount and network namespaces open: the reference for what is the host's."""

    def __init__(self, directory: Path, root: cgroups.CgroupRoot) -> None:
        self.directory = directory
        self.cgroups = root
        self.pid = 0
        self._daemons: list[subprocess.Popen[str]] = []
        self.pods: list[Pod] = []
        self._numbers = itertools.count(2)

    # ------------------------------------------------------------ looking

    @property
    def host_netns(self) -> str:
        """The file of the network namespace that is the host's here."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def root(self) -> Path:
        """The node's file system, as seen from outside its mount namespace."""
        return Path(f"/proc/{self.pid}/root")

    def path(self, inside: str) -> Path:
        """Where a file of the node (`/run/containerd/…`) is seen from outside."""
        return self.root / inside.lstrip("/")

    # ------------------------------------------------------------ doing

    def inside(self, *argv: str) -> list[str]:
        """The command that runs this one on the node: in its mount and network namespaces, in the current folder."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", f"--wdns={os.getcwd()}", "--", *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command on the node to its end; what it wrote. Raises AssertionError with what it said when it failed
        (unless `check` is off).

        It is born into the node's cgroup, so that whatever it leaves behind ends with the node.
        """
        with self.outputs() as (out, err):
            code = subprocess.run(
                self.inside(*argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=COMMAND_S,
                preexec_fn=self.cgroups.enter,
                env=self.environment(),
            ).returncode
            said = [Path(f"/proc/self/fd/{file.fileno()}").read_text(errors="replace") for file in (out, err)]
        assert code == 0 or not check, f"{' '.join(argv)}: {code}: {said[1].strip()}"
        return said[0]

    def ctr(self, *argv: str, check: bool = True) -> str:
        """`ctr` in the kubelet's namespace of containerd."""
        return self.run("ctr", "--namespace", "k8s.io", *argv, check=check)

    def start(self, *argv: str, name: str) -> subprocess.Popen[str]:
        """Start a daemon on the node; it ends with the node. Its output is in `<directory>/<name>.log`."""
        with open(self.directory / f"{name}.log", "w") as log:
            daemon = subprocess.Popen(
                self.inside(*argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=self.cgroups.enter,
                env=self.environment(),
            )
        self._daemons.append(daemon)
        return daemon

    def pod(
        self,
        name: str = "pod",
        namespace: str = "default",
        *,
        uid: str = "",
        qos: str = "burstable",
        host_network: bool = False,
    ) -> Pod:
        """A new running pod with its sandbox, and (unless `host_network`) a network namespace on the bridge `cni0`.

        `uid`: a new one when empty. `qos`: burstable, besteffort or guaranteed.
        """
        who = Who(name, namespace, uid or str(uuid.uuid4()))
        made = Pod(self, who, qos=qos, number=0 if host_network else next(self._numbers))
        self.pods.append(made)
        made.begin()
        return made

    def clear(self) -> None:
        """Remove every pod there is, whatever became of it: processes, bundles, cgroups, log files."""
        ids = [container.id for pod in self.pods for container in (*pod.containers, pod.sandbox)]
        if not ids:
            return
        cgroups.thaw(directory for root in self.cgroups.directories for directory in below(root / "kubepods"))
        # Some are gone already: by a test, or because they ended.
        self.ctr("task", "delete", "--force", *ids, check=False)
        self.ctr("containers", "delete", *ids, check=False)
        for pod in self.pods:
            pod.forget()
        self.pods.clear()

    # ------------------------------------------------------------ lifetime

    def begin(self) -> None:
        """Namespaces, containerd, the image."""
        self.cgroups.make()
        logs = self.directory / "log"
        logs.mkdir()
        logger = self.directory / "logger"
        logger.write_text(_LOGGER)
        logger.chmod(0o755)
        holder = subprocess.Popen(
            (*_UNSHARE, "sh", "-ec", _HOLDER, "holder", str(logs), " ".join(GATEWAY)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=self.cgroups.enter,
            env=self.environment(),
        )
        self._daemons.append(holder)
        assert line(holder) == "held"
        self.pid = holder.pid
        config = self.directory / "containerd.toml"
        config.write_text(_CONFIG.format(root=self.directory / "containerd"))
        self.start("containerd", "--config", str(config), name="containerd")
        archive = self.directory / "image.tar"
        image.write(archive, shutil.which("busybox") or "")
        await_that(self._answers, f"containerd answers (its log: {self.directory / 'containerd.log'})")
        self.ctr("images", "import", "--snapshotter", "overlayfs", str(archive))

    def end(self) -> None:
        """End all that was begun, and give the machine back. Idempotent."""
        self.cgroups.end()
        for daemon in self._daemons:
            if daemon.stdout is not None:
                daemon.stdout.close()
            daemon.wait(COMMAND_S)
        self._daemons.clear()
        # Mounts lie in a namespace that is gone: whatever is here now is ours alone.
        shutil.rmtree(self.directory, ignore_errors=False)

    def environment(self) -> dict[str, str]:
        """Of everything on the node: with the mark that tells whose it is."""
        return {"PATH": os.environ["PATH"], "HOME": "/root", MARK: str(os.getpid())}

    @contextlib.contextmanager
    def outputs(self) -> Iterator[tuple[IO[str], IO[str]]]:
        """Files for what a command writes: a pipe would stay open as long as anything that the command left behind."""
        new = partial(tempfile.NamedTemporaryFile, "w", dir=self.directory)
        with new() as out, new() as err:
            yield out, err

    def _answers(self) -> bool:
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(str(self.path(SOCKET)))
        except OSError:
            return False
        finally:
            probe.close()
        return True


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """A node for the body of the `with`. Raises AssertionError where `missing` tells why there can be none."""
    reason = missing()
    assert not reason, reason
    cgroups.sweep()
    name = f"{cgroups.PREFIX}-{os.getpid()}-{next(_numbers)}"
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    made = Node(directory, cgroups.CgroupRoot(name))
    try:
        made.begin()
        yield made
    finally:
        made.end()


def host_programs(*more: str) -> Sequence[str]:
    """For `mounts`: the machine's own programs and libraries, read-only, for what busybox can't do."""
    places = [path for path in ("/usr", "/lib", "/lib64", *more) if os.path.isdir(path)]
    return tuple(f"type=bind,src={os.path.realpath(path)},dst={path},options=rbind:ro" for path in places)
