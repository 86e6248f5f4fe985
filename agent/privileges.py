"""Give up what the helper does not need. It only gets frames, renders text and answers HTTP: no right at all."""

from __future__ import annotations

import ctypes
import os
import resource

NOBODY = 65534
"""The kernel's overflow user and group (/proc/sys/kernel/overflowuid): owns nothing anywhere."""

_CAPABILITY_VERSION_3 = 0x20080522
# include/uapi/linux/capability.h: two words for each of the three sets.

PR_SET_NO_NEW_PRIVS = 38
"""include/uapi/linux/prctl.h; prctl(2)."""


def drop() -> str:
    """Become nobody for good when root, leave no core dumps, gain no rights by exec. Linux only.

    Says what could not be dropped, "" when all was: in a user namespace that maps only root there is nobody to become
    (EINVAL), and root there is an ordinary user outside.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faults = [] if _no_new_privileges() else ["no_new_privs could not be set"]
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            faults.append(f"root's user was kept, without its capabilities: {error.strerror}")
    if not _no_capabilities():
        faults.append("capabilities were kept")
    return "; ".join(faults)


def _no_new_privileges() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)


def _no_capabilities() -> bool:
    """Empty the effective, permitted and inheritable sets (capset(2)): giving up needs no right."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    return bool(libc.capset(header, nothing) == 0)
