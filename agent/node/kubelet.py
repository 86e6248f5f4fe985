"""What the kubelet's log directories say of a container. The weaker word: a pod with a hostPath there can forge it.

Names: pkg/kubelet/kuberuntime of Kubernetes. `/var/log/pods/<namespace>_<pod>_<uid>/` is a directory a pod, and
`/var/log/containers/<pod>_<namespace>_<container>-<id>.log` a link a container. No Kubernetes name holds a `_`.
"""

from __future__ import annotations

import os

from agent.node import rootfile
from agent.node.bundles import Names, checked

MAX_ENTRIES = 4096
"""Names of one directory that are looked at: a node has at most some hundred pods (110 by default) and containers. With
more the rest is not seen: the cautious side."""

PODS = "/var/log/pods"
CONTAINERS = "/var/log/containers"


class KubeletLogs:
    """Reads them. `root`: where the node's file system is seen ("" for `/`)."""

    def __init__(self, root: str = "", owner: int = rootfile.ROOT) -> None:
        self._root = root
        self._owner = owner

    def read(self, container_id: str, pod_uid: str) -> Names:
        """What they say of this container (full id); empty names where they say nothing, or two different things."""
        link = self._only(CONTAINERS, f"-{container_id}.log")
        directory = self._only(PODS, f"_{pod_uid}") if pod_uid else ""
        by_link = _parts(link.removesuffix(f"-{container_id}.log"), ("pod", "namespace", "container"))
        by_directory = _parts(directory, ("namespace", "pod", "uid"))
        for key in ("namespace", "pod"):
            said = {str(names[key]) for names in (by_link, by_directory) if names}
            if len(said) > 1:
                return Names()
        return checked(Names(**(by_link | by_directory)))

    def _only(self, directory: str, suffix: str) -> str:
        """The one entry with this end that `owner` made; "" where there is none, or more than one."""
        found = ""
        try:
            with os.scandir(self._root + directory) as entries:
                for count, entry in enumerate(entries):
                    if count >= MAX_ENTRIES:
                        break
                    if not entry.name.endswith(suffix) or entry.stat(follow_symlinks=False).st_uid != self._owner:
                        continue
                    if found:
                        return ""
                    found = entry.name
        except OSError:
            return ""
        return found


def _parts(name: str, keys: tuple[str, str, str]) -> dict[str, str]:
    parts = name.split("_")
    return dict(zip(keys, parts, strict=True)) if len(parts) == len(keys) else {}
