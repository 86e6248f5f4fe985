"""Which container a process is in, told by the paths of its cgroups (cgroups(7), /proc/PID/cgroup).

Pure. Runtimes name a container's cgroup by its id, 64 hexadecimal digits:

    /kubepods/burstable/pod<uid>/<id>                                 cgroupfs driver
    /kubepods.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope   systemd driver (crio-, docker-)
    /docker/<id>, /system.slice/docker-<id>.scope, /machine.slice/libpod-<id>.scope/container
    /system.slice/containerd.service/kubepods-pod<uid>.slice:cri-containerd:<id>  systemd names, cgroupfs runtime
    /../../pod<uid>/<id>, /../<id>                                    seen from a cgroup namespace beside it

What is below its own cgroup a container may be able to name as it likes, so the **outermost** id counts: below the
pod's cgroup where there is one (a node that is itself a container, such as kind's, has its own id above the pods).

Limits. A container that may write the host's cgroup hierarchy can move itself anywhere; and one that is in no pod and
has a cgroup delegated to it can imitate a pod below it. LXC, systemd-nspawn and Fargate use other names: their
processes count as being in no container, which is the cautious side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from stoop.errors import TargetRefused

_UUID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
# A static pod's uid is the MD5 sum of its manifest: 32 digits without dashes.
_POD = re.compile(rf"(?:(?:.*-)?kubepods(?:-burstable|-besteffort)?-)?pod({_UUID}|[0-9a-f]{{32}})(?:\.slice)?")
_ID = re.compile(r"(?:([a-z][a-z0-9._-]*)-)?([0-9a-f]{64})(?:\.scope)?")

# Podman with the cgroupfs driver has a pod's id above its containers, bare; the containers themselves say libpod-.
_NAMED_ONLY = "libpod_parent"

_DELETED = " (deleted)"
# The kernel adds it to the path of a cgroup that was removed under a zombie (cgroups(7)).

CACHED_PATHS = 4096
"""Paths whose meaning is remembered: a few a container, on a node of some hundred containers; some 100 bytes each."""


class Place(NamedTuple):
    """What a cgroup's path tells. `directory`: the path of the container's own cgroup, "" without one."""

    container_id: str
    pod_uid: str
    directory: str


@lru_cache(maxsize=CACHED_PATHS)
def locate(path: str) -> Place:
    """Read one path as in /proc/PID/cgroup."""
    components = [part for part in path.removesuffix(_DELETED).split("/") if part]
    pods = (index for index, part in enumerate(components) if _POD.fullmatch(part.partition(":")[0]))
    first = next(pods, -1)
    pod_uid = _pod_uid(components[first]) if first >= 0 else ""
    named_only = False
    for index in range(max(first, 0), len(components)):
        part = components[index]
        container_id = _container_id(part, named_only=named_only)
        if container_id:
            return Place(container_id, pod_uid, "/" + "/".join(components[: index + 1]))
        named_only = named_only or part == _NAMED_ONLY
    return Place("", pod_uid, "")


def _pod_uid(component: str) -> str:
    match = _POD.fullmatch(component.partition(":")[0])
    return match[1].replace("_", "-") if match else ""


def _container_id(component: str, *, named_only: bool) -> str:
    match = _ID.fullmatch(component.rpartition(":")[2])
    if match is None:
        return ""
    runtime = match[1] or ""
    # conmon watches a container from outside it, in a cgroup that bears the container's id.
    if runtime.endswith("conmon") or (named_only and not runtime):
        return ""
    return match[2]


def container_of(cgroups: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """(container id, pod uid) of a process, each "" when it has none. Any hierarchy may tell.

    Raises TargetRefused when two hierarchies name different containers or pods: which one it is can't be proven.
    """
    container_id = pod_uid = ""
    for _, path in cgroups:
        place = locate(path)
        container_id = _same("container ids", container_id, place.container_id)
        pod_uid = _same("pod uids", pod_uid, place.pod_uid)
    return container_id, pod_uid


def _same(what: str, known: str, told: str) -> str:
    if known and told and known != told:
        raise TargetRefused(f"its cgroups name two {what}: {known} and {told}")
    return known or told
