"""nftables by its own library, libnftables.so.1: transactions as text, and a table read back.

Only for the short-lived processes of `agent.node.hand`: the library ends the whole process when it gets no netlink
socket, reads all chains and sets of the namespace for each command (a pod may make a million), and has state that its
contexts share. Sources: libnftables(3), nft(8), include/nftables/libnftables.h.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re

LIBRARY = "libnftables.so.1"

MAX_MESSAGE = 300
"""Characters of the library's messages that are told."""

_STATELESS, _NUMERIC, _TERSE = 1 << 2, 0b1111 << 7, 1 << 11
# NFT_CTX_OUTPUT_*: no counters; protocols, priorities, symbols and times as numbers (it would look them up in files);
# no elements of named sets.

_NUMBERS = {os.strerror(number): number for number in (errno.EEXIST, errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP)}
_COUNTER = re.compile(r"counter packets (\d+) bytes (\d+) (accept|drop)$", re.MULTILINE)
_CHAIN = re.compile(r"^\tchain ([\w-]+) \{\n((?:\t\t.*\n)*)\t\}", re.MULTILINE)


class NftError(OSError):
    """The library refused: errno where its message tells it, else EINVAL; strerror is the message's first line."""


class Nft:
    """One context, of the network namespace of the thread that makes it. `close` it."""

    def __init__(self) -> None:
        self._library = load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NftError(errno.ENOMEM, f"{LIBRARY} gives no context")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, text: str, output: int = 0) -> str:
        """Run commands as one transaction: all or nothing. Gives what they print. Raises NftError."""
        self._library.nft_ctx_output_set_flags(self._context, output)
        failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        said = self._library.nft_ctx_get_error_buffer(self._context).decode("utf-8", "backslashreplace")
        printed: str = self._library.nft_ctx_get_output_buffer(self._context).decode("utf-8", "backslashreplace")
        if failed:
            first = said.strip().partition("\n")[0][:MAX_MESSAGE] or "no reason given"
            number = next((number for word, number in _NUMBERS.items() if first.endswith(word)), errno.EINVAL)
            raise NftError(number, first)
        return printed

    def listed(self, commands: str, counted: bool = False) -> str | None:
        """What list commands print: rules without what changes by itself, unless `counted`. None when there is nothing
        of that name. Raises NftError."""
        try:
            return self.run(commands, _NUMERIC | _TERSE | (0 if counted else _STATELESS))
        except NftError as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def counters(text: str) -> dict[str, tuple[int, int]]:
    """(packets, bytes) that the rules of a listing let through and dropped, by way. Pure.

    `allowed_out`, `dropped_in`, …; what a pod forwards (`through`) counts as going out.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, body in _CHAIN.findall(text):
        way = "in" if name.startswith("in-") else "out"
        for packets, size, verdict in _COUNTER.findall(body):
            key = f"{'allowed' if verdict == 'accept' else 'dropped'}_{way}"
            before = found.get(key, (0, 0))
            found[key] = (before[0] + int(packets), before[1] + int(size))
    return found


def rule_counts(text: str) -> dict[str, int]:
    """How many rules each base chain of a listing holds. Pure."""
    return {
        name: sum(not line.strip().startswith("type ") for line in body.splitlines())
        for name, body in _CHAIN.findall(text)
    }


def fingerprint(text: str) -> str:
    """Tells whether a table is still as it was listed: 32 hex digits. Pure."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


_loaded: list[ctypes.CDLL] = []


def load() -> ctypes.CDLL:
    """The library, loaded once. Raises NftError when it isn't there."""
    if not _loaded:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            hint = "install libnftables1 (Debian) or nftables-libs"
            raise NftError(errno.ENOENT, f"{LIBRARY} can't be loaded: {error} ({hint})") from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        _loaded.append(library)
    return _loaded[0]
