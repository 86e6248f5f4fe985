"""`stoop send` to real sockets: what arrives, and what is told."""

from __future__ import annotations

import base64
import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoop.cli.alerts import at_now, split


class UnixReceiver:
    """Takes one connection and keeps every byte; `limit` bytes, then it breaks off."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.path = path
        self.data = b""
        self._limit = limit
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while (self._limit is None or len(self.data) < self._limit) and (got := connection.recv(65536)):
                self.data += got

    def join(self) -> None:
        self._thread.join(timeout=10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Callable[..., UnixReceiver]]:
    started: list[UnixReceiver] = []

    def start(limit: int | None = None) -> UnixReceiver:
        started.append(UnixReceiver(tmp_path / "falco.sock", limit))
        return started[-1]

    yield start
    for one in started:
        one.join()


class HttpReceiver(http.server.ThreadingHTTPServer):
    """Answers 200, or 400 where the body is no JSON object, 401 where a token is asked for and missing."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.seen: list[tuple[str, bytes, str]] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/falco"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpReceiver

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, body, self.headers["Content-Type"]))
        basic = base64.b64encode(f"falco:{self.server.token}".encode()).decode()
        right = (f"Bearer {self.server.token}", f"Basic {basic}")
        if self.server.token and self.headers["Authorization"] not in right:
            self._answer(401, b"a token is needed\n")
        elif not body.startswith(b"{"):
            self._answer(400, b"not an alert \x1b[31m")
        else:
            self._answer(200, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Callable[..., HttpReceiver]]:
    started: list[tuple[HttpReceiver, threading.Thread]] = []

    def start(token: str = "") -> HttpReceiver:
        server = HttpReceiver(token)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_lines_go_as_they_are(stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str]) -> None:
    taker = receiver()
    text = '{"rule": "a",  "n": 1.50}\n\n{"rule": "b"}\nnot json \n'
    ran = stoop("send", write("alerts", text), "--to", taker.path)
    taker.join()
    assert taker.data == b'{"rule": "a",  "n": 1.50}\n{"rule": "b"}\nnot json\n'
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("3 sent ")


def test_one_pretty_printed_alert_is_one_line(
    stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str]
) -> None:
    taker = receiver()
    text = '{\n  "rule": "a",\n  "output_fields": {\n    "n": 12345678901234567890123, "f": 1.50\n  }\n}\n'
    assert stoop("send", write("alert", text), "--to", taker.path).code == 0
    taker.join()
    assert taker.data == b'{"rule":"a","output_fields":{"n":12345678901234567890123,"f":1.50}}\n'


def test_the_configured_socket_is_the_default(
    stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str], tmp_path: Path
) -> None:
    taker = receiver()
    config = write("stoop.yaml", f"state_dir: {tmp_path}\n")
    assert stoop("send", write("alert", {"rule": "a"}), "-c", config).code == 0
    taker.join()
    assert taker.data == b'{"rule": "a"}\n'


def test_now_rewrites_the_times(
    stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str], alert: Callable[..., dict[str, Any]]
) -> None:
    taker = receiver()
    before = time.time_ns()
    assert stoop("send", write("alert", alert()), "--to", taker.path, "--now").code == 0
    taker.join()
    sent = json.loads(taker.data)
    at_ns = sent["output_fields"]["evt.time"]
    assert before <= at_ns <= time.time_ns()
    assert sent["time"].endswith(f"{at_ns % 10**9:09d}Z")
    assert {**sent, "time": "", "output_fields": {**sent["output_fields"], "evt.time": 0}} == {
        **alert(time=""),
        "output_fields": {**alert()["output_fields"], "evt.time": 0},
    }


@pytest.mark.parametrize("data", [b"[1]", b"no json", b'"text"', b"\xff"])
def test_what_is_no_object_keeps_its_times(data: bytes) -> None:
    assert at_now(data) == data


