"""The control socket: how the `stoop` command speaks with a running agent.

A unix stream socket of mode 0600 at `control.path`. One JSON object a line (RFC 8259, UTF-8), in both directions:

    {"do": "status"}                                    → {"ok": true, "result": {…}}
    {"do": "mode", "mode": "observe", "for_s": 3600}    → {"ok": true, "result": …}
    {"do": "arm", "rule": "NAME"}  (`*`: every rule)    → {"ok": true, "result": …}
    {"do": "reload"}                                    → {"ok": true, "result": …}
    {"do": "active"}                                    → {"ok": true, "result": [what is held, …]}
    {"do": "undo", "name": "RUN or ACT"}  (`*`: all)    → {"ok": true, "result": [how each ended, …]}
    {"do": "extend", "name": "RUN or ACT", "for_s": 60} → {"ok": true, "result": [what is held, …]}
    {"do": "follow"}                                    → {"ok": true, …}, then {"record": {…}} lines until closed;
                                                          {"lost": N} where N were not read in time
    anything else                                       → {"ok": false, "error": "one line for a person"}

Framing is pure (`decode_request`, `encode_request`, `encode_reply`, `Lines`); `ask` and `Follow` are a small blocking
client for the command line. The agent's side of the socket is the agent's.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterator
from typing import Annotated, Any, Self

import msgspec

from stoop.errors import UserError
from stoop.spec import (
    Mode,
)

MAX_REQUEST = 4096
"""The longest request line, in bytes: the longest rule name anyone wrote fits many times."""

MAX_REPLY = 8 * 1024 * 1024
"""The longest line the client takes, in bytes: one record carries at most an alert's output (1 MiB, escaped)."""

ANSWER_S = 5.0
"""How long the client waits for an answer, in seconds: the agent answers from memory, so more means it is stuck."""

MAX_FOR_S = 30 * 24 * 3600.0
"""The longest time a mode can be set for, in seconds; for good is what no `for` at all says."""

EVERY_RULE = "*"
"""What `arm` takes for all rules at once, the limit over all of them included."""


class ControlError(UserError):
    """The agent can't be asked, or it said no."""


class Request(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True):
    """Base of what can be asked of an agent."""


class Status(Request, frozen=True, tag="status"):
    """How are you? The result is a mapping; see `stoop status --json`."""


class SetMode(Request, frozen=True, tag="mode"):
    """Change what the agent may do, at once; for `for_s` seconds, or for good."""

    mode: Mode
    for_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_FOR_S)] | None = None


class Arm(Request, frozen=True, tag="arm"):
    """Arm a rule again that disarmed itself; EVERY_RULE for all."""

    rule: Annotated[str, msgspec.Meta(min_length=1)]


class Reload(Request, frozen=True, tag="reload"):
    """Read the rules files again."""


class Active(Request, frozen=True, tag="active"):
    """What is held now, and until when."""


class Undo(Request, frozen=True, tag="undo"):
    """Give back what a run or an act holds, now; EVERY_HOLD for all."""

    name: Annotated[str, msgspec.Meta(min_length=1)]


class Extend(Request, frozen=True, tag="extend"):
    """Let what a run or an act holds last `for_s` seconds from now; 0 until it is undone by hand."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    for_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_FOR_S)]


class Subscribe(Request, frozen=True, tag="follow"):
    """Send every record from now on, until the connection is closed."""


AnyRequest = Status | SetMode | Arm | Reload | Active | Undo | Extend | Subscribe

_request = msgspec.json.Decoder(AnyRequest)
_encoder = msgspec.json.Encoder()


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a request: a result, or why not."""

    ok: bool
    result: Any = None
    error: str = ""


def decode_request(line: bytes) -> AnyRequest:
    """One line as a request. Raises ControlError with one line that says what is wrong with it."""
    if len(line) > MAX_REQUEST:
        raise ControlError(f"a request of {len(line)} bytes; the limit is {MAX_REQUEST}")
    try:
        request: AnyRequest = _request.decode(line)
    except msgspec.MsgspecError as error:
        raise ControlError(f"not a request: {error}") from error
    except UnicodeDecodeError as error:
        raise ControlError("not a request: not UTF-8") from error
    return request


def encode_request(request: AnyRequest) -> bytes:
    """One line, its newline included."""
    return _encoder.encode(request) + b"\n"


def encode_reply(reply: Reply) -> bytes:
    """One line, its newline included."""
    return _encoder.encode(reply) + b"\n"


def encode_record(record: dict[str, Any]) -> bytes:
    """One line of a followed stream: `record` is `Record.public()`."""
    return _encoder.encode({"record": record}) + b"\n"


