"""What it costs to know whose container a process is in, on a node with 250 pods: known, new, and one that is gone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.node.host import LinuxHost
from agent.node.kubelet import KubeletLogs
from agent.node.pods import Pods
from agent.node.procfs import read_file
from bench.table import Row, percentile
from bench.victims import Victim

PODS = 250
CONTAINERS = 3
"""Of each pod, its sandbox among them."""

HITS = 5000
MISSES = 100

CGROUPS = Path("/sys/fs/cgroup")
TASKS = "run/containerd/io.containerd.runtime.v2.task/k8s.io"

ANNOTATIONS = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.container-name": "app",
}


def _mounts() -> list[Path]:
    """Of v2, and of v1's freezer where there is one."""
    v2 = next((path for path in (CGROUPS, CGROUPS / "unified") if (path / "cgroup.controllers").exists()), None)
    freezer = CGROUPS / "freezer"
    return [path for path in (v2, freezer) if path is not None and (path / "cgroup.procs").exists()]


@contextlib.contextmanager
def _node() -> Iterator[tuple[str, str]]:
    """The cgroups of a node's pods; (a container's path below a mount, its id). Removed afterwards."""
    top = f"stoop-bench-{os.getpid()}"
    below = [
        f"kubepods/burstable/pod{pod}/{secrets.token_hex(32)}"
        for pod in (uuid.uuid4() for _ in range(PODS))
        for _ in range(CONTAINERS)
    ]
    try:
        for mount in _mounts():
            for path in below:
                (mount / top / path).mkdir(parents=True)
        yield f"{top}/{below[PODS]}", below[PODS].rpartition("/")[2]
    finally:
        for mount in _mounts():
            for directory, _, _ in os.walk(mount / top, topdown=False):
                os.rmdir(directory)


def _bundle(root: Path, container_id: str, pid: int) -> None:
    """As containerd writes it, with some 300 mounts: 40 KiB."""
    directory = root / TASKS / container_id
    directory.mkdir(parents=True)
    mount = {"destination": "/var/run/secrets", "type": "bind", "source": "/var/lib/kubelet/pods", "options": ["rbind"]}
    config = {"ociVersion": "1.0.2", "mounts": [mount] * 300, "annotations": ANNOTATIONS}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "init.pid").write_text(str(pid))


def _logs(root: Path, container_id: str, pod_uid: str) -> None:
    """As the kubelet makes them, for every pod and container of such a node."""
    pods, links = root / "var/log/pods", root / "var/log/containers"
    pods.mkdir(parents=True)
    links.mkdir(parents=True)
    for number in range(PODS):
        uid = pod_uid if number == PODS // 2 else uuid.uuid4()
        (pods / f"shop_web-{number}_{uid}").mkdir()
        for name in range(CONTAINERS):
            of = container_id if number == PODS // 2 and not name else secrets.token_hex(32)
            (links / f"web-{number}_shop_app-{of}.log").symlink_to("nowhere")


def _times(count: int, act: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        act()
        found.append(time.perf_counter() - begun)
    return found


def _us(times: list[float]) -> str:
    return f"p50 {percentile(times, 0.5) * 1e6:.1f} µs, p99 {percentile(times, 0.99) * 1e6:.1f} µs"


def resolve() -> Iterator[Row]:
    """Hits, a first look at a bundle, misses. Needs root."""
    with _node() as (path, container_id), tempfile.TemporaryDirectory(prefix="stoop-bench-") as name:
        victim = Victim()
        host = LinuxHost(root=name)
        try:
            for mount in _mounts():
                (mount / path / "cgroup.procs").write_text(str(victim.pid))
            _bundle(Path(name), container_id, victim.pid)
            yield from _rows(host, victim.pid, container_id, Path(name))
        finally:
            host.close()
            victim.end()


def _rows(host: LinuxHost, pid: int, container_id: str, root: Path) -> Iterator[Row]:
    index = host._containers.index
    with host.hold(pid) as held:
        facts = held.facts
    pod = host.pod_of(container_id, facts.pod_uid)
    if pod.namespace.value != "shop":
        raise RuntimeError(f"the bundle was not believed: {pod.why}")

    def hit() -> None:
        container, uid = container_id, facts.pod_uid
        if index.find(container[:12])[0] is None or host.pod_of(container, uid) is not pod:
            raise RuntimeError("it was not known")

    hit()
    floor = _times(HITS, lambda: read_file(f"/proc/{pid}/cgroup"))
    hits = _times(HITS, hit)
    what = f"container id → cgroups, pod and names, known ({PODS} pods, {PODS * CONTAINERS} containers)"
    reached = percentile(hits, 0.5) <= 50e-6
    yield Row(what, f"reading /proc/PID/cgroup: {_us(floor)}", _us(hits), "≤ 50 µs p50", reached, HITS)

    whole = _times(HITS, lambda: host.find_container(container_id))
    yield Row("the same with its processes and the first of them", "-", _us(whole), "-", None, HITS)

    fresh: list[Pods] = [Pods(host._pods._bundles, host._pods._logs, time.monotonic_ns) for _ in range(MISSES)]
    first = _times(MISSES, lambda: fresh.pop().of(container_id, facts.pod_uid))
    yield Row("names of a new container: config.json of 40 KiB", "-", _us(first), "-", None, MISSES)

    _logs(root, container_id, facts.pod_uid)
    logs = KubeletLogs(str(root))
    if logs.read(container_id, facts.pod_uid).namespace != "shop":
        raise RuntimeError("the log directories were not believed")
    listed = _times(MISSES, lambda: logs.read(container_id, facts.pod_uid))
    what = f"its names by the kubelet's directories ({PODS} pods, {PODS * CONTAINERS} links)"
    yield Row(what, "-", _us(listed), "-", None, MISSES)

    mounts = [mount for mount in (index._cgroups.v2, index._cgroups.freezer) if mount]
    walk = _times(MISSES // 4, lambda: [sum(1 for _ in os.walk(mount)) for mount in mounts])
    misses = _times(MISSES, lambda: index.find(secrets.token_hex(32)))
    again = _times(HITS, lambda: index.find("f" * 64))
    reached = percentile(misses, 0.5) <= 5e-3
    measured = f"{_us(misses)}; the same id again: {_us(again)}"
    yield Row("container id that nobody has", f"os.walk: {_us(walk)}", measured, "≤ 5 ms", reached, MISSES)

    def rebuild() -> None:
        index._true, index._again_ns = False, 0
        index.update()

    built = _times(20, rebuild)
    yield Row("building the index (start, after an overflow)", "-", _us(built), "-", None, 20)
