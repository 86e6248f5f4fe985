"""Alerts over TCP: who may send, what is said, where it listens."""

# ruff: noqa: ASYNC240 - a local test file is touched in between: that is the test

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from stoop.errors import StartRefused
from stoop.intake.http import HttpIntake
from stoop.intake.limits import Limits
from stoop.intake.sink import Desk
from stoop.intake.testing import RecordingSink, RecordingWarn

MakeBytes = Callable[[str], bytes]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("s3cret\n")
    return str(path)


def with_header(request: bytes, header: bytes) -> bytes:
    line, _, rest = request.partition(b"\r\n")
    return line + b"\r\n" + header + b"\r\n" + rest


async def ask(address: tuple[str, int], text: bytes) -> bytes:
    """Send, close our side, read all."""
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(text)
        await stream.send_eof()
        with trio.fail_after(10):
            return b"".join([data async for data in stream])


async def start(nursery: trio.Nursery, intake: HttpIntake) -> tuple[str, int]:
    bound = await nursery.start(intake.serve)
    assert isinstance(bound, tuple)
    return bound


async def test_bearer_and_basic_may_send(
    token_file: str, post_of: MakeBytes, desk: Desk, sink: RecordingSink, warn: RecordingWarn, nursery: trio.Nursery
) -> None:
    address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
    assert address[1] > 0
    basic = base64.b64encode(b"falco:s3cret")
    assert await ask(address, with_header(post_of("a"), b"Authorization: Bearer s3cret")) == OK
    assert await ask(address, with_header(post_of("b"), b"Authorization: Basic " + basic)) == OK
    assert sink.rules == ["a", "b"]
    peer = sink.accepted[0][1]
    assert peer.kind == "http"
    assert peer.name.startswith("127.0.0.1:")
    assert (peer.pid, peer.uid) == (0, -1)
    assert not warn.said


async def test_others_may_not_on_loopback_either(
    token_file: str, post_of: MakeBytes, desk: Desk, sink: RecordingSink, nursery: trio.Nursery
) -> None:
    address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
    for text in (post_of("a"), with_header(post_of("a"), b"Authorization: Bearer wrong")):
        assert (await ask(address, text)).startswith(b"HTTP/1.1 401 ")
    assert sink.kinds == ["unauthenticated"] * 2
    assert not sink.alerts
    assert not sink.present
    assert not sink.gone


async def test_the_token_file_is_read_again(
    token_file: str, post_of: MakeBytes, sink: RecordingSink, warn: RecordingWarn, nursery: trio.Nursery
) -> None:
    desk = Desk(sink=sink, now_ns=lambda: 1, warn=warn, limits=Limits(token_seconds=0))
    address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
    old, new = (with_header(post_of("a"), b"Authorization: Bearer " + token) for token in (b"s3cret", b"changed"))
    Path(token_file).write_text("changed")
    assert (await ask(address, old)).startswith(b"HTTP/1.1 401 ")
    assert await ask(address, new) == OK
    Path(token_file).unlink()
    assert (await ask(address, new)).startswith(b"HTTP/1.1 401 ")
    assert [event for event, _ in warn.said] == ["no usable token: every HTTP sender is refused"]


async def test_the_start_is_refused_without_a_token(tmp_path: Path, desk: Desk) -> None:
    with pytest.raises(StartRefused, match=r"need a token, on loopback too.*insecure: true"):
        await HttpIntake("127.0.0.1", 0, None, False, desk).serve()
    with pytest.raises(StartRefused, match="no token"):
        await HttpIntake("127.0.0.1", 0, str(tmp_path / "missing"), False, desk).serve()


async def test_insecure_is_said_loudly(
    post_of: MakeBytes, desk: Desk, sink: RecordingSink, warn: RecordingWarn, nursery: trio.Nursery
) -> None:
    address = await start(nursery, HttpIntake("127.0.0.1", 0, None, True, desk))
    assert await ask(address, post_of("a")) == OK
    assert sink.rules == ["a"]
    assert warn.said[0][0].startswith("insecure: ")


async def test_off_loopback_is_said(token_file: str, desk: Desk, warn: RecordingWarn, nursery: trio.Nursery) -> None:
    await start(nursery, HttpIntake("0.0.0.0", 0, token_file, False, desk))
    assert [event for event, _ in warn.said] == ["alerts and their token cross the network unencrypted"]


async def test_ipv6_and_names(
    token_file: str, post_of: MakeBytes, desk: Desk, sink: RecordingSink, nursery: trio.Nursery
) -> None:
    text = with_header(post_of("a"), b"Authorization: Bearer s3cret")
    for host in ("::1", "localhost"):
        try:
            address = await start(nursery, HttpIntake(host, 0, token_file, False, desk))
        except StartRefused as error:
            pytest.skip(f"{host} can't be listened on here: {error}")
        assert await ask(address, text) == OK
    assert sink.accepted[0][1].name.startswith("[::1]:")


async def test_what_can_not_be_bound_is_refused(token_file: str, desk: Desk) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartRefused, match=r"can't listen: .*in use"):
            await HttpIntake("127.0.0.1", other.getsockname()[1], token_file, False, desk).serve()
    for address in ("192.0.2.1", "no.such.name.invalid"):
        with pytest.raises(StartRefused, match="can't listen"):
            await HttpIntake(address, 0, token_file, False, desk).serve()


async def test_strangers_do_not_keep_out_who_shows_the_token(
    token_file: str, post_of: MakeBytes, sink: RecordingSink, warn: RecordingWarn, nursery: trio.Nursery
) -> None:
    desk = Desk(sink=sink, now_ns=lambda: 1, warn=warn, limits=Limits(connections=2))
    text = with_header(post_of("a"), b"Authorization: Bearer s3cret")
    address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
    async with await trio.open_tcp_stream(*address) as first, await trio.open_tcp_stream(*address) as second:
        good, better = await trio.open_tcp_stream(*address), await trio.open_tcp_stream(*address)
        for stream in (good, better):
            await stream.send_all(text)
            assert await stream.receive_some(len(OK)) == OK
        for stream in (first, second):
            assert await stream.receive_some() == b""
        assert sink.kinds == ["too many"] * 2
        async with await trio.open_tcp_stream(*address) as late:  # nobody to make room now
            assert await late.receive_some() == b""
        await good.aclose()
        await better.aclose()
    assert sink.kinds == ["too many"] * 3


async def test_a_sender_that_is_gone_before_it_is_met_is_passed_over(
    token_file: str, post_of: MakeBytes, desk: Desk, sink: RecordingSink, nursery: trio.Nursery
) -> None:
    address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
    with socket.create_connection(address) as hasty:
        hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
    assert await ask(address, with_header(post_of("a"), b"Authorization: Bearer s3cret")) == OK
    assert not sink.faults


async def test_a_stranger_must_say_something(token_file: str, sink: RecordingSink, warn: RecordingWarn) -> None:
    desk = Desk(sink=sink, now_ns=lambda: 1, warn=warn, limits=Limits(slow_seconds=0.05, sweep_seconds=0.01))
    async with trio.open_nursery() as nursery:
        address = await start(nursery, HttpIntake("127.0.0.1", 0, token_file, False, desk))
        for first in (b"", b"\r\n"):
            async with await trio.open_tcp_stream(*address) as stream:
                if first:
                    await stream.send_all(first)
                with trio.fail_after(10):
                    assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
    assert sink.kinds == ["too slow"] * 2
