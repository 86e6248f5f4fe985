"""The helper as a real process on a real socketpair: rules, log, metrics, health, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from stoop.metrics import Metrics
from stoop.record import Record, Timing
from stoop.rules.model import RuleForm
from stoop.spec import Verdict
from stoop.wire import (
    AnyMessage,
    FrameReader,
    Hello,
    LogLine,
    Recorded,
    RuleReady,
    RulesBegin,
    RulesEnd,
    RulesRejected,
    RulesSource,
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


class TestRules:
    def test_good_files_come_back_rule_by_rule(self, start: Start) -> None:
        helper = start()
        helper.reflex.send(RulesSource(7, (("rules.yaml", GOOD_RULES),)))
        begin = helper.reflex.expect(RulesBegin)
        assert (begin.generation, begin.count) == (7, 2)
        assert begin.digest
        rules = [msgspec.msgpack.decode(helper.reflex.expect(RuleReady).rule, type=RuleForm) for _ in range(2)]
        assert [rule.rule for rule in rules] == ["Kill a shell", "Kill a miner"]
        assert helper.reflex.expect(RulesEnd).generation == 7

    def test_bad_files_come_back_as_every_problem(self, start: Start) -> None:
        helper = start()
        helper.reflex.send(RulesSource(8, (("rules.yaml", BAD_RULES),)))
        rejected = helper.reflex.expect(RulesRejected)
        assert rejected.generation == 8
        assert len(rejected.problems) >= 2
        assert all(problem.startswith("rules.yaml:") for problem in rejected.problems)

    def test_what_is_odd_comes_as_a_warning(self, start: Start) -> None:
        helper = start()
        helper.reflex.send(RulesSource(9, (("rules.yaml", GOOD_RULES + b"  descripton: x\n"),)))
        (warning,) = helper.reflex.expect(RulesEnd).warnings
        assert "description" in warning

    def test_the_newest_of_many_is_answered(self, start: Start) -> None:
        helper = start()
        for generation in range(1, 30):
            helper.reflex.send(RulesSource(generation, (("rules.yaml", GOOD_RULES),)))
        while helper.reflex.expect(RulesEnd).generation < 29:
            pass

    def test_a_thousand_rules(self, start: Start) -> None:
        text = "".join(
            f"- rule: r{n}\n  match: {{rules: [f{n}]}}\n  actions: [{{action: a{n}, actionner: 'process:kill'}}]\n"
            for n in range(1000)
        )
        helper = start()
        helper.reflex.send(RulesSource(1, (("rules.yaml", text.encode()),)))
        assert helper.reflex.expect(RulesBegin).count == 1000
        helper.reflex.expect(RulesEnd)


class TestLog:
    def test_records_and_lines_are_json_of_ascii_only(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.send(
            LogLine("warning", "clock stepped", 1_700_000_000_000_000_000, {"by_ms": 12}),
            LogLine("shout", "of no known level", 1, {"event": "kept out", "level": "x"}),
            Recorded(RECORD),
        )
        assert helper.end() == 0
        assert helper.log.read_bytes().isascii()
        stepped, unknown, act = (json.loads(line) for line in helper.lines())
        assert stepped == {
            "time": "2023-11-14T22:13:20.000000Z",
            "level": "warning",
            "event": "clock stepped",
            "by_ms": 12,
        }
        assert (unknown["level"], unknown["event"]) == ("info", "of no known level")
        assert (act["event"], act["outcome"], act["rule"]) == ("act", "done", "Kill a shell")
        assert act["timing_us"] == {"received": 200, "acted": 500}
        assert act["output"] == RECORD.output

    def test_text_has_no_character_that_a_terminal_obeys(self, start: Start) -> None:
        helper = start()
        helper.greet("text")
        failed = msgspec.structs.replace(RECORD, verdict=Verdict.FAILED, reason="signalled, state D")
        helper.reflex.send(Recorded(failed))
        assert helper.end() == 0
        (line,) = helper.lines()
        assert re.match(r"\S+ ERR act outcome=failed ", line)
        assert 'reason="signalled, state D"' in line
        assert r"bad \x1b[2J\u202e name" in line
        assert line.isprintable()

    def test_a_burst_is_written_whole(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.sock.sendall(encode(Recorded(RECORD)) * 5000)
        assert helper.end() == 0
        assert len(helper.lines()) == 5000

    def test_standard_error_that_nobody_reads_blocks_nothing(self, start: Start) -> None:
        reading, writing = os.pipe()
        with open(reading, "rb") as pipe:
            helper = start(stderr=writing)
            os.close(writing)
            helper.greet()
            helper.reflex.sock.sendall(encode(Recorded(RECORD)) * 20_000)
            helper.reflex.send(RulesSource(1, ()))
            helper.reflex.expect(RulesEnd)
            assert helper.get("/healthz")[0] == 200
            dropped = re.search(r'stoop_log_lines_dropped_total{process="helper"} (\d+)', helper.get("/metrics")[2])
            assert dropped is not None
            assert int(dropped[1]) > 1000
            assert helper.end() == 0
            pipe.read()


class TestMetrics:
    def test_the_reflex_s_counts_are_served(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.metrics.inc("acts_total", ("process:kill", "done"), 3)
        helper.reflex.metrics.inc("alerts_matched_total", ('a "quoted"\nrule',))
        helper.reflex.metrics.observe("event_to_acted_seconds", (), 0.0004)
        status, content_type, body = helper.get("/metrics")
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'stoop_acts_total{action="process:kill",outcome="done"} 3.0' in body
        assert r'stoop_alerts_matched_total{rule="a \"quoted\"\nrule"} 1.0' in body
        assert 'stoop_event_to_acted_seconds_bucket{le="0.0003"} 0.0' in body
        assert 'stoop_event_to_acted_seconds_bucket{le="0.0005"} 1.0' in body
        assert "stoop_reflex_responding 1.0" in body
        assert 'stoop_build_info{version="0.1.0"} 1.0' in body

    def test_openmetrics_when_asked(self, start: Start) -> None:
        helper = start()
        helper.greet()
        _, content_type, body = helper.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")

    def test_a_stuck_reflex_leaves_its_last_counts(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.metrics.inc("queue_dropped_total", n=5)
        helper.get("/metrics")
        helper.reflex.answers = False
        status, _, body = helper.get("/metrics")
        assert status == 200
        assert "stoop_reflex_responding 0.0" in body
        assert "stoop_queue_dropped_total 5.0" in body

    def test_a_port_in_use_is_told(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            helper = start()
            serving = helper.greet(port=taken.getsockname()[1])
        assert serving.port == 0
        assert "in use" in serving.error
        assert "metrics.port" in serving.error

    def test_a_port_that_an_earlier_helper_still_holds(self, start: Start) -> None:
        first, second = start(), start()
        port = first.greet().port
        second.reflex.send(Hello("node-1", "127.0.0.1", port, "json", "0.1.0"))
        assert first.end() == 0
        assert second.reflex.expect(Serving).port == port

    def test_no_address_no_server(self, start: Start) -> None:
        helper = start()
        helper.reflex.send(Hello("node-1", "", 0, "json", "0.1.0"), RulesSource(1, ()))
        helper.reflex.expect(RulesEnd)
        assert helper.end() == 0


class TestHealth:
    def test_healthy_and_ready(self, start: Start) -> None:
        helper = start()
        helper.greet()
        assert helper.get("/readyz")[0] == 200
        status, content_type, body = helper.get("/healthz")
        assert (status, content_type, json.loads(body)) == (200, "application/json", {"status": "ok"})

    def test_not_ready_says_why(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.ready = False
        helper.reflex.detail = {"rules": "last reload rejected: \u202e", "intake": {"unix": "not listening"}}
        status, _, body = helper.get("/readyz")
        assert status == 503
        assert body.isascii()
        assert json.loads(body) == {"ready": False, **helper.reflex.detail}

    def test_a_reflex_that_never_answers_fails_both(self, start: Start) -> None:
        helper = start()
        helper.reflex.answers = False
        helper.greet()
        status, _, body = helper.get("/healthz")
        assert status == 503
        assert "has not answered since the helper started" in body
        status, _, body = helper.get("/readyz")
        assert status == 503
        assert "does not answer" in body

    def test_it_asks_by_itself(self, start: Start) -> None:
        helper = start()
        helper.reflex.expect(SnapshotAsk)


class TestEnd:
    @pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_of_the_group_are_the_reflex_s_business(self, start: Start, signo: signal.Signals) -> None:
        helper = start()
        helper.greet()
        helper.process.send_signal(signo)
        assert helper.get("/readyz")[0] == 200
        assert helper.end() == 0
        assert helper.lines() == []

    def test_no_reflex_at_all(self, start: Start) -> None:
        helper = start()
        helper.reflex.sock.sendall(b"\x05\0\0\0hello")
        assert helper.process.wait(PATIENCE) == 1
        assert "does not speak the helper's protocol" in helper.log.read_text()

    def test_started_by_hand(self) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "agent.helper", "99"], cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False
        )
        assert ended.returncode == 2
        assert b"is started by stoop-agent" in ended.stderr
        assert b"Traceback" not in ended.stderr


@needs_root
@pytest.mark.root
class TestRights:
    def test_nothing_is_left(self, start: Start) -> None:
        helper = start()
        helper.greet()
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{helper.process.pid}/status").read_text().splitlines()
        )
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"].split() == []
        assert (int(status["CapPrm"], 16), int(status["CapEff"], 16)) == (0, 0)
        assert status["NoNewPrivs"].strip() == "1"
        limits = Path(f"/proc/{helper.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0", limits)

    def test_nothing_is_imported_after_the_rights_are_gone(self, start: Start) -> None:
        """Else it could fail where only root can read the program. Every import is a line on standard error."""
        helper = start("-X", "importtime")
        helper.greet("text")
        before = helper.log.read_text().count("import time:")
        helper.reflex.send(
            RulesSource(1, (("good", GOOD_RULES), ("odd", b"- rule: x\n  mach: 1\n"))),
            RulesSource(2, (("bad", BAD_RULES), ("utf-16", BAD_RULES.decode().encode("utf-16")), ("no", b"{"))),
        )
        helper.reflex.expect(RulesRejected)
        helper.reflex.send(Recorded(RECORD), LogLine("error", "x", 1, {"a": float("nan")}))
        for path in ("/metrics", "/healthz", "/readyz", "/nothing"):
            helper.get(path)
        helper.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        imported = [line for line in helper.lines() if "import time:" in line]
        assert imported[before:] == []
        assert helper.end() == 0
