"""The unix socket in the file system, its senders, and what one sender can do to another: real sockets."""

# ruff: noqa: ASYNC220, ASYNC240 - local files and a process that is started first

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from stoop.errors import StartRefused
from stoop.intake.limits import READ_BYTES, Limits
from stoop.intake.sink import INTAKE_ERROR_KINDS, Desk
from stoop.intake.testing import RecordingSink, RecordingWarn
from stoop.intake.unix import UnixIntake

MakeBytes = Callable[[str], bytes]
Connect = Callable[[], Awaitable[trio.SocketStream]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def listen(nursery: trio.Nursery, path: str, desk: Desk, mode: int = 0o600) -> None:
    assert await nursery.start(UnixIntake(path, mode, {0}, desk).serve) == path


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly so many bytes, or fewer at the end."""
    got = b""
    with trio.fail_after(10):
        while len(got) < size and (data := await stream.receive_some(size - len(got))):
            got += data
    return got


async def receive_all(stream: trio.SocketStream) -> bytes:
    return await receive(stream, 1 << 30)


# ---------------------------------------------------------------- the file system


async def test_the_socket_is_private_and_removed_at_the_end(sock_path: str, desk: Desk, nursery: trio.Nursery) -> None:
    async with trio.open_nursery() as inner:
        await listen(inner, sock_path, desk)
        there = os.lstat(sock_path)
        assert stat.S_ISSOCK(there.st_mode)
        assert stat.S_IMODE(there.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(sock_path)).st_mode) == 0o700
        inner.cancel_scope.cancel()
    assert not os.path.lexists(sock_path)


async def test_the_mode_is_as_asked_whatever_the_umask(sock_path: str, desk: Desk, nursery: trio.Nursery) -> None:
    before = os.umask(0o077)
    try:
        await listen(nursery, sock_path, desk, 0o666)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(sock_path).st_mode) == 0o666


async def test_a_stale_socket_is_replaced(sock_path: str, desk: Desk, nursery: trio.Nursery) -> None:
    os.makedirs(os.path.dirname(sock_path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(sock_path)
    await listen(nursery, sock_path, desk)
    await (await trio.open_unix_socket(sock_path)).aclose()


async def test_a_live_socket_is_refused_and_its_pid_named(sock_path: str, desk: Desk, nursery: trio.Nursery) -> None:
    os.makedirs(os.path.dirname(sock_path))
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, sock_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StartRefused, match=f"process {other.pid} listens here already"):
            await UnixIntake(sock_path, 0o600, {0}, desk).serve()
    assert os.path.lexists(sock_path)


async def test_a_live_socket_with_a_full_backlog_is_refused(sock_path: str, desk: Desk) -> None:
    os.makedirs(os.path.dirname(sock_path))
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(sock_path)
        other.listen(0)
        waiting.connect(sock_path)
        with pytest.raises(StartRefused, match="another process listens here already"):
            await UnixIntake(sock_path, 0o600, {0}, desk).serve()


async def test_what_is_not_a_socket_is_left_alone(sock_path: str, desk: Desk) -> None:
    os.makedirs(os.path.dirname(sock_path))
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir), (_dangling_link, os.unlink)):
        make(sock_path)
        with pytest.raises(StartRefused, match="is not a socket"):
            await UnixIntake(sock_path, 0o600, {0}, desk).serve()
        remove(sock_path)


def _dangling_link(path: str) -> None:
    os.symlink("/nowhere", path)


async def test_a_path_that_is_too_long_is_refused(tmp_path: Path, desk: Desk) -> None:
    with pytest.raises(StartRefused, match="at most 107 bytes"):
        await UnixIntake(str(tmp_path / ("x" * 108)), 0o600, {0}, desk).serve()


async def test_a_place_that_can_not_be_written_is_refused(desk: Desk) -> None:
    with pytest.raises(StartRefused, match="can't listen"):
        await UnixIntake("/proc/falco.sock", 0o600, {0}, desk).serve()


async def test_two_that_start_at_once_do_not_take_each_others_socket(
    sock_path: str, desk: Desk, nursery: trio.Nursery
) -> None:
    await listen(nursery, sock_path, desk)
    with pytest.raises(StartRefused, match=f"process {os.getpid()} listens here already"):
        await UnixIntake(sock_path, 0o600, {0}, desk).serve()


async def test_while_another_starts_in_the_same_directory(sock_path: str, desk: Desk) -> None:
    directory = os.path.dirname(sock_path)
    os.makedirs(directory)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StartRefused, match="another agent is starting here"):
            await UnixIntake(sock_path, 0o600, {0}, desk).serve()
    finally:
        os.close(fd)


async def test_a_socket_that_another_made_meanwhile_is_not_removed(sock_path: str, desk: Desk) -> None:
    async with trio.open_nursery() as inner:
        await listen(inner, sock_path, desk)
        os.unlink(sock_path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(sock_path)
        inner.cancel_scope.cancel()
    assert os.path.lexists(sock_path)


# ---------------------------------------------------------------- senders


@pytest.fixture
async def connect(sock_path: str, desk: Desk, nursery: trio.Nursery) -> Connect:
    """A way to connect to a listening intake."""
    await listen(nursery, sock_path, desk)

    async def opened() -> trio.SocketStream:
        return await trio.open_unix_socket(sock_path)

    return opened


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


class TestFewConnections:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(connections=2, sweep_seconds=0.01)

    async def test_the_next_is_closed_and_counted_until_there_is_room(
        self, connect: Connect, alert_of: MakeBytes, sink: RecordingSink
    ) -> None:
        async with await connect() as first, await connect() as second:
            async with await connect() as third:
                assert await receive_all(third) == b""
            assert sink.kinds == ["too many"]
            await first.send_all(alert_of("a") + b"\n")
            await second.send_all(alert_of("b") + b"\n")
            await sink.until_alerts(2)
        await sink.until(lambda: not sink.present)
        async with await connect() as later:
            await later.send_all(alert_of("c") + b"\n")
            await sink.until_alerts(3)


async def test_no_descriptor_left_is_waited_out_and_said_once(
    sock_path: str, alert_of: MakeBytes, desk: Desk, sink: RecordingSink, warn: RecordingWarn, nursery: trio.Nursery
) -> None:
    await listen(nursery, sock_path, desk)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with await trio.open_unix_socket(sock_path) as early:
        await sink.until(lambda: bool(sink.present))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with client:
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            free = _fill_descriptors()
            try:
                client.connect(sock_path)
                await warn.until_said(1)
                await early.send_all(alert_of("early") + b"\n")
                await sink.until_alerts(1)
            finally:
                for fd in free:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.send(alert_of("late") + b"\n")
            await sink.until_alerts(2)
    assert sink.rules == ["early", "late"]
    assert [event for event, _ in warn.said] == ["a connection can't be accepted now, trying again"]


def _fill_descriptors() -> list[int]:
    """Take every descriptor that is free below the limit."""
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            return taken


def test_every_kind_is_declared() -> None:
    source = Path(__file__).parents[2] / "stoop" / "intake"
    text = "".join(path.read_text() for path in source.glob("*.py"))
    assert all(f'"{kind}"' in text for kind in INTAKE_ERROR_KINDS)
