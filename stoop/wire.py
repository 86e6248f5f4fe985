"""Messages between the processes of an agent: tagged msgpack in frames of a 4-byte little-endian length.

Pure: bytes in, messages out. Who sends what:

    reflex → helper   Hello · RulesSource · SnapshotReply · Recorded · LogLine · PodsWanted · PodsKey · PodsNow
    helper → reflex   Serving · SnapshotAsk · RulesBegin · RuleReady · RulesEnd · RulesRejected · PodsKeyAsk ·
                      PodKnown · PodGone · PodsListed · PodsFresh · PodsTrouble
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from stoop.podmeta import PodMeta
from stoop.record import Record

MAX_FRAME = 64 * 1024 * 1024
"""The largest frame taken, in bytes: all rules files of a node in one (their loader's own limit is far below)."""

_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message."""


class Hello(Message, frozen=True):
    """The first frame: what the helper has to serve. `metrics_port` 0 means any free one, `metrics_address` "" none."""

    node: str
    metrics_address: str
    metrics_port: int
    log_format: str  # text | json
    version: str
    pods_told: bool = True  # whether something tells labels, annotations and owners: else rules that ask are warned of


class RulesSource(Message, frozen=True):
    """The rules files as read just now: (name, content) in order of merging. The helper parses and checks them."""

    generation: int
    files: tuple[tuple[str, bytes], ...]


class SnapshotReply(Message, frozen=True):
    """The answer to SnapshotAsk: plain counters and histograms, and what /readyz and /healthz need."""

    id: int
    samples: dict[str, list[tuple[tuple[str, ...], Any]]]  # metric name -> [(label values, number or [buckets, sum])]
    ready: bool
    detail: dict[str, Any]


class Recorded(Message, frozen=True):
    """One record, for the log (later: notifiers, uplink)."""

    record: Record


class LogLine(Message, frozen=True):
    """A line for the log: a constant message and keys."""

    level: str  # debug | info | warning | error | critical
    event: str
    at_ns: int
    fields: dict[str, Any]


class Serving(Message, frozen=True):
    """The helper listens for /metrics here; port 0: it could not, and `error` says why."""

    address: str
    port: int
    error: str = ""


class SnapshotAsk(Message, frozen=True):
    """Asks for a SnapshotReply with this id."""

    id: int


class RulesBegin(Message, frozen=True):
    """The files of this generation are good; `count` RuleReady follow: the reflex never takes them whole."""

    generation: int
    count: int
    digest: str


class RuleReady(Message, frozen=True):
    """One finished rule: a msgpack-encoded `stoop.rules.model.RuleForm`."""

    generation: int
    rule: msgspec.Raw


class RulesEnd(Message, frozen=True):
    """All rules of this generation were sent. Warnings are lines for a person."""

    generation: int
    warnings: tuple[str, ...] = ()


class RulesRejected(Message, frozen=True):
    """The files of this generation can't be used: one line a problem, with file:line:column; what is odd besides."""

    generation: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class PodsWanted(Message, frozen=True):
    """Asks for the metadata of this node's pods from now on: of the API (`watch`) or of the kubelet."""

    source: str  # watch | kubelet
    server: str  # https://HOST:PORT
    server_name: str  # what its certificate must bear; "" for HOST
    node: str
    interval_s: float


class PodsKeyAsk(Message, frozen=True):
    """Asks for a PodsKey of now: the helper may read neither file."""


class PodsKey(Message, frozen=True):
    """The token to show and the certificates (PEM) to check against. `error`: why they can't be read, else ""."""

    token: bytes
    authorities: bytes
    error: str = ""


class PodsNow(Message, frozen=True):
    """An alert is about a pod that is not known: ask now, and not when it is time."""


class PodKnown(Message, frozen=True):
    """A pod is there, or is another than it was."""

    pod: PodMeta


class PodGone(Message, frozen=True):
    """A pod was deleted."""

    uid: str


class PodsListed(Message, frozen=True):
    """All pods of now were told: these. Whatever else is known has gone. `left_out`: more than can be kept."""

    uids: tuple[str, ...]
    left_out: int = 0


class PodsFresh(Message, frozen=True):
    """What was told is still so: the source has just proven that it would have said otherwise."""


class PodsTrouble(Message, frozen=True):
    """The source can't be asked, and why; "" when it can again."""

    error: str


AnyMessage = (
    Hello
    | RulesSource
    | SnapshotReply
    | Recorded
    | LogLine
    | Serving
    | SnapshotAsk
    | RulesBegin
    | RuleReady
    | RulesEnd
    | RulesRejected
    | PodsWanted
    | PodsKeyAsk
    | PodsKey
    | PodsNow
    | PodKnown
    | PodGone
    | PodsListed
    | PodsFresh
    | PodsTrouble
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class WireError(ValueError):
    """The peer does not speak this protocol; the connection can't go on."""


def encode(message: AnyMessage) -> bytes:
    """One frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Takes bytes as they come and gives whole messages. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[AnyMessage]:
        """Messages completed by these bytes. Raises WireError for a frame that is too large or not a message."""
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, offset)
                if size > MAX_FRAME:
                    raise WireError(f"a frame of {size} bytes; the limit is {MAX_FRAME}")
                end = offset + _LENGTH.size + size
                if len(self._buffer) < end:
                    return
                body = bytes(self._buffer[offset + _LENGTH.size : end])
                offset = end
                try:
                    message: AnyMessage = _decoder.decode(body)
                except msgspec.MsgspecError as error:
                    raise WireError(f"not a message: {error}") from error
                yield message
        finally:
            del self._buffer[:offset]
