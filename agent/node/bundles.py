"""What the runtime itself wrote of a container: its OCI bundle, in a directory that only root may enter.

Where, and which annotations: containerd's pkg/cri/annotations and runtime v2 shim (`config.json`, `init.pid`); CRI-O's
pkg/annotations, with Podman's layout of containers/storage (`userdata/config.json`, `userdata/pidfile`); Docker's
config.v2.json with the labels of cri-dockerd. A bundle counts only if its first process is in that very container's
cgroup: what lies around of an earlier one proves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from agent.node import rootfile
from agent.node.container_id import container_of
from agent.node.procfs import Procfs
from stoop.errors import TargetRefused

MAX_CONFIG = 1024 * 1024
"""Bytes of a config.json that are read: usual ones have 10 KiB, some with thousands of mounts some 100."""

MAX_PID_FILE = 32
"""Bytes of a pid file: a number, and perhaps a line's end."""

MAX_IMAGE = 512
"""Characters of an image's name that are believed: a reference has at most 255 and a digest."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
# Kubernetes names are DNS subdomains (RFC 1123); container names of Docker may have capitals and underscores.
_UID = re.compile(r"[0-9A-Za-z-]{1,64}")
_ID = re.compile(r"[0-9a-f]{64}")

_STATES = (
    "/run/containerd",
    "/run/k3s/containerd",  # rke2 too
    "/run/k0s/containerd",
    "/var/snap/microk8s/common/run/containerd",
)
_TASKS = "io.containerd.runtime.v2.task"

_CRI = "io.kubernetes.cri."
_CRIO = "io.kubernetes.cri-o."
_KUBELET = "io.kubernetes."


class Names(NamedTuple):
    """What one source says of a container; "" for what it does not say."""

    namespace: str = ""
    pod: str = ""
    uid: str = ""
    container: str = ""
    image: str = ""
    sandbox_id: str = ""


class Bundle(NamedTuple):
    """A runtime's files of a container that were read and proven. `rootfs`: where its root is mounted, "" if unsaid."""

    names: Names
    init_pid: int
    rootfs: str = ""


class _Root(msgspec.Struct):
    path: str = ""


class _Config(msgspec.Struct):
    """Of an OCI config.json: all else is skipped unread."""

    annotations: dict[str, str] = {}
    root: _Root | None = None


class _DockerInner(msgspec.Struct):
    Labels: dict[str, str] | None = None
    Image: str = ""


class _DockerState(msgspec.Struct):
    Pid: int = 0


class _DockerConfig(msgspec.Struct):
    """Of Docker's config.v2.json."""

    Config: _DockerInner
    State: _DockerState
    Name: str = ""


_config = msgspec.json.Decoder(_Config)
_docker = msgspec.json.Decoder(_DockerConfig)
_labels = msgspec.json.Decoder(dict[str, str])


def of_annotations(annotations: dict[str, str]) -> Names:
    """The names in an OCI bundle's annotations: containerd's CRI, else CRI-O's; empty ones for other containers."""
    if f"{_CRI}container-type" in annotations:
        return checked(
            Names(
                namespace=annotations.get(f"{_CRI}sandbox-namespace", ""),
                pod=annotations.get(f"{_CRI}sandbox-name", ""),
                uid=annotations.get(f"{_CRI}sandbox-uid", ""),
                container=annotations.get(f"{_CRI}container-name", ""),
                image=annotations.get(f"{_CRI}image-name", ""),
                sandbox_id=annotations.get(f"{_CRI}sandbox-id", ""),
            )
        )
    if f"{_CRIO}ContainerType" in annotations:
        return _of_crio(annotations)
    return Names()


def _of_crio(annotations: dict[str, str]) -> Names:
    # The pod's own annotations lie beside CRI-O's, unprefixed: so the kubelet's labels are read from where they are
    # kept apart.
    try:
        labels = _labels.decode(annotations.get(f"{_CRIO}Labels", "{}"))
    except msgspec.DecodeError:
        return Names()
    sandbox = annotations[f"{_CRIO}ContainerType"] == "sandbox"
    return _of_labels(labels)._replace(
        sandbox_id=_fitting(_ID, annotations.get(f"{_CRIO}SandboxID", "")),
        image="" if sandbox else _image(annotations.get(f"{_CRIO}ImageName", "")),
    )


def _of_labels(labels: dict[str, str]) -> Names:
    """The labels that the kubelet gives each container (pkg/kubelet/types/labels.go)."""
    container = labels.get(f"{_KUBELET}container.name", "")
    return checked(
        Names(
            namespace=labels.get(f"{_KUBELET}pod.namespace", ""),
            pod=labels.get(f"{_KUBELET}pod.name", ""),
            uid=labels.get(f"{_KUBELET}pod.uid", ""),
            container="" if container == "POD" else container,
            sandbox_id=labels.get(f"{_KUBELET}sandbox.id", ""),
        )
    )


