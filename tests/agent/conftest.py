"""A helper as a real process on a real socketpair."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stoop.metrics import Metrics
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)
from stoop.wire import (
    AnyMessage,
    FrameReader,
    Hello,
    Serving,
    SnapshotAsk,
    SnapshotReply,
    encode,
)

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]
M = TypeVar("M")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")

GOOD_RULES = b"""
- action: Kill it
  actionner: process:kill
- rule: Kill a shell
  match: {rules: [Terminal shell in container]}
  actions: [{action: Kill it}]
- rule: Kill a miner
  match: {rules: [Detect crypto miners using the Stratum protocol]}
  actions: [{action: Kill it}]
"""
BAD_RULES = b"""
- rule: one
  match: {priority: horrible}
  actions: [{action: x, actionner: "process:kill"}]
- rule: two
  actions: [{action: y, actionner: "no:such"}]
"""
RECORD = Record(
    alert="a1",
    run="r1",
    act="c1",
    rule="Kill a shell",
    action="Kill it",
    actionner="process:kill",
    verdict=Verdict.DONE,
    reason="",
    target={"pid": 4711},
    timing=Timing(event_ns=1_000_000, received_ns=1_200_000, acted_ns=1_500_000),
    falco_rule="Terminal shell in container",
    output="bad \x1b[2J\u202e name",
)


class Reflex:
    """The reflex's end: takes the helper's messages in a thread, and answers asks while `answers` is set."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answers = True
        self.ready = True
        self.detail: dict[str, Any] = {"rules": "2 active"}
        self.metrics = Metrics()
        self.asks = 0
        self._messages: list[AnyMessage] = []
        self._came = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self.sock.close()

    def send(self, *messages: AnyMessage) -> None:
        for message in messages:
            self.sock.sendall(encode(message))

    def expect(self, kind: type[M]) -> M:
        """The next message of this kind; those before it are dropped."""
        with self._came:
            assert self._came.wait_for(lambda: self._has(kind) or self._ended, PATIENCE), f"no {kind.__name__} came"
            assert self._has(kind), "the helper ended"
            while True:
                message = self._messages.pop(0)
                if isinstance(message, kind):
                    return message

    def has_ended(self) -> bool:
        with self._came:
            return self._came.wait_for(lambda: self._ended, PATIENCE)

    def _has(self, kind: type[Any]) -> bool:
        return any(isinstance(message, kind) for message in self._messages)

    def _read(self) -> None:
        reader = FrameReader()
        with contextlib.suppress(OSError):  # the helper, or the test, has ended
            while data := self.sock.recv(65536):
                for message in reader.feed(data):
                    self._take(message)
        with self._came:
            self._ended = True
            self._came.notify_all()

    def _take(self, message: AnyMessage) -> None:
        if isinstance(message, SnapshotAsk):
            self.asks += 1
            if self.answers:
                self.send(SnapshotReply(message.id, self.metrics.samples(), self.ready, self.detail))
        with self._came:
            self._messages.append(message)
            self._came.notify_all()


class Running:
    """A helper, its reflex, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], reflex: Reflex, log: Path) -> None:
        self.process = process
        self.reflex = reflex
        self.log = log
        self.port = 0

    def greet(self, log_format: str = "json", address: str = "127.0.0.1", port: int = 0) -> Serving:
        self.reflex.send(Hello("node-1", address, port, log_format, "0.1.0"))
        serving = self.reflex.expect(Serving)
        self.port = serving.port
        return serving

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Status, content type and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type", ""), response.read().decode()

    def end(self) -> int:
        """Close the socket and wait."""
        self.reflex.sock.shutdown(socket.SHUT_RDWR)
        return self.process.wait(PATIENCE)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts helpers as the reflex does, and ends them whatever happens."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str, stderr: int | None = None) -> Running:
            ours, theirs = socket.socketpair()
            log = tmp_path / "stderr"
            with theirs, log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, *options, "-m", "agent.helper", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stderr=file if stderr is None else stderr,
                    cwd=ROOT,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            reflex = Reflex(ours)
            stack.callback(reflex.close)
            return Running(process, reflex, log)

        yield begin
