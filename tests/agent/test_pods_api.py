"""Requests to a server that is not as it should be: bounded, translated, nothing left open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from agent.pods import api as api_module
from agent.pods.api import MAX_ANSWER, MAX_COMPLAINT, Api, AskFailed, Expired, connected
from stoop.wire import PodsKey

OK = b"HTTP/1.1 200 OK\r\n"
LIST = b'{"metadata":{},"items":[]}'


@asynccontextmanager
async def server(*parts: bytes, endless: bytes = b"", hold: bool = False) -> AsyncIterator[Api]:
    """Says these parts to each request; then goes on without end, or says no more, or ends."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                while b"\r\n\r\n" not in await stream.receive_some(4096):
                    pass
                for part in parts:
                    await stream.send_all(part)
                while endless:
                    await stream.send_all(endless)
                if hold:
                    await trio.sleep_forever()
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        port = listener.socket.getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield Api(client, "")
        nursery.cancel_scope.cancel()


def sized(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def ask(api: Api) -> bytes:
    with trio.fail_after(30):
        return bytes(await api.get("/pods", {}, "application/json"))


async def test_an_answer_whole_and_byte_by_byte() -> None:
    for parts in ((sized(LIST),), tuple(bytes((byte,)) for byte in sized(LIST))):
        async with server(*parts) as api:
            assert await ask(api) == LIST


@pytest.mark.parametrize(
    ("head", "body", "says"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n", b"Unauthorized", "it answers 401: Unauthorized"),
        (b"HTTP/1.1 403 Forbidden\r\n", b'{"kind":"Status","message":"pods is forbidden"}', "403: pods is forbidden"),
        (b"HTTP/1.1 503 Later\r\n", b"", "it answers 503: Later"),
        (b"HTTP/1.1 500 No\r\n", b"\xff\x00" * 9, "it answers 500: "),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n", b"", "it answers 302"),
        (OK + b"Content-Encoding: gzip\r\n", b"\x1f\x8b", "in an encoding that was not asked for"),
    ],
)
async def test_an_answer_that_is_none(head: bytes, body: bytes, says: str) -> None:
    async with server(sized(body, head)) as api:
        with pytest.raises(AskFailed, match=says):
            await ask(api)


async def test_410_has_the_list_begun_anew() -> None:
    async with server(sized(b'{"message":"too old"}', b"HTTP/1.1 410 Gone\r\n")) as api:
        with pytest.raises(Expired, match="it answers 410: too old"):
            await ask(api)


@pytest.mark.parametrize("head", [OK, b"HTTP/1.1 500 No\r\n"])
async def test_an_answer_without_end_is_cut_off(head: bytes) -> None:
    async with server(head + b"\r\n", endless=b"x" * 65536) as api:
        with pytest.raises(AskFailed) as caught:
            await ask(api)
    assert len(str(caught.value)) < MAX_COMPLAINT
    assert f"more than {MAX_ANSWER >> 20} MiB" in str(caught.value) or "it answers 500: xxx" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"\x15\x03\x01", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_a_peer_that_is_no_server(data: bytes) -> None:
    async with server(data) as api:
        with pytest.raises(AskFailed):
            await ask(api)


async def test_an_endless_header() -> None:
    async with server(OK, endless=b"X-More: 1\r\n") as api:
        with pytest.raises(AskFailed):
            await ask(api)


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "ANSWER_S", 0.05)
    for parts in ((), (OK + b"\r\n",), (OK + b"\r\nsome",)):
        async with server(*parts, hold=True) as api:
            with pytest.raises(AskFailed, match="ReadTimeout"):
                await ask(api)


async def read_and_fail(api: Api) -> None:
    async with api.parts("/", {}, "application/json", 9.0) as parts:
        async for part in parts:
            assert part == b"first"
            raise ZeroDivisionError


async def test_who_stops_reading_leaves_nothing_open() -> None:
    async with server(OK + b"\r\nfirst", hold=True) as api:
        with pytest.raises(ZeroDivisionError):
            await read_and_fail(api)
        with trio.move_on_after(0.05) as scope:
            async with api.parts("/", {}, "application/json", 9.0) as parts:
                async for part in parts:
                    assert part == b"first"
        assert scope.cancelled_caught


@pytest.mark.parametrize("authorities", [b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"])
async def test_certificates_that_are_none(authorities: bytes) -> None:
    with pytest.raises(AskFailed):
        async with connected("https://127.0.0.1:9", "", PodsKey(b"t", authorities)):
            raise AssertionError("connected")
