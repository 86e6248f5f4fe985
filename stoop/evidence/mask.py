"""Secrets in a process's environment, masked before anything is kept. Pure.

A name that sounds of a secret hides its whole value. Of other values only what looks like a secret by itself is hidden:
passwords in URLs, private keys, tokens of well-known forms. Evidence must be readable by more people than the secrets.
"""

from __future__ import annotations

import functools
import re

# Parts of names, between word borders or glued: DB_PASSWORD, PGPASSWORD, githubToken, SECRET_KEY, AUTHORIZATION.
_SECRET_NAME = re.compile(
    rb"passw|passphrase|(?:^|[^a-z])pass(?![a-z])|pwd(?!\w)|_pw\b|secret|token|api_?-?key|access_?-?key|private_?-?key|"
    rb"(?:^|_)key$|(?:^|_)keys$|enc(?:ryption)?_?key|signing_?-?key|credential|creds?(?![a-z])|auth(?!or(?!iz)|entic)|"
    rb"cookie|session_?id|bearer|salt(?![a-z])|jwt|dsn$|connection_?string|webhook|_sas\b|cert(?:ificate)?_?data|kubeconfig",
    re.IGNORECASE,
)

# The names of these hold places, not secrets, and an attacker's use of them is what one looks for.
_HARMLESS = frozenset({b"PWD", b"OLDPWD", b"SSH_AUTH_SOCK", b"XAUTHORITY", b"DBUS_SESSION_BUS_ADDRESS"})

_SECRET_VALUE = re.compile(
    rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*"  # PEM (RFC 7468), to the end of the value
    rb"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"  # a JSON Web Token (RFC 7519)
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an AWS access key's id
    rb"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|\bAIza[A-Za-z0-9_-]{30,}",
    re.DOTALL,
)
_URL_PASSWORD = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/@:]{0,256}:)[^\s/@]{1,1024}(@)")

MASK = b"***"

SHORT = 256
"""Bytes of an entry whose masked form is remembered, with 2,047 others."""


@functools.lru_cache(maxsize=1024)  # the processes of a container have the same names over and over
def is_secret_name(name: bytes) -> bool:
    """Whether a variable of this name is taken for a secret."""
    return name not in _HARMLESS and _SECRET_NAME.search(name) is not None


def mask_variable(entry: bytes) -> bytes:
    """One `NAME=value`, masked where it must be. Short ones are remembered: processes inherit them."""
    return _remembered(entry) if len(entry) < SHORT else _masked(entry)


def _masked(entry: bytes) -> bytes:
    """One `NAME=value`, masked where it must be. What is no such pair is masked as a value."""
    name, equals, value = entry.partition(b"=")
    if equals and value and is_secret_name(name):
        return b"%s=%s (%d bytes)" % (name, MASK, len(value))
    return mask_value(entry)


def mask_value(value: bytes) -> bytes:
    """A text with what looks like a secret by itself hidden."""
    if b"://" in value:
        value = _URL_PASSWORD.sub(rb"\1" + MASK + rb"\2", value)
    return _SECRET_VALUE.sub(MASK, value)


_remembered = functools.lru_cache(maxsize=2048)(_masked)


def mask_environment(block: bytes) -> list[bytes]:
    """The entries of /proc/PID/environ (proc(5): separated by NUL), masked, in order, without empty ones."""
    return [mask_variable(entry) for entry in block.split(b"\0") if entry]
