"""Rules about parameter values that several declarations share. Pure; each yields a fault for what is wrong.

They are as strict as Falco Talon's and no stricter, so that a file that loads there loads here; where a rule follows
a Go library, it says so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from stoop.spec import (
    ParameterFault,
)
from stoop.units import parse_duration

# An int64 as Go's strconv.ParseInt takes it with base 10: a sign is fine; blanks, underscores and other scripts' digits
# are not. 19 digits hold every int64, and leading zeros don't count.
_GO_INTEGER = re.compile(r"([+-]?)(?=[0-9])0*([0-9]{0,19})", re.ASCII)
_INT64_MAX = 2**63 - 1
# Leading zeros are fine, as in Go; what is longer is no mask, and int() refuses thousands of digits.
_MASK = re.compile(r"[0-9]{1,8}", re.ASCII)
_HTTP_URL = re.compile(r"https?://[^\s/?#]+[^\s]*", re.IGNORECASE)
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+):([0-9]{1,5})", re.ASCII)
_PORT_MAX = 65535


def given(name: str, value: object) -> Iterator[ParameterFault]:
    """A required text must not be empty (Go validates `required` as "not the zero value")."""
    if not value:
        yield ParameterFault("param-required", name, f"{name} is required and must not be empty")


MAX_PLACE = 512
"""Bytes of a prefix: S3 takes 1,024 of a whole key, Google too, and the object's name has 255."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}", re.ASCII)
# S3 takes 63 characters of fewer kinds, Google 222 with dots. What else it may not be its store says.


def bucket(name: str, value: str) -> Iterator[ParameterFault]:
    """The name of a bucket, required."""
    yield from given(name, value)
    if value and not _BUCKET.fullmatch(value):
        message = f"{name} can't be {value!r}: letters, digits, '.', '_' and '-' are a bucket's name"
        yield ParameterFault("param-value", name, message)


def prefix(name: str, value: str) -> Iterator[ParameterFault]:
    """What stands before an object's name: no step up, nothing that can't be seen."""
    parts = value.strip("/").split("/")
    if not value.isprintable() or len(value.encode(errors="surrogatepass")) > MAX_PLACE:
        yield ParameterFault("param-value", name, f"{name} must be printable and have at most {MAX_PLACE} bytes")
    elif value.strip("/") and any(part in ("", ".", "..") for part in parts):
        yield ParameterFault("param-value", name, f"{name} must not hold '//', '.' or '..' as a step: {value!r}")


def not_empty(name: str, value: Sequence[object] | dict[str, str]) -> Iterator[ParameterFault]:
    """A required list or map needs at least one entry."""
    if not value:
        yield ParameterFault("param-empty", name, f"{name} needs at least one entry")


def number(name: str, value: int, low: int, high: int | None = None) -> Iterator[ParameterFault]:
    """A number from `low` to `high`, both included; without `high` there is no upper bound."""
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        yield ParameterFault("param-value", name, f"{name} must be {wanted}, not {value}")


def duration(name: str, value: str) -> Iterator[ParameterFault]:
    """A time such as `90s` or `1h`; `0` for ever."""
    try:
        parse_duration(value)
    except ValueError as error:
        yield ParameterFault("param-value", name, f"{name}: {error}")


def choice(name: str, value: str, allowed: Iterable[str]) -> Iterator[ParameterFault]:
    """One of a few words, spelt exactly so; empty counts as not given."""
    words = tuple(allowed)
    if value and value not in words:
        yield ParameterFault("param-value", name, f"{name} must be {' or '.join(words)}, not {value!r}")


def replicas(name: str, value: str) -> Iterator[ParameterFault]:
    """A count (`3`) or a percentage (`33%`, 0 to 100); empty counts as not given."""
    if value and not _is_replicas(value):
        wanted = "a whole number such as '3' or a percentage from '0%' to '100%'"
        yield ParameterFault("param-value", name, f"{name} must be {wanted}, not {value!r}")


def _is_replicas(value: str) -> bool:
    text = value.removesuffix("%")
    match = _GO_INTEGER.fullmatch(text)
    if match is None:
        return False
    sign, digits = match.groups()
    count = int(digits or "0")
    return (not count or sign != "-") and count <= (_INT64_MAX if text == value else 100)


def cidrs(name: str, values: Iterable[str]) -> Iterator[ParameterFault]:
    """Networks in CIDR form (RFC 4632, RFC 4291); host bits may be set, zones and bare addresses are refused.

    Follows Go's net.ParseCIDR: an IPv6 address that maps an IPv4 one keeps a mask of up to 128 bits.
    """
    for value in values:
        if not _is_cidr(value):
            wanted = "a network such as '10.0.0.0/8' or '2001:db8::/32'"
            yield ParameterFault("cidr", name, f"{name} must hold networks: {value!r} is not {wanted}")


def _is_cidr(value: str) -> bool:
    address, _, mask = value.partition("/")
    if "%" in address or not _MASK.fullmatch(mask):
        return False
    try:
        return int(mask) <= ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return False


def url(name: str, value: str) -> Iterator[ParameterFault]:
    """A URL of http or https with a host. Required."""
    if not value:
        yield from given(name, value)
    elif not _HTTP_URL.fullmatch(value):
        yield ParameterFault("param-value", name, f"{name} must begin with http:// or https:// and name a host")


def host_port(name: str, value: str) -> Iterator[ParameterFault]:
    """`host:port`, an IPv6 address in brackets. Required."""
    if not value:
        yield from given(name, value)
        return
    match = _HOST_PORT.fullmatch(value)
    if match is None or not 0 < int(match[1]) <= _PORT_MAX:
        yield ParameterFault("param-value", name, f"{name} must be host:port such as 'mail.example.com:587'")
