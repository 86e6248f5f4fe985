"""Programs of the node, or of the agent's image, that captures need: where they are, and what else they need.

Nothing is run here: this is asked on the reflex.
"""

from __future__ import annotations

import ctypes
import os

from stoop.catalogue import CATALOGUE

TCPDUMP, SYSDIG = "tcpdump", "sysdig"

SYSDIG_ACT, LOG_ACT = "kubernetes:sysdig", "kubernetes:log"

BTF = "/sys/kernel/btf/vmlinux"
"""What the kernel tells of its own types (CONFIG_DEBUG_INFO_BTF): sysdig's modern eBPF driver fits itself to it."""

NEEDS = {"evidence:pcap": TCPDUMP, "kubernetes:tcpdump": TCPDUMP}
"""By actionner: the program that it can't do without."""

MAY_LACK = frozenset({*NEEDS, SYSDIG_ACT, LOG_ACT})
"""Those that need more of the node than the others."""

PLACES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin")
"""Where a program is looked for beyond PATH: Debian keeps tcpdump from users by leaving it out of theirs."""

POD_LOGS = "/var/log/pods"
"""Where the kubelet has the logs of containers: `<namespace>_<pod>_<uid>/<container>/<count>.log`."""

CAPABILITIES = {"CAP_DAC_READ_SEARCH": 2, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_NET_RAW": 13,
                "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}  # fmt: skip
# include/uapi/linux/capability.h

_VERSION_3 = 0x20080522


def find(name: str) -> str:
    """The path of a program; "" where there is none that may be run."""
    for place in dict.fromkeys((*os.environ.get("PATH", "").split(":"), *PLACES)):
        path = f"{place}/{name}"
        if place.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def lacking() -> dict[str, str]:
    """Why a capture can't be taken on this node, by actionner; those that can are left out."""
    held = effective()
    found = {}
    for actionner, program in NEEDS.items():
        rights = CATALOGUE.actions[actionner].spec.node_rights
        lacks = ", ".join(right for right in rights if not held & (1 << CAPABILITIES[right]))
        if not find(program):
            found[actionner] = f"there is no {program} here: it belongs into the agent's image, or on the node's PATH"
        elif lacks:
            found[actionner] = f"{program} can't be run as it must be: the agent has no {lacks}"
    if not find(SYSDIG):
        found[SYSDIG_ACT] = f"there is no {SYSDIG} here: it belongs into the agent's image, or on the node's PATH"
    elif not os.path.exists(BTF):
        found[SYSDIG_ACT] = f"the kernel has no {BTF}, which sysdig's modern eBPF driver needs"
    if not is_named(POD_LOGS):
        found[LOG_ACT] = f"there is no {POD_LOGS} here: it is the kubelet's, to be mounted into the agent's pod"
    return found


def is_named(path: str) -> bool:
    """Whether its directory has this name. It is not looked at itself: a mount there may hang, and we with it."""
    directory, _, name = path.rpartition("/")
    try:
        return name in os.listdir(directory)
    except OSError:
        return False


def effective() -> int:
    """The capabilities of this process, as bits (capget(2)); 0 where they can't be told."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capget(header, held):
        return 0
    return int(held[0]) | int(held[3]) << 32
