"""A node's files as runtimes and the kubelet write them, below a directory: for tests of who reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from agent.node.bundles import Bundles, Names
from agent.node.kubelet import KubeletLogs
from agent.node.pods import Pods
from agent.node.procfs import Procfs

ID = "3f1c" * 16
SANDBOX = "5a5a" * 16
UID = "8c0e1c3e-5f1d-4a53-9b4f-0d6f6f0b1e77"
PID = 4242
ME = os.geteuid()
ALL = Names("shop", "web-1", UID, "app", "registry.test/web:1", SANDBOX)

CONTAINERD = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-name": "web-1",
    "io.kubernetes.cri.sandbox-uid": UID,
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.image-name": "registry.test/web:1",
    "io.kubernetes.cri.sandbox-id": SANDBOX,
}
LABELS = {
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.pod.uid": UID,
    "io.kubernetes.container.name": "app",
}
CRIO = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.Labels": json.dumps(LABELS),
    "io.kubernetes.cri-o.SandboxID": SANDBOX,
    "io.kubernetes.cri-o.ImageName": "registry.test/web:1",
}
DOCKER = {
    "Config": {"Labels": {**LABELS, "io.kubernetes.sandbox.id": SANDBOX}, "Image": "registry.test/web:1", "Env": []},
    "State": {"Pid": PID, "Running": True},
    "Name": f"/k8s_app_web-1_shop_{UID}_0",
}


class Node:
    """A node's files below a directory: runtimes' bundles, log directories, and a /proc with one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        boot = root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("0123\n")
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/mnt").symlink_to("mnt:[1]")
        self.in_cgroup(f"/kubepods/burstable/pod{UID}/{ID}")

    def in_cgroup(self, path: str) -> None:
        self.write(f"proc/{PID}/cgroup", f"0::{path}\n")

    def write(self, path: str, content: object) -> Path:
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(content if isinstance(content, str) else json.dumps(content))
        at.chmod(0o600)
        return at

    def containerd(self, annotations: dict[str, str], state: str = "/run/containerd", space: str = "k8s.io") -> Path:
        bundle = f"{state}/io.containerd.runtime.v2.task/{space}/{ID}"
        self.write(f"{bundle}/init.pid", str(PID))
        return self.write(f"{bundle}/config.json", {"ociVersion": "1.0.2", "annotations": annotations, "hooks": {}})

    def storage(self, annotations: dict[str, str], top: str = "/run") -> Path:
        below = f"containers/storage/overlay-containers/{ID}/userdata"
        self.write(f"/run/{below}/pidfile", f"{PID}\n")
        return self.write(f"{top}/{below}/config.json", {"annotations": annotations})

    def docker(self, config: object) -> Path:
        return self.write(f"/var/lib/docker/containers/{ID}/config.v2.json", config)

    def logs(self, directory: str = f"shop_web-1_{UID}", link: str = f"web-1_shop_app-{ID}.log") -> None:
        if directory:
            (self.root / "var/log/pods" / directory).mkdir(parents=True, exist_ok=True)
        links = self.root / "var/log/containers"
        links.mkdir(parents=True, exist_ok=True)
        if link:
            (links / link).symlink_to("/var/log/pods/nowhere")

    def bundles(self) -> Bundles:
        return Bundles(Procfs(str(self.root / "proc")), str(self.root), ME)

    def kubelet(self) -> KubeletLogs:
        return KubeletLogs(str(self.root), ME)

    def pods(self, mono_ns: Callable[[], int] = lambda: 1) -> Pods:
        return Pods(self.bundles(), self.kubelet(), mono_ns)
