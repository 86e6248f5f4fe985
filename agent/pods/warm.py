"""Loads all of httpx while the helper may still read its own program: much of it is imported at the first request."""

from __future__ import annotations

import ssl

import httpx
import trio

from agent.pods.api import Api

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

PATIENCE_S = 5.0
"""For a request to ourselves over the loopback, which takes a millisecond. Without it the first real one fails, and
says so."""


def warm_up() -> None:
    """Ask ourselves once, over the loopback; name a server for TLS once (`encodings.idna`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    trio.run(_ask_ourselves, context)


async def _ask_ourselves(context: ssl.SSLContext) -> None:
    with trio.move_on_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, _answer, [listener])
            port = listener.socket.getsockname()[1]
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", verify=context, trust_env=False
            ) as client:
                await Api(client, "").get("/", {"a": "b"}, "application/json")
            nursery.cancel_scope.cancel()


async def _answer(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some(4096)
        await stream.send_all(_ANSWER)