@pytest.mark.parametrize(
    ("data", "alerts"),
    [
        (b"", []),
        (b" \n\n", []),
        (b'{"a":1}', [b'{"a":1}']),
        (b'{"a":1}\r\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
        (b'[{"a":1},{"a":2}]', [b'{"a":1}', b'{"a":2}']),
        (b'[\n{"a": 1.0},\n{"a":2}\n]', [b'{"a":1.0}', b'{"a":2}']),
        (b"garbage\nmore", [b"garbage", b"more"]),
        (b"[\n", [b"["]),
        (b"[1", [b"[1"]),
        (b"{\n" * 100_000, [b"{"] * 100_000),
    ],
    ids=range(10),
)
def test_alerts_are_split(data: bytes, alerts: list[bytes]) -> None:
    assert split(data) == alerts


def test_a_rate_spaces_the_alerts(stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str]) -> None:
    taker = receiver()
    begun = time.monotonic()
    assert stoop("send", write("alerts", *[{"n": n} for n in range(5)]), "--to", taker.path, "--rate", "100").code == 0
    assert time.monotonic() - begun >= 0.04


def test_nobody_there_is_said(stoop: Any, write: Callable[..., str], tmp_path: Path) -> None:
    ran = stoop("send", write("alert", {"rule": "a"}), "--to", tmp_path / "none.sock")
    assert ran.code == 2
    assert "nobody takes alerts there: No such file or directory (is the agent running? `stoop status`)" in ran.err


def test_an_agent_that_breaks_off_is_said(
    stoop: Any, receiver: Callable[..., UnixReceiver], write: Callable[..., str]
) -> None:
    taker = receiver(limit=1)
    many = write("alerts", *[{"rule": "x" * 10_000} for _ in range(500)])
    ran = stoop("send", many, "--to", taker.path)
    assert ran.code == 2
    assert "the agent broke off after" in ran.err


def test_http_counts_the_answers(stoop: Any, web: Callable[..., HttpReceiver], write: Callable[..., str]) -> None:
    server = web()
    ran = stoop("send", write("alerts", '{"rule": "a"}\n[]\n{"rule": "b"}\n'), "--to", server.url)
    assert ran.code == 1
    assert ran.out == "3 sent, 2 answered, 1 refused\n"
    assert ran.err == "refused: alert 2: 400 not an alert \\x1b[31m\n"
    assert server.seen == [("/falco", body, "application/json") for body in (b'{"rule": "a"}', b"[]", b'{"rule": "b"}')]
    assert server.connections == 1


def test_http_with_a_token(
    stoop: Any, web: Callable[..., HttpReceiver], write: Callable[..., str], tmp_path: Path
) -> None:
    server, alert = web(token="s3cret"), write("alert", {"rule": "a"})
    ran = stoop("send", alert, "--to", server.url)
    assert (ran.code, ran.err) == (1, "refused: alert 1: 401 a token is needed\n")
    right = stoop("send", alert, "--to", server.url, "--token-file", write("token", "s3cret\n"))
    assert (right.code, right.out) == (0, "1 sent, 1 answered, 0 refused\n")
    in_url = server.url.replace("127.", "falco:s%33cret@127.")
    assert stoop("send", alert, "--to", in_url).code == 0
    missing = stoop("send", alert, "--to", server.url, "--token-file", tmp_path / "none")
    assert (missing.code, "the token can't be read" in missing.err) == (2, True)
    odd = stoop("send", alert, "--to", server.url, "--token-file", write("odd", "a\nb"))
    assert (odd.code, "one line of plain ASCII" in odd.err) == (2, True)
    unix = stoop("send", alert, "--to", tmp_path / "s", "--token-file", write("token", "s3cret"))
    assert (unix.code, "a unix socket asks for no token" in unix.err) == (2, True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://127.0.0.1:99999/", "http://[::1/", "http:///"])
def test_a_url_without_an_answer_is_said(stoop: Any, write: Callable[..., str], url: str) -> None:
    ran = stoop("send", write("alert", {"rule": "a"}), "--to", url)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1


def test_an_empty_file_is_said(stoop: Any, write: Callable[..., str]) -> None:
    ran = stoop("send", write("empty", "\n"), "--to", "/nowhere")
    assert (ran.code, "there is no alert in it" in ran.err) == (2, True)


def test_standard_input(
    stoop: Any, receiver: Callable[..., UnixReceiver], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taker = receiver()
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"rule": "a"}\n')
    os.close(write_end)
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert stoop("send", "-", "--to", taker.path).code == 0
    taker.join()
    assert taker.data == b'{"rule": "a"}\n'
