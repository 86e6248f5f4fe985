"""The token that an HTTP sender must show, read again whenever its file changes."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Callable

from stoop.errors import StartRefused
from stoop.intake.limits import TOKEN_BYTES, TOKEN_SECONDS
from stoop.intake.sink import Warn

_HINT = "write a secret into it, or set intake.http.token_file"


def shown_token(authorization: bytes) -> bytes | None:
    """The token in an Authorization header: of `Bearer T`, or the password of `Basic` (RFC 6750, RFC 7617)."""
    scheme, _, rest = authorization.strip().partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":
            try:
                _, colon, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
            except binascii.Error:
                return None
            return password if colon else None
    return None


def readers_besides(path: str) -> str:
    """Who besides its owner may read a token's file by its mode: "the group 0640", "everybody 0644"; "" for nobody.

    A file that can't be looked at is nobody's here: who needs it says so.
    """
    try:
        return _readers(os.stat(path).st_mode)
    except OSError:
        return ""


def _readers(mode: int) -> str:
    who = "everybody" if mode & stat.S_IROTH else "the group" if mode & stat.S_IRGRP else ""
    return f"{who} {stat.S_IMODE(mode):04o}" if who else ""


class TokenFile:
    """Admits whoever shows the token in the file. The token itself is never logged or shown.

    The file is asked by stat(2) at most every `every` seconds of `clock`, and read again when it changed. While it is
    missing, empty or unreadable nobody is admitted, which is said once. One that others may read counts, and is said.
    """

    def __init__(self, path: str, warn: Warn, clock: Callable[[], float], every: float = TOKEN_SECONDS) -> None:
        self._path = path
        self._warn = warn
        self._clock = clock
        self._every = every
        self._checked = 0.0
        self._version: tuple[int, int, int, int, int] | None = None
        self._token = b""
        self._fault = ""
        self._readers = ""

    def load(self) -> None:
        """Read it for the first time. Raises StartRefused when there is no usable token."""
        self._checked = self._clock()
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise StartRefused(f"no token: {_say(error)}", where=self._path, hint=_HINT) from error

    def admits(self, authorization: bytes) -> bool:
        """Whether the header shows the token; compared in constant time."""
        self._refresh()
        shown = shown_token(authorization)
        return bool(self._token) and shown is not None and hmac.compare_digest(shown, self._token)

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < self._every:
            return
        self._checked = now
        try:
            if self._version_now() != self._version:
                self._read()
        except (OSError, ValueError) as error:
            self._token, self._version = b"", None
            if self._fault != _say(error):
                self._fault = _say(error)
                self._warn("no usable token: every HTTP sender is refused", path=self._path, error=self._fault)
        else:
            self._fault = ""

    def _version_now(self) -> tuple[int, int, int, int, int]:
        there = os.stat(self._path)
        return there.st_dev, there.st_ino, there.st_mode, there.st_mtime_ns, there.st_size

    def _read(self) -> None:
        # The version is taken before the content: a change between the two is seen at the next look.
        version = self._version_now()
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            raw = os.read(fd, TOKEN_BYTES + 1)
            readers = _readers(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        token = raw.strip()
        if not token:
            raise ValueError("the file is empty")
        if len(raw) > TOKEN_BYTES or b"\n" in token:
            raise ValueError(f"the file must hold one line of at most {TOKEN_BYTES} bytes")
        self._token, self._version = token, version
        if readers != self._readers:
            self._readers = readers
            self._tell_readers()

    def _tell_readers(self) -> None:
        if self._readers:
            hint = "chmod 600 it, and give the senders a new token"
            self._warn("the token can be read by others", path=self._path, readers=self._readers, hint=hint)


def _say(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
