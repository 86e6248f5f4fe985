"""The senders of the unix socket, and what one of them can do to another: real sockets."""

from __future__ import annotations

import os
import resource
import select
import socket
import sys
import tempfile

import pytest
import trio
import trio.testing

from stoop.intake.limits import READ_BYTES, Limits
from stoop.intake.sink import Desk
from stoop.intake.testing import RecordingSink
from tests.intake.conftest import Connect, MakeBytes, listen, receive, receive_all

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_the_peer_is_known_by_the_kernel(connect: Connect, sock_path: str, sink: RecordingSink) -> None:
    async with await connect():
        await sink.until(lambda: bool(sink.present))
        (peer,) = sink.present
        assert (peer.kind, peer.name, peer.pid, peer.uid) == ("unix", sock_path, os.getpid(), os.geteuid())
    await sink.until(lambda: bool(sink.gone))
    assert sink.gone == [peer]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_another_user_is_closed_and_counted(desk: Desk, sink: RecordingSink, nursery: trio.Nursery) -> None:
    script = (
        "import os,socket,sys; os.setuid(65534); s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # pytest's own directory lets no other user in
        path = f"{directory}/falco.sock"
        await listen(nursery, path, desk, 0o666)
        await trio.run_process([sys.executable, "-c", script, path])
        await sink.until_faults(1)
    assert sink.kinds == ["not allowed"]
    assert sink.refused[0].uid == 65534
    assert not sink.present


@pytest.mark.parametrize("size", [1, 1000, 1_000_000])
async def test_ndjson(connect: Connect, alert_of: MakeBytes, sink: RecordingSink, size: int) -> None:
    text = alert_of("a") + b"\nbad\n" + alert_of("b") + b"\n" + alert_of("c")
    async with await connect() as stream:
        for at in range(0, len(text), size):
            await stream.send_all(text[at : at + size])
        await sink.until_alerts(2)
    await sink.until_alerts(3)
    assert sink.rules == ["a", "b", "c"]
    assert sink.kinds == ["malformed"]


async def test_a_read_that_is_exactly_full(connect: Connect, alert_of: MakeBytes, sink: RecordingSink) -> None:
    async with await connect() as stream:
        for count in range(1, 4):
            await stream.send_all(alert_of("a").ljust(READ_BYTES - 1) + b"\n")
            await sink.until_alerts(count)


@pytest.mark.parametrize("size", [1, 1000, 1_000_000])
async def test_http_keeps_the_connection(connect: Connect, post_of: MakeBytes, sink: RecordingSink, size: int) -> None:
    async with await connect() as stream:
        for rule in ("a", "b"):
            text = post_of(rule)
            for at in range(0, len(text), size):
                await stream.send_all(text[at : at + size])
            assert await receive(stream, len(OK)) == OK
        await stream.send_all(post_of("c") + post_of("d"))
        assert await receive(stream, 2 * len(OK)) == OK * 2
    assert sink.rules == ["a", "b", "c", "d"]


async def test_socks_then_http(connect: Connect, post_of: MakeBytes, sink: RecordingSink) -> None:
    async with await connect() as stream:
        await stream.send_all(bytes.fromhex("050100"))
        assert await receive(stream, 2) == bytes.fromhex("0500")
        await stream.send_all(bytes.fromhex("05010003") + b"\x05agent" + bytes.fromhex("0050"))
        assert await receive(stream, 10) == bytes.fromhex("05000001000000000000")
        await stream.send_all(post_of("a"))
        assert await receive(stream, len(OK)) == OK
    assert sink.rules == ["a"]


async def test_the_answer_is_written_before_the_act(connect: Connect, post_of: MakeBytes, sink: RecordingSink) -> None:
    async with await connect() as stream:
        seen: list[bytes] = []
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        with socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
            sink.on_accept = lambda: seen.append(raw.recv(1000, flags))
            await stream.send_all(post_of("a"))
            await sink.until_alerts(1)
        assert seen == [OK]


async def send_until_stuck(sock: trio.socket.SocketType, text: bytes) -> None:
    """Write again and again without reading, until nothing moves any more."""
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        rest = b""
        for _ in range(100_000):
            rest = rest or text
            try:
                rest = rest[raw.send(rest) :]
            except BlockingIOError:
                await trio.testing.wait_all_tasks_blocked()
                if not select.select([], [raw], [], 0)[1]:
                    return
    raise AssertionError("the intake reads on for ever")


async def test_a_sender_that_takes_no_answers_holds_up_itself_alone(
    connect: Connect, alert_of: MakeBytes, post_of: MakeBytes, sink: RecordingSink
) -> None:
    async with await connect() as stubborn, await connect() as neighbour:
        await send_until_stuck(stubborn.socket, post_of("s"))
        acted = len(sink.alerts)
        assert acted > 100
        await neighbour.send_all(alert_of("n") + b"\n")
        await sink.until_alerts(acted + 1)
        assert sink.rules[-1] == "n"
        assert await receive(stubborn, acted * len(OK)) == OK * acted


async def test_a_sender_that_is_gone_before_its_answer_is_served(
    connect: Connect, post_of: MakeBytes, sink: RecordingSink
) -> None:
    async with await connect() as stream:
        await stream.send_all(post_of("a") + post_of("b"))
    await sink.until_alerts(2)
    await sink.until(lambda: not sink.present)


GARBAGE = {
    b"GARBAGE\r\n\r\n": "protocol",
    b"\x05\x01\x02": "protocol",
    b"\x00\xff\n\n": "malformed",
    b"12:00:00.000000000: Notice text\n": "plain-text",
    b"{" * 9999: "malformed",
}


async def test_garbage_is_counted_and_good_neighbours_are_served(
    connect: Connect, alert_of: MakeBytes, post_of: MakeBytes, sink: RecordingSink
) -> None:
    async with await connect() as neighbour:
        for junk in (
            b"GARBAGE\r\n\r\n",
            b"\x05\x01\x02",
            b"\x00\xff\n\n",
            b"12:00:00.000000000: Notice text\n",
            b"{" * 9999,
        ):
            async with await connect() as stream:
                await stream.send_all(junk)
                await stream.send_eof()
                await receive_all(stream)
            await neighbour.send_all(post_of("n"))
            assert await receive(neighbour, len(OK)) == OK
    assert sink.rules == ["n"] * 5
    assert sink.kinds == list(GARBAGE.values())


async def test_fifty_megabytes_are_refused_and_memory_is_bounded(
    connect: Connect, alert_of: MakeBytes, sink: RecordingSink
) -> None:
    block = b"x" * (1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with await connect() as stream:
        await stream.send_all(b"{")
        for _ in range(50):
            await stream.send_all(block)
        await stream.send_all(b"\n" + alert_of("next") + b"\n")
        await sink.until_alerts(1)
    assert sink.kinds == ["too large"]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 8 * 1024


HALF_A_BODY = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"


async def send_until_broken(stream: trio.SocketStream, text: bytes) -> None:
    """Write again and again until the other side has closed the connection."""
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
        await _send_for_ever(stream, text)


async def _send_for_ever(stream: trio.SocketStream, text: bytes) -> None:
    while True:
        await stream.send_all(text)


class TestDeadlines:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(sweep_seconds=0.01, slow_seconds=0.05, write_seconds=0.05, idle_seconds=0.2)

    @pytest.mark.parametrize("begun", [b'{"rule"', b"\x05", b"POST / HTTP/1.1\r\n", HALF_A_BODY])
    async def test_half_a_message_is_cut(self, connect: Connect, sink: RecordingSink, begun: bytes) -> None:
        async with await connect() as stream:
            await stream.send_all(begun)
            assert await receive_all(stream) == b""
        await sink.until_faults(1)
        assert sink.kinds == ["too slow"]
        assert not sink.present

    async def test_a_sender_of_single_bytes_is_cut_too(self, connect: Connect, sink: RecordingSink) -> None:
        async with await connect() as stream:
            await send_until_broken(stream, b"x")
        assert sink.kinds == ["too slow"]

    async def test_answers_that_are_not_taken_are_cut(
        self, connect: Connect, post_of: MakeBytes, sink: RecordingSink
    ) -> None:
        async with await connect() as stream:
            await send_until_broken(stream, post_of("a"))
        assert sink.kinds == ["too slow"]
        assert "took no answer" in sink.faults[0].reason

    async def test_line_feeds_may_be_silent_and_idle_http_is_closed_quietly(
        self, connect: Connect, alert_of: MakeBytes, post_of: MakeBytes, sink: RecordingSink
    ) -> None:
        async with (
            await connect() as silent,
            await connect() as lines,
            await connect() as stream,
            await connect() as http,
        ):
            await lines.send_all(alert_of("a") + b"\n")
            await stream.send_all(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            await http.send_all(post_of("b"))
            assert await receive_all(http) == OK  # and closed, when it was idle for long enough
            await silent.send_all(alert_of("c") + b"\n")
            await lines.send_all(alert_of("d") + b"\n")
            body = alert_of("e") + b"\n"
            await stream.send_all(b"%x\r\n%s\r\n" % (len(body), body))
            await sink.until_alerts(5)
        assert not sink.faults

    async def test_progress_gives_new_time(self, connect: Connect, alert_of: MakeBytes, sink: RecordingSink) -> None:
        async with await connect() as stream:
            end = trio.current_time() + 0.2
            await stream.send_all(alert_of("first")[:9])
            await stream.send_all(alert_of("first")[9:] + b"\n" + alert_of("x")[:9])
            while trio.current_time() < end:
                await stream.send_all(alert_of("x")[9:] + b"\n" + alert_of("x")[:9])
                await sink.until_alerts(1)
            await stream.send_all(alert_of("last")[9:] + b"\n")
            await sink.until(lambda: sink.rules[-1] == "last")
        assert not sink.faults
