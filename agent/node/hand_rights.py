"""What the hand keeps of root's rights: entering network namespaces and changing networks, and nothing gained by exec.

Sources: capabilities(7), capset(2), PR_SET_NO_NEW_PRIVS of prctl(2); what setns(2) and nftables ask for.
"""

from __future__ import annotations

import ctypes

_VERSION_3 = 0x20080522
_NO_NEW_PRIVS = 38
_NET_ADMIN, _SYS_ADMIN = 12, 21


def keep_rights() -> None:
    """Keep CAP_NET_ADMIN and CAP_SYS_ADMIN as far as they are there. What can't be given up is of no use to anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice: the second three are bits 32 and up
    if libc.capget(header, held) == 0:
        wanted = held[1] & (1 << _NET_ADMIN | 1 << _SYS_ADMIN)
        libc.capset(header, (ctypes.c_uint32 * 6)(wanted, wanted, 0, 0, 0, 0))
