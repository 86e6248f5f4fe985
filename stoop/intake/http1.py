"""HTTP/1.1 as senders of alerts speak it (RFC 9112), on top of httptools: pure, no socket.

POST on any path is one alert: the first JSON value of the body, as in Talon. `Content-Type: application/x-ndjson` or
`Transfer-Encoding: chunked` is a stream, one alert a line, taken as it arrives; its answer comes at its end. A stream
may be a PUT as well: that is what `curl -T .` sends.

| what | answer |
|---|---|
| an alert; a stream without a bad line | 200, `Content-Length: 0`, kept open |
| not an alert; a stream with a bad line (the good ones count) | 400 and why, kept open |
| another method, not HTTP | 400, closed |
| no or a wrong token | 401, closed, the body not looked at |
| a body over 1 MiB (told by its `Content-Length` already), a header over 16 KiB | 413, 431, closed |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import httptools

from stoop.alert import decode
from stoop.errors import AlertError
from stoop.intake.limits import Limits
from stoop.intake.talk import Haul, Lines, bare

Admit = Callable[[bytes], bool]

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}
_CHALLENGE = 'WWW-Authenticate: Bearer, Basic realm="stoop"\r\n'

_AUTHORIZATION = b"authorization"
_CONNECTION = b"connection"
_EXPECT = b"expect"
_LENGTH = b"content-length"
_TYPE = b"content-type"
_ENCODING = b"transfer-encoding"
_HEEDED = frozenset({_AUTHORIZATION, _CONNECTION, _EXPECT, _LENGTH, _TYPE, _ENCODING})

# A reason can quote what was sent; an answer stays short.
_REASON_CHARACTERS = 200


def _answer(status: int, text: str = "", connection: str = "") -> bytes:
    body = f"{text[:_REASON_CHARACTERS]}\n".encode("utf-8", "replace") if text else b""
    head = f"HTTP/1.1 {status} {_STATUS[status]}\r\n"
    if status == 401:
        head += _CHALLENGE
    if body:
        head += "Content-Type: text/plain; charset=utf-8\r\n"
    if connection:
        head += f"Connection: {connection}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Request:
    """What is known of one request until its end."""

    __slots__ = ("bad", "body", "expecting", "first_bad", "header_bytes", "headers", "lines", "taken")

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.header_bytes = 0
        self.body: bytes | bytearray = b""
        self.expecting = False  # the sender waits for `100 Continue`
        self.lines: Lines | None = None  # of a stream
        self.taken = 0  # alerts of this stream
        self.bad = 0  # lines of this stream that are not alerts
        self.first_bad: AlertError | None = None

    def add_body(self, data: bytes) -> None:
        if not self.body:
            self.body = data  # nearly always all of it
            return
        if isinstance(self.body, bytes):
            self.body = bytearray(self.body)
        self.body += data

    def feed_stream(self, data: bytes, haul: Haul) -> None:
        assert self.lines is not None
        before = len(haul.alerts), len(haul.faults)
        self.lines.feed(data, haul)
        self._count(haul, *before)

    def end_stream(self, haul: Haul) -> None:
        assert self.lines is not None
        before = len(haul.alerts), len(haul.faults)
        self.lines.end(haul)
        self._count(haul, *before)

    def _count(self, haul: Haul, alerts: int, faults: int) -> None:
        self.taken += len(haul.alerts) - alerts
        self.bad += len(haul.faults) - faults
        if self.first_bad is None and len(haul.faults) > faults:
            self.first_bad = haul.faults[faults]


class HttpTalk:
    """One HTTP connection. `admit` is asked with each request's Authorization; None asks nobody.

    `trusted`: the sender is known before it says a word (a unix peer), so it may be silent from the beginning.
    """

    # httptools calls these by name: on_message_begin, on_header, on_headers_complete, on_body, on_message_complete.
    # They must not raise, and after `_over` they look at nothing more.

    def __init__(self, limits: Limits, *, admit: Admit | None = None, trusted: bool = True) -> None:
        self._limits = limits
        self._admit = admit
        self._trusted = trusted
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._haul = Haul()
        self._over = False  # nothing more is taken from this connection
        self._begun = False  # between a request's first byte and its last
        self._moved = False  # this piece brought body bytes or a request's end
        self._still = 0  # bytes that brought neither
        self._request = _Request()

    def feed(self, data: bytes) -> Haul:
        """Take the next bytes, in pieces of any size."""
        haul = self._haul = Haul()
        if self._over or self._parser is None:
            return haul
        self._moved = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused in on_headers_complete
        except httptools.HttpParserError as error:
            self._fail(400, AlertError(f"not HTTP/1.1: {error}", "protocol"))
        self._watch_header(len(data))
        if self._request.expecting and not self._over:
            self._request.expecting = False
            haul.answer += _CONTINUE
        return haul

    def end(self) -> Haul:
        """The sender has closed its side: of a stream the last line counts if it is whole, of a request nothing."""
        haul = self._haul = Haul()
        if self._begun and not self._over:
            if self._request.lines is not None:
                self._request.lines.end(haul)
            else:
                haul.faults.append(AlertError("the connection ended in the middle of a request", "truncated"))
        self._over = True
        return haul

    def patience(self) -> float:
        """Silence is limited inside a request and a line, and before a stranger's first request."""
        if not self._begun:
            return self._limits.idle_seconds if self._trusted else self._limits.slow_seconds
        lines = self._request.lines
        return math.inf if lines is not None and not lines.pending else self._limits.slow_seconds

    def close(self) -> None:
        """Break the circle with the parser: the program's collector is frozen, so it would stay for ever."""
        self._parser = None

    # ---------------------------------------------------------------- called by httptools

    def on_message_begin(self) -> None:
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        request.header_bytes += len(name) + len(value)
        name = name.lower()
        if name in _HEEDED:
            request.headers[name] = value

    def on_headers_complete(self) -> None:
        if self._over or self._parser is None:
            return
        request, headers = self._request, self._request.headers
        chunked = b"chunked" in headers.get(_ENCODING, b"").lower()
        stream = chunked or headers.get(_TYPE, b"").lower().startswith(b"application/x-ndjson")
        if request.header_bytes > self._limits.header_bytes:
            self._fail_header()
        elif self._admit is not None and not self._admit(headers.get(_AUTHORIZATION, b"")):
            self._fail(401, AlertError("no token, or not the right one", "unauthenticated"))
        elif (method := self._parser.get_method()) != b"POST" and not (stream and method == b"PUT"):
            self._fail(400, AlertError("alerts are sent with POST", "protocol"))
        elif self._parser.should_upgrade():  # httptools would leave the body out
            self._fail(400, AlertError("another protocol was asked for; only HTTP/1.1 is spoken here", "protocol"))
        elif not stream and int(headers.get(_LENGTH, b"0")) > self._limits.alert_bytes:
            self._fail(413, AlertError(f"the body is larger than {self._limits.alert_bytes} bytes", "too large"))
        else:
            request.lines = Lines(self._limits.alert_bytes) if stream else None
            request.expecting = headers.get(_EXPECT, b"").lower() == b"100-continue"

    def on_body(self, data: bytes) -> None:
        if self._over:
            return
        self._moved = True
        self._request.expecting = False
        if self._request.lines is None:
            self._request.add_body(data)
        else:
            self._request.feed_stream(data, self._haul)

    def on_message_complete(self) -> None:
        if self._over or self._parser is None:
            return
        self._begun = False
        self._moved = True
        self._trusted = True
        error = self._finish_alert() if self._request.lines is None else self._finish_stream()
        self._reply(error, keep=self._parser.should_keep_alive())
        self._request = _Request()

    # ---------------------------------------------------------------- the end of a request

    def _finish_alert(self) -> AlertError | None:
        try:
            alert = decode(bytes(self._request.body))
        except AlertError as error:
            fault = bare(error)
            self._haul.faults.append(fault)
            return fault
        self._haul.alerts.append(alert)
        return None

    def _finish_stream(self) -> AlertError | None:
        request = self._request
        request.end_stream(self._haul)
        if request.first_bad is None:
            return None
        reason = f"{request.bad} of {request.bad + request.taken} lines are not alerts, the first: "
        return AlertError(reason + request.first_bad.reason, request.first_bad.kind)

    def _reply(self, error: AlertError | None, *, keep: bool) -> None:
        connection = ""
        if not keep:
            self._over = self._haul.closing = True
            connection = "close"
        elif _CONNECTION in self._request.headers:  # HTTP/1.0 senders ask for it and want to hear it
            connection = "keep-alive"
        if error is None:
            self._haul.answer += _answer(200, connection=connection) if connection else _OK
        else:
            self._haul.answer += _answer(400, error.reason, connection)

    # ---------------------------------------------------------------- the end of a connection

    def _fail(self, status: int, error: AlertError) -> None:
        if self._over:  # what follows a refused request says nothing new
            return
        self._over = self._haul.closing = True
        self._haul.faults.append(error)
        self._haul.answer += _answer(status, error.reason, "close")

    def _fail_header(self) -> None:
        self._fail(431, AlertError(f"the header is larger than {self._limits.header_bytes} bytes", "too large"))

    def _watch_header(self, size: int) -> None:
        """An endless header line (or trailer, or chunk extension) is never handed over: its bytes are counted here."""
        if self._moved or not self._begun:
            self._still = 0
            return
        self._still += size
        if self._still > self._limits.header_bytes:
            self._fail_header()
