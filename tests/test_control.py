"""The control protocol: framing as a pure thing, the client against a real server on a real unix socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop import control
from stoop.control import Arm, ControlError, Follow, Lines, Reload, Reply, SetMode, Status, Subscribe
from stoop.spec import (
    Mode,
)

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a one-connection server: what it does with the connection is handed in."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(handle: Callable[[socket.socket], None]) -> str:
        path = str(tmp_path / "control.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                handle(connection)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        listeners.append(listener)
        return path

    yield start
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (Status(), {"do": "status"}),
        (SetMode(Mode.OBSERVE, 3600.0), {"do": "mode", "mode": "observe", "for_s": 3600.0}),
        (SetMode(Mode.OFF), {"do": "mode", "mode": "off", "for_s": None}),
        (Arm("Kill a shell"), {"do": "arm", "rule": "Kill a shell"}),
        (Reload(), {"do": "reload"}),
        (Subscribe(), {"do": "follow"}),
    ],
)
def test_requests_round_trip(request_: control.AnyRequest, line: dict[str, object]) -> None:
    encoded = control.encode_request(request_)
    assert encoded.endswith(b"\n")
    assert json.loads(encoded) == line
    assert control.decode_request(encoded) == request_


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not a request"),
        (b"status", "not a request"),
        (b"[]", "not a request"),
        (b"\xff\xfe", "not a request"),
        (b'{"do": "\xff"}', "not a request"),
        (b'{"do": "dance"}', "dance"),
        (b"{}", "do"),
        (b'{"do": "mode", "mode": "kill"}', "kill"),
        (b'{"do": "mode", "mode": "off", "for_s": 0}', "for_s"),
        (b'{"do": "mode", "mode": "off", "for_s": 1e99}', "for_s"),
        (b'{"do": "mode", "mode": "off", "for": 5}', "unknown field"),
        (b'{"do": "arm", "rule": ""}', "rule"),
        (b'{"do": "arm", "rule": "' + b"x" * 5000 + b'"}', "limit"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(line: bytes, says: str) -> None:
    with pytest.raises(ControlError, match=says):
        control.decode_request(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_control_error(data: bytes) -> None:
    with contextlib.suppress(ControlError):
        control.decode_request(data)


def test_replies_leave_out_what_they_do_not_say() -> None:
    assert json.loads(control.encode_reply(Reply(ok=True, result={"mode": "off"}))) == {
        "ok": True,
        "result": {"mode": "off"},
    }
    assert json.loads(control.encode_reply(Reply(ok=False, error="no such rule"))) == {
        "ok": False,
        "error": "no such rule",
    }


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=8), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], step: int) -> None:
    data = b"".join(line + b"\n" for line in lines) + b"rest"
    reader = Lines(64)
    seen = [line for start in range(0, len(data), step) for line in reader.feed(data[start : start + step])]
    assert seen == lines


def test_a_line_without_end_is_refused() -> None:
    reader = Lines(10)
    assert list(reader.feed(b"0123456789")) == []
    with pytest.raises(ControlError, match="more than 10 bytes"):
        list(reader.feed(b"0"))
    with pytest.raises(ControlError, match="more than 10 bytes"):
        list(Lines(10).feed(b"01234567890\n"))


def test_ask_gives_the_result(serve: Serve) -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        seen.append(connection.recv(4096))
        for byte in b'{"ok": true, "result": {"pid": 7}}\n':
            connection.sendall(bytes([byte]))

    assert control.ask(serve(handle), Status()) == {"pid": 7}
    assert [json.loads(line) for line in seen] == [{"do": "status"}]


def test_ask_raises_what_the_agent_says(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b'{"ok": false, "error": "no rule is called X"}\n')

    with pytest.raises(ControlError, match="no rule is called X"):
        control.ask(serve(handle), Arm("X"))


def test_ask_does_not_wait_for_ever(serve: Serve) -> None:
    done = threading.Event()

    def handle(connection: socket.socket) -> None:
        done.wait(10)

    path = serve(handle)
    with pytest.raises(ControlError, match=r"no answer within 0\.05 s.*is the agent stuck"):
        control.ask(path, Status(), answer_s=0.05)
    done.set()


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b"", "without an answer"), (b"HTTP/1.1 400 no\r\n", "no stoop agent"), (b'{"ok": 3}\n', "no stoop agent")],
)
def test_a_stranger_on_the_socket_is_said_to_be_one(serve: Serve, answer: bytes, says: str) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)

    with pytest.raises(ControlError, match=says):
        control.ask(serve(handle), Status())


def test_no_agent_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(ControlError) as caught:
        control.ask(str(path), Status())
    assert str(caught.value) == f"no agent listens at {path} (is it running? `stoop run -c …`)"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with pytest.raises(ControlError, match="no agent listens at"):
        control.ask(str(path), Status())


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"can't be opened: .*see control\.path"):
        control.ask(str(tmp_path / ("x" * 200)), Status())


def test_follow_gives_records_until_the_end(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        assert json.loads(connection.recv(4096)) == {"do": "follow"}
        connection.sendall(b'{"ok": true}\n{"record": {"n": 1}}\n{"rec')
        connection.sendall(b'ord": {"n": 2}}\n{"later": "a kind of line of a newer agent"}\n')

    with Follow(serve(handle)) as records:
        assert records.fileno() >= 0
        assert [record["n"] for record in records] == [1, 2]
        assert records.closed


def test_follow_can_be_polled(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b'{"ok": true}\n')
        connection.recv(1)

    with Follow(serve(handle)) as records:
        assert records.read() == []
        assert not records.closed


def test_follow_says_when_the_stream_is_not_json(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b'{"ok": true}\n}{\n')

    with Follow(serve(handle)) as records, pytest.raises(ControlError, match="not JSON"):
        list(records)


def test_a_refused_follow_closes_its_socket(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b'{"ok": false, "error": "too many followers"}\n')
        assert connection.recv(1) == b""

    with pytest.raises(ControlError, match="too many followers"), Follow(serve(handle)):
        pass