def checked(names: Names) -> Names:
    """Only what has the form of such a name: no control characters, no endless text."""
    return Names(
        namespace=_fitting(_NAME, names.namespace),
        pod=_fitting(_NAME, names.pod),
        uid=_fitting(_UID, names.uid),
        container=_fitting(_NAME, names.container),
        image=_image(names.image),
        sandbox_id=_fitting(_ID, names.sandbox_id),
    )


def _fitting(form: re.Pattern[str], value: str) -> str:
    return value if form.fullmatch(value) else ""


def _image(value: str) -> str:
    return value if len(value) <= MAX_IMAGE and value.isascii() and value.isprintable() else ""


class Bundles:
    """Reads them. `root`: where the node's file system is seen ("" for `/`)."""

    def __init__(self, procfs: Procfs, root: str = "", owner: int = rootfile.ROOT) -> None:
        self._procfs = procfs
        self._root = root
        self._owner = owner

    def read(self, container_id: str) -> Bundle | str:
        """What the runtime says of the container with this full id, or why that can't be told."""
        return self._read(container_id, (self._kubernetes, self._storage, self._docker, self._others))

    def oci(self, container_id: str) -> Bundle | str:
        """The same by OCI bundles only: Docker's own file names its containers, but not where their roots are."""
        return self._read(container_id, (self._kubernetes, self._storage, self._others))

    def _read(self, container_id: str, places: Iterable[Callable[[str], Bundle | None]]) -> Bundle | str:
        try:
            for look in places:
                found = look(container_id)
                if found is not None:
                    return self._proven(found, container_id)
        except rootfile.Unproven as error:
            return str(error)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return f"the runtime's files of container {container_id[:12]} can't be read: {error}"
        return f"no runtime's files of container {container_id[:12]} are seen here"

    def _proven(self, found: Bundle, container_id: str) -> Bundle | str:
        try:
            inside, _ = container_of(self._procfs.cgroups(found.init_pid))
        except (FileNotFoundError, ProcessLookupError, TargetRefused):
            inside = ""
        if inside != container_id:
            return f"the runtime's first process {found.init_pid} is not in container {container_id[:12]}"
        return found

    # ------------------------------------------------------------ where runtimes keep them

    def _kubernetes(self, container_id: str) -> Bundle | None:
        return self._first(f"{state}/{_TASKS}/k8s.io/{container_id}" for state in _STATES)

    def _others(self, container_id: str) -> Bundle | None:
        return self._first(f"{_STATES[0]}/{_TASKS}/{space}/{container_id}" for space in ("moby", "default"))

    def _first(self, directories: Iterable[str]) -> Bundle | None:
        for directory in directories:
            found = self._oci(directory, f"{directory}/init.pid")
            if found is not None:
                return found
        return None

    def _storage(self, container_id: str) -> Bundle | None:
        """CRI-O keeps both files in the run directory, Podman its bundle in the other one."""
        below = f"containers/storage/overlay-containers/{container_id}/userdata"
        pid_file = f"/run/{below}/pidfile"
        return self._oci(f"/run/{below}", pid_file) or self._oci(f"/var/lib/{below}", pid_file)

    def _oci(self, directory: str, pid_file: str) -> Bundle | None:
        data = self._file(f"{directory}/config.json", MAX_CONFIG)
        if data is None:
            return None
        pid = self._file(pid_file, MAX_PID_FILE)
        config = _config.decode(data)
        return Bundle(of_annotations(config.annotations), _number(pid), _rootfs(directory, config.root))

    def _docker(self, container_id: str) -> Bundle | None:
        data = self._file(f"/var/lib/docker/containers/{container_id}/config.v2.json", MAX_CONFIG)
        if data is None:
            return None
        told = _docker.decode(data)
        names = _of_labels(told.Config.Labels or {})
        if not names.container and not names.pod:
            names = names._replace(container=_fitting(_NAME, told.Name.removeprefix("/")))
        return Bundle(names._replace(image=_image(told.Config.Image)), told.State.Pid)

    def _file(self, path: str, limit: int) -> bytes | None:
        try:
            return rootfile.read(self._root + path, limit, self._owner)
        except FileNotFoundError:
            return None


def _rootfs(directory: str, root: _Root | None) -> str:
    """A path that is not absolute counts from the bundle (OCI config.md, "Root")."""
    return os.path.normpath(os.path.join(directory, root.path)) if root is not None and root.path else ""


def _number(data: bytes | None) -> int:
    """A pid file's number; 0 (which is in no container) where there is none."""
    text = (data or b"0").strip()
    return int(text) if text.isdigit() else 0