class Lines:
    """Takes bytes as they come and gives whole lines, without their newline. Holds at most one unfinished line."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buffer = bytearray()
        self._seen = 0  # bytes already searched, so that a long line that drips in costs no quadratic search

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Lines completed by these bytes. Raises ControlError for one that is longer than the limit."""
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._seen)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._seen = 0
            self._check(len(line))
            yield line
        self._seen = len(self._buffer)
        self._check(self._seen)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ControlError(f"a line of more than {self._most} bytes")


def ask(path: str, request: AnyRequest, answer_s: float = ANSWER_S) -> Any:
    """Ask the agent that listens at `path` and return its result. Raises ControlError within `answer_s` seconds."""
    with _Connection(path, answer_s) as connection:
        return connection.ask(request)


class Follow:
    """The agent's records as they come. A context manager; `fileno` is for poll(2) beside other things.

    `lost`: records that the agent dropped because they were not read in time. `closed`: nothing more will come.
    Raises ControlError when the agent can't be reached or does not speak this protocol.
    """

    def __init__(self, path: str) -> None:
        self._connection = _Connection(path, ANSWER_S)
        self.closed = False
        self.lost = 0

    def __enter__(self) -> Self:
        self._connection.__enter__()
        try:
            self._connection.ask(Subscribe())
        except ControlError:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def fileno(self) -> int:
        """The descriptor that becomes readable when records (or the end) are there."""
        return self._connection.fileno()

    def read(self, wait_s: float | None = 0.0) -> list[dict[str, Any]]:
        """Records that came within `wait_s` seconds (None: until one comes or the end); sets `closed` at the end."""
        lines = self._connection.read(wait_s)
        if lines is None:
            self.closed = True
            return []
        return [record for line in lines if (record := self._record(line)) is not None]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.closed:
            yield from self.read(None)

    def _record(self, line: bytes) -> dict[str, Any] | None:
        """The record of a line; None for one that carries none: a count of lost ones, or what a newer agent sends."""
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ControlError(f"the agent's answer is not JSON: {error}") from error
        if not isinstance(value, dict):
            return None
        lost = value.get("lost")
        self.lost += lost if isinstance(lost, int) else 0
        record = value.get("record")
        return record if isinstance(record, dict) else None


class _Connection:
    """One connection to the control socket; every wait has the limit `answer_s`."""

    def __init__(self, path: str, answer_s: float) -> None:
        self._path = path
        self._answer_s = answer_s
        self._socket: socket.socket | None = None
        self._lines = Lines(MAX_REPLY)
        self._pending: list[bytes] = []

    def __enter__(self) -> Self:
        self._socket = connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(self._answer_s)
        try:
            connection.connect(self._path)
        except OSError as error:
            self.close()
            raise _unreachable(self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._socket is not None:
            self._socket.close()

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()

    def ask(self, request: AnyRequest) -> Any:
        """Send a request and return the result of its answer. Raises ControlError."""
        assert self._socket is not None
        try:
            self._socket.sendall(encode_request(request))
        except OSError as error:
            raise ControlError(f"the agent closed the connection: {_reason(error)}", where=self._path) from error
        line = self._line()
        try:
            reply = msgspec.json.decode(line, type=Reply)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ControlError(f"what listens there is no stoop agent: {error}", where=self._path) from error
        if not reply.ok:
            raise ControlError(reply.error or "the agent refused without a reason")
        return reply.result

    def _line(self) -> bytes:
        deadline = time.monotonic() + self._answer_s
        while True:
            lines = self.read(max(0.0, deadline - time.monotonic()))
            if lines is None:
                raise ControlError("the agent closed the connection without an answer", where=self._path)
            if lines:
                self._pending = lines[1:]
                return lines[0]
            if time.monotonic() >= deadline:
                raise ControlError(
                    f"no answer within {self._answer_s:g} s", where=self._path, hint="is the agent stuck? see its log"
                )

    def read(self, wait_s: float | None) -> list[bytes] | None:
        """Whole lines that came within `wait_s` seconds, None at the end. Raises ControlError."""
        assert self._socket is not None
        if self._pending:
            pending, self._pending = self._pending, []
            return pending
        try:
            if not select.select([self._socket], [], [], wait_s)[0]:
                return []
            data = self._socket.recv(65536)
        except OSError as error:
            if error.errno == errno.ECONNRESET:
                return None
            raise ControlError(f"reading failed: {_reason(error)}", where=self._path) from error
        if not data:
            return None
        return list(self._lines.feed(data))


def _unreachable(path: str, error: OSError) -> ControlError:
    """Why nobody answers at this path, and what to do about it."""
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return ControlError(f"no agent listens at {path}", hint="is it running? `stoop run -c …`")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ControlError(
            f"the agent's control socket {path} is not yours to open", hint="run this as the agent's user, or with sudo"
        )
    return ControlError(f"the control socket {path} can't be opened: {_reason(error)}", hint="see control.path")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
