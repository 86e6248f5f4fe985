"""The unix socket in the file system, and how many may be connected: real sockets."""

# ruff: noqa: ASYNC220, ASYNC240 - local files and a process that is started first

from __future__ import annotations

import fcntl
import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from stoop.errors import StartRefused
from stoop.intake.limits import Limits
from stoop.intake.sink import INTAKE_ERROR_KINDS, Desk
from stoop.intake.testing import RecordingSink, RecordingWarn
from stoop.intake.unix import UnixIntake
from tests.intake.conftest import Connect, MakeBytes, listen, receive_all


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
