"""A small HTTP/1.1 server for /metrics, /healthz and /readyz. It answers GET and HEAD; bodies are not read.

httptools parses. Limits are constants with their reasons; whoever goes over one is answered once and cut off.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import httptools
import msgspec
import trio

from stoop.errors import StartRefused

MAX_CONNECTIONS = 32
"""Prometheus, a kubelet and a few people; each costs a task. More are answered 503."""

MAX_HEAD = 16 * 1024
"""Bytes of a request that is not complete yet: a scraper sends less than 1 KiB, a proxy adds cookies."""

HEAD_SECONDS = 5.0
"""For the rest of a request once it has begun, and for the answer to be taken: this is the same host or data centre."""

IDLE_SECONDS = 120.0
"""For the next request on a kept connection: above the usual scrape interval of 15 to 60 s."""

BIND_SECONDS = 5.0
"""How long to try for a port that is in use: an earlier helper may still be ending."""

LINGER_SECONDS = 1.0
LINGER_READS = 16
"""For a peer that is cut off to take its answer, and how much more of it is read meanwhile."""

BACKLOG = 64
_CHUNK = 16 * 1024


class Request(msgspec.Struct, frozen=True):
    """What a handler needs to know. `path` without its query."""

    method: str
    path: str
    accept: str


class Response(msgspec.Struct, frozen=True):
    """What to answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[Request], Awaitable[Response]]


async def listen(address: str, port: int, patience: float = BIND_SECONDS) -> trio.SocketListener:
    """Listen on an IP address. A port in use is tried again with growing pauses for `patience` seconds.

    Raises StartRefused. Whoever calls closes the listener.
    """
    deadline = trio.current_time() + patience
    pause = 0.05
    while True:
        try:
            return _bound(address, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or trio.current_time() + pause > deadline:
                hint = "set metrics.port, or 0 for any free one" if error.errno == errno.EADDRINUSE else ""
                raise StartRefused(
                    error.strerror or str(error), where=f"metrics at {address} port {port}", hint=hint
                ) from error
        await trio.sleep(pause)
        pause = min(pause * 2, 1.0)


def _bound(address: str, port: int) -> trio.SocketListener:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


class Server:
    """Serves one handler on the connections that it is given."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._open = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept until cancelled."""
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        self._open += 1
        try:
            async with stream:
                if self._open > MAX_CONNECTIONS:
                    await _send(
                        stream, _plain(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"), "GET", keep=False
                    )
                else:
                    await self._requests(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer went away; there is nobody to tell
        finally:
            self._open -= 1

    async def _requests(self, stream: trio.SocketStream) -> None:
        """Answer requests in turn until one asks to close, breaks a limit or is late."""
        parser = _Parser()
        deadline = trio.current_time() + HEAD_SECONDS
        while True:
            with trio.move_on_at(deadline) as waiting:
                data = await stream.receive_some(_CHUNK)
            if waiting.cancelled_caught or not data:
                return
            was_at_rest = parser.at_rest
            fault = parser.feed(data)
            for request, keep in parser.take():
                response = await self._answer(request)
                if not await _send(stream, response, request.method, keep) or not keep:
                    return
            if fault is not None:
                await _send(stream, _plain(fault, fault.phrase.lower()), "GET", keep=False)
                await _linger(stream)
                return
            if parser.at_rest:
                deadline = trio.current_time() + IDLE_SECONDS
            elif was_at_rest:
                deadline = trio.current_time() + HEAD_SECONDS

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
        return await self._handler(request)


def _plain(status: HTTPStatus, text: str) -> Response:
    return Response(status, text.encode() + b"\n")


async def _send(stream: trio.SocketStream, response: Response, method: str, keep: bool) -> bool:
    """Send one answer; False when the peer did not take it in time."""
    head = (
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        "Cache-Control: no-store\r\n"
        + ("Allow: GET, HEAD\r\n" if response.status is HTTPStatus.METHOD_NOT_ALLOWED else "")
        + ("" if keep else "Connection: close\r\n")
        + "\r\n"
    )
    with trio.move_on_after(HEAD_SECONDS) as sending:
        await stream.send_all(head.encode("ascii") + (b"" if method == "HEAD" else response.body))
    return not sending.cancelled_caught


async def _linger(stream: trio.SocketStream) -> None:
    """Let the peer read the answer: to close while bytes are unread would reset the connection (RFC 9112, 9.6)."""
    await stream.send_eof()
    with trio.move_on_after(LINGER_SECONDS):
        for _ in range(LINGER_READS):
            if not await stream.receive_some(_CHUNK):
                return


class _Parser:
    """Bytes → requests. httptools calls the `on_…` methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._done: list[tuple[Request, bool]] = []
        self._url = b""
        self._accept: list[str] = []
        self._taken = 0
        self.at_rest = True

    def feed(self, data: bytes) -> HTTPStatus | None:
        """Take bytes; the status to answer when they are no request that is served here."""
        self.at_rest = False
        self._taken += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Not taken up (RFC 9110, 7.8): answered as if it had not asked, but the parser can go no further.
            self._done = [(request, False) for request, _ in self._done]
            return None
        except httptools.HttpParserError:
            return HTTPStatus.BAD_REQUEST
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._taken > MAX_HEAD and not self.at_rest else None

    def take(self) -> list[tuple[Request, bool]]:
        """The requests completed so far, each with whether the connection may be kept."""
        done, self._done = self._done, []
        return done

    def on_message_begin(self) -> None:
        self._url, self._accept, self.at_rest = b"", [], False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"accept":
            self._accept.append(value.decode("latin-1"))

    def on_message_complete(self) -> None:
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        request = Request(self._parser.get_method().decode("ascii"), path, ", ".join(self._accept))
        self._done.append((request, self._parser.should_keep_alive()))
        self._taken, self.at_rest = 0, True
