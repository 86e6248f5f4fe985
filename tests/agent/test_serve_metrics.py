"""The small HTTP server on real sockets, with a real client and with bytes that no client would send."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
import trio

from agent import serve_metrics
from agent.serve_metrics import MAX_CONNECTIONS, MAX_HEAD, Request, Response, Server, listen
from stoop.errors import StartRefused

PATIENCE = 20.0


class Site:
    """A server whose handler tells what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def exchange(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send pieces, then read until the server closes or has answered and kept quiet."""
        with trio.fail_after(PATIENCE):
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with stream:
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.sleep(pause)
                await stream.send_eof()
                return b"".join([data async for data in stream])


async def tell(request: Request) -> Response:
    if request.path == "/large":
        return Response(HTTPStatus.OK, b"x" * 10_000_000)
    return Response(HTTPStatus.OK, f"{request.method} {request.path} {request.accept}".encode())


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Site]:
    listener = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(tell).serve, listener)
        yield Site(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


REQUEST = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\naccept: b\r\n\r\n"
BODY = b"GET /metrics text/plain, b"


class TestRequests:
    async def test_a_real_client_keeps_its_connection(self) -> None:
        def talk(port: int) -> list[tuple[int, bytes]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            with contextlib.closing(connection):
                answers = []
                for method in ("GET", "HEAD", "GET"):
                    connection.request(method, "/healthz")
                    response = connection.getresponse()
                    answers.append((response.status, response.read()))
                    assert not response.will_close
                return answers

        async with serving() as site:
            answers = await trio.to_thread.run_sync(talk, site.port)
        assert answers == [(200, b"GET /healthz "), (200, b""), (200, b"GET /healthz ")]

    async def test_whole_split_and_pipelined(self) -> None:
        async with serving() as site:
            whole = await site.exchange(REQUEST)
            assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
            assert whole.endswith(b"\r\n\r\n" + BODY)
            assert await site.exchange(*(REQUEST[at : at + 1] for at in range(len(REQUEST)))) == whole
            assert await site.exchange(REQUEST * 3) == whole * 3

    async def test_close_and_http_1_0(self) -> None:
        async with serving() as site:
            for head in (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
                answer = await site.exchange(head + REQUEST)
                assert answer.count(b"HTTP/1.1 200") == 1
                assert b"\r\nConnection: close\r\n" in answer

    async def test_other_methods_are_told_which_there_are(self) -> None:
        async with serving() as site:
            answer = await site.exchange(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" + REQUEST)
        assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert b"\r\nAllow: GET, HEAD\r\n" in answer
        assert answer.endswith(BODY)

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"\x05\x01\x00", b"400"),
            (b'{"rule": "an alert"}\n', b"400"),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" + REQUEST, b"200"),
            (b"CONNECT a:1 HTTP/1.1\r\n\r\n" + REQUEST, b"405"),
            (b"GET /" + b"x" * 2 * MAX_HEAD + b" HTTP/1.1\r\n\r\n", b"431"),
            (b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 2 * MAX_HEAD, b"431"),
        ],
    )
    async def test_what_is_no_request_is_answered_once_and_cut_off(self, data: bytes, status: bytes) -> None:
        async with serving() as site:
            answer = await site.exchange(data)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert answer.count(b"HTTP/1.1") == 1
            assert (await site.exchange(REQUEST)).endswith(BODY)


class TestLimits:
    async def test_more_connections_than_allowed(self) -> None:
        async with serving() as site:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(MAX_CONNECTIONS):
                    stream = await trio.open_tcp_stream("127.0.0.1", site.port)
                    await stack.enter_async_context(stream)
                    await stream.send_all(REQUEST)
                    await stream.receive_some()
                assert (await site.exchange(b"")).startswith(b"HTTP/1.1 503")
            with trio.fail_after(PATIENCE):
                while not (await site.exchange(REQUEST)).endswith(BODY):
                    pass

    async def test_a_slow_sender_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve_metrics, "HEAD_SECONDS", 0.2)
        async with serving() as site:
            with trio.fail_after(PATIENCE):
                async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
                    with contextlib.suppress(trio.BrokenResourceError):
                        data: bytes | bytearray = b"x"
                        while data:
                            await stream.send_all(b"X")
                            with trio.move_on_after(0.02):
                                data = await stream.receive_some()

    async def test_an_idle_connection_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve_metrics, "IDLE_SECONDS", 0.1)
        async with serving() as site:
            with trio.fail_after(PATIENCE):
                async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
                    await stream.send_all(REQUEST)
                    assert b"".join([data async for data in stream]).endswith(BODY)

    async def test_who_does_not_take_the_answer_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve_metrics, "HEAD_SECONDS", 0.2)
        async with serving() as site:
            with trio.fail_after(PATIENCE):
                async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
                    await stream.send_all(b"GET /large HTTP/1.1\r\n\r\n")
                    await trio.sleep(0.5)
                    taken = 0
                    with contextlib.suppress(trio.BrokenResourceError):
                        async for data in stream:
                            taken += len(data)
            assert taken < 10_000_000
            assert (await site.exchange(REQUEST)).endswith(BODY)


class TestListen:
    async def test_an_address_of_another_machine_is_refused_at_once(self) -> None:
        with trio.fail_after(PATIENCE), pytest.raises(StartRefused, match=r"metrics at 192\.0\.2\.1 port 1: "):
            await listen("192.0.2.1", 1)

    async def test_a_port_in_use_until_it_is_free(self) -> None:
        taken = socket.create_server(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(StartRefused, match=r"in use.*set metrics\.port"):
            await listen("127.0.0.1", port, patience=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_soon, taken)
            with trio.fail_after(PATIENCE):
                listener = await listen("127.0.0.1", port)
        assert listener.socket.getsockname()[1] == port
        await listener.aclose()


async def _close_soon(sock: socket.socket) -> None:
    await trio.sleep(0.1)
    sock.close()
