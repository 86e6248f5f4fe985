"""The helper as a real process on a real socketpair: rules, log, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stoop.rules.model import RuleForm
from stoop.spec import (
    Verdict,
)
from stoop.wire import (
    LogLine,
    Recorded,
    RuleReady,
    RulesBegin,
    RulesEnd,
    RulesRejected,
    RulesSource,
    encode,
)
from tests.agent.conftest import BAD_RULES, GOOD_RULES, PATIENCE, RECORD, ROOT, Start, needs_root


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
