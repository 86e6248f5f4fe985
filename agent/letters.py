"""What the reflex and its courier say to each other: messages of one SOCK_SEQPACKET socket, each one packet. Pure.

reflex → courier   Setup (once, first) · Send (with the bundle's descriptor, SCM_RIGHTS)
courier → reflex   Open (it has dropped its rights) · Sent
"""

from __future__ import annotations

import enum

import msgspec
from msgspec.msgpack import Decoder as _Decoder

from stoop.extras import missing

NOT_INSTALLED = "the Python package obstore is not installed: pip install 'stoop[outputs]'"

MAX_LETTER = 96 * 1024
"""Bytes: a service account's key has 2.4 KiB, a rule's parameters are bounded by its file's loader."""


def can_send() -> bool:
    """Whether what sends to stores is installed."""
    return not missing("outputs")


class Fate(enum.StrEnum):
    """What becomes of a try to send something."""

    SENT = "sent"
    LATER = "later"  # the way to the store failed: tried again soon
    MEND = "mend"  # a person has to mend something (credentials, a bucket): tried again, ever less often
    NEVER = "never"  # the bundle is not what was written: no try will be better


class Letter(msgspec.Struct, frozen=True, tag=True):
    """Base of every message."""


class Setup(Letter, frozen=True):
    """The configuration's words for the stores. Secrets: nothing of this is ever logged."""

    aws_region: str = ""
    aws_access_key: str = ""
    aws_secret_key: str = ""
    aws_role_arn: str = ""
    aws_external_id: str = ""
    gcp_credentials: str = ""
    minio_endpoint: str = ""
    minio_access_key: str = ""
    minio_secret_key: str = ""
    minio_use_ssl: bool = False

    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in any message."""
        google = self.gcp_credentials if self.gcp_credentials.lstrip().startswith("{") else ""  # else it is a path
        keys = (self.aws_access_key, self.aws_secret_key, self.aws_external_id, google)
        return tuple(filter(None, (*keys, self.minio_access_key, self.minio_secret_key)))


class Send(Letter, frozen=True):
    """Put this part ("" for all) of the bundle that comes along into a bucket. `deadline_s`: from now on.

    `again`: it was tried before, so the object may be there.
    """

    id: int
    target: str  # aws:s3, minio:s3, gcp:gcs
    bucket: str
    region: str
    object: str
    part: str
    deadline_s: float
    again: bool = False


class Open(Letter, frozen=True):
    """It takes letters now. `faults`: rights that it could not drop."""

    faults: str = ""


class Sent(Letter, frozen=True):
    """How that ended. `reason`: one line for a person, without secrets. `bytes`, `sha256`: of what was sent."""

    id: int
    fate: Fate
    reason: str = ""
    bytes: int = 0
    sha256: str = ""


ToCourier = Setup | Send
FromCourier = Open | Sent

_encoder = msgspec.msgpack.Encoder()
_to_courier: _Decoder[ToCourier] = _Decoder(ToCourier)
_from_courier: _Decoder[FromCourier] = _Decoder(FromCourier)


class LetterError(ValueError):
    """A message is too large, or is none."""


def encode(letter: Letter) -> bytes:
    """One packet. Raises LetterError when it is too large."""
    data = _encoder.encode(letter)
    if len(data) > MAX_LETTER:
        raise LetterError(f"a letter of {len(data)} bytes; the limit is {MAX_LETTER}")
    return data


def to_courier(data: bytes) -> ToCourier:
    """Raises LetterError."""
    try:
        return _to_courier.decode(data)
    except msgspec.MsgspecError as error:
        raise LetterError(f"not a letter: {error}") from error


def from_courier(data: bytes) -> FromCourier:
    """Raises LetterError."""
    try:
        return _from_courier.decode(data)
    except msgspec.MsgspecError as error:
        raise LetterError(f"not a letter: {error}") from error
