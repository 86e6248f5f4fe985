"""`stoop history` over a real journal, and followed over a real socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoop.journal import Journal
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)

NOW_NS = time.time_ns()
HOUR_NS = 3600 * 10**9


def record(number: int, verdict: Verdict = Verdict.DONE, **changes: Any) -> Record:
    at_ns = changes.pop("at_ns", NOW_NS)
    values: dict[str, Any] = {
        "alert": f"{number:032x}",
        "run": f"{number:031x}a",
        "act": f"{number:031x}b",
        "rule": "Kill a shell",
        "action": "Kill it",
        "actionner": "process:kill",
        "verdict": verdict,
        "reason": "" if verdict is Verdict.DONE else "it is protected",
        "target": {"pid": 4711, "comm": "sh", "container_id": "d34690e67a3aaaaaaaaa", "namespace": "default"},
        "timing": Timing(at_ns, at_ns + 1_000_000, at_ns + 1_200_000, at_ns + 1_250_000, at_ns + 1_430_000),
        **changes,
    }
    return Record(**values)


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., None]:
    """Write records with a real journal, as the agent does."""

    def keep(*records: Record) -> None:
        warned: list[object] = []
        journal = Journal(
            tmp_path, max_age_s=0, max_bytes=0, warn=lambda event, **fields: warned.append((event, fields))
        )
        journal.open()
        for one in records:
            journal.put(one)
        journal.close()
        assert warned == []

    return keep


@pytest.fixture
def config(write: Callable[..., str], tmp_path: Path) -> str:
    return write("stoop.yaml", f"state_dir: {tmp_path}\n")


def test_a_line_an_act(stoop: Any, kept: Callable[..., None], config: str) -> None:
    kept(record(1), record(2, Verdict.REFUSED, timing=Timing(NOW_NS, NOW_NS)))
    ran = stoop("history", "-c", config)
    assert (ran.code, ran.err) == (0, "")
    first, second = ran.out.splitlines()
    said = "done     Kill a shell · process:kill · sh[4711] in default/d34690e67a3a · 430 µs after it was read"
    assert first.endswith(said)
    assert second.endswith("refused  Kill a shell · process:kill · sh[4711] in default/d34690e67a3a · it is protected")


def test_one_object_a_line(stoop: Any, kept: Callable[..., None], config: str) -> None:
    kept(record(1))
    (line,) = stoop("history", "-c", config, "--json").lines
    assert line["outcome"] == "done"
    assert line["timing_us"] == {"received": 1000, "decided": 1200, "acted": 1250, "verified": 1430}


def test_filters(stoop: Any, kept: Callable[..., None], config: str) -> None:
    kept(
        record(1, at_ns=NOW_NS - 2 * HOUR_NS),
        record(2, rule="Another"),
        record(3, Verdict.REFUSED),
        record(4),
    )

    def acts(*words: str) -> list[int]:
        return [int(line["act"][:31], 16) for line in stoop("history", "-c", config, "--json", *words).lines]

    assert acts() == [1, 2, 3, 4]
    assert acts("--since", "1h") == [2, 3, 4]
    assert acts("--rule", "Another") == [2]
    assert acts("--outcome", "refused") == [3]
    assert acts("--limit", "2") == [3, 4]


def test_no_journal_is_said(stoop: Any, config: str, tmp_path: Path) -> None:
    ran = stoop("history", "-c", config)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"stoop: {tmp_path}")
    assert "there is no journal" in ran.err


def test_hostile_text_is_escaped(
    stoop: Any, kept: Callable[..., None], config: str, hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    kept(record(1, target={"pid": 1, "comm": hostile}), record(2, rule=hostile), record(3, reason=hostile))
    for line in stoop("history", "-c", config).out.splitlines():
        assert is_harmless(line)
    as_json = stoop("history", "-c", config, "--json")
    assert as_json.out.isascii()
    assert as_json.lines[0]["target"]["comm"] == hostile


def test_followed_on_after_what_was(stoop: Any, agent: Any, kept: Callable[..., None]) -> None:
    agent.answers["follow"] = {"ok": True}
    kept(record(1), record(2))
    agent.records = [record(2).public(), record(3).public(), record(4, rule="Another").public()]
    ran = stoop("history", "-f", "--json", "--rule", "Kill a shell", "-c", agent.config)
    assert ran.code == 2
    assert ran.err == "stoop: the agent ended (`stoop history` without -f reads its journal)\n"
    assert [int(line["act"][:31], 16) for line in ran.lines] == [1, 2, 3]
