"""The queue of deliveries: bounded, kept over restarts, and each ends as one record."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from agent.deliveries import FULL, GONE, TOO_OLD, Deliveries
from agent.jobs import DeliverJob, Job, Result
from stoop import config, rules
from stoop.catalogue import CATALOGUE
from stoop.deliveries import MAX_AGE_NS, MAX_DELIVERIES
from stoop.delivery_files import delivery_files
from stoop.metrics import Metrics
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.rules import RuleSet
from stoop.rules.model import OutputForm
from stoop.spec import Mode
from tests.test_deliveries import BUNDLE, record

LOCAL = OutputForm("local:file", {"destination": "/kept"})


class Kept:
    """A ledger that keeps records in a list."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, record: Record, slot: int) -> None:
        self.records.append(record)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not for deliveries")


class Clocks:
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.later_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.later_ns

    def mono_ns(self) -> int:
        return time.monotonic_ns()


class Desk:
    """Deliveries of a state directory, and all that they say."""

    def __init__(self, state: Path, **settings: Any) -> None:
        environ = {"STOOP_STATE_DIR": str(state)}
        self.config = config.load(None, environ, is_root=True, hostname="node-1")
        self.ledger, self.clocks = Kept(), Clocks()
        self.said: list[tuple[str, str, dict[str, Any]]] = []
        self.metrics = Metrics()
        recorder = Recorder(self.ledger, self.metrics, lambda: Mode.ENFORCE, ())
        self.deliveries = Deliveries(self.config, recorder, self.clocks, self._say, lambda pid: None)
        self.jobs: list[DeliverJob] = []
        self.answers: list[Result] = []
        self.deliveries.run = self._run
        self.evidence = state / "evidence"
        self.evidence.mkdir(parents=True, exist_ok=True)

    def _say(self, level: str, event: str, **fields: Any) -> None:
        self.said.append((level, event, fields))

    async def _run(self, job: Job, deadline_s: float) -> Result:
        assert isinstance(job, DeliverJob)
        self.jobs.append(job)
        return self.answers.pop(0) if self.answers else Result(True, details={"fate": "sent", "bytes": 3})

    def accept(self, act: str, **details: Any) -> Record:
        made = record({"bundle": BUNDLE} | details)
        made = msgspec.structs.replace(
            made, act=act, timing=msgspec.structs.replace(made.timing, verified_ns=self.clocks.now_ns())
        )
        return self.deliveries.accept(made, LOCAL)

    def bundle(self) -> None:
        (self.evidence / f"{BUNDLE}.tar.zst").write_bytes(b"whole")


def act(number: int) -> str:
    return f"{number:012x}{number:020x}"


def files(desk: Desk) -> list[str]:
    return sorted(path.name for path in (desk.evidence.parent / "deliveries").glob("*"))


async def settled(desk: Desk) -> None:
    """Serve until nothing more happens by itself."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.deliveries.serve)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def test_it_is_on_disk_before_the_record_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    told = desk.accept(act(1))
    assert told.details["delivery"]["output"] == "local:file"
    assert told.details["delivery"]["object"].startswith("/kept/")
    assert files(desk) == [f"{BUNDLE}.{act(1)}.json"]
    assert (tmp_path / "deliveries" / files(desk)[0]).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deliveries").stat().st_mode & 0o777 == 0o700
    desk.accept(act(1))
    assert len(files(desk)) == 1


async def test_it_is_sent_once_and_recorded(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.bundle()
    desk.accept(act(1))
    await settled(desk)
    (row,) = desk.ledger.records
    assert (str(row.verdict), row.details["delivers"], row.details["bundle"]) == ("done", act(1), BUNDLE)
    assert (row.action, row.details["bytes"]) == ("deliver: A", 3)
    assert files(desk) == []
    assert len(desk.jobs) == 1


async def test_another_life_sends_it(tmp_path: Path) -> None:
    Desk(tmp_path).accept(act(1))
    desk = Desk(tmp_path)
    desk.bundle()
    desk.deliveries.recover()
    assert desk.deliveries.wanted
    await settled(desk)
    assert [row.details["delivers"] for row in desk.ledger.records] == [act(1)]


def test_beyond_the_bound_the_record_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for number in range(MAX_DELIVERIES):
        assert "not_sent" not in desk.accept(act(number)).details["delivery"]
    assert desk.accept(act(MAX_DELIVERIES)).details["delivery"]["not_sent"] == FULL
    assert len(files(desk)) == MAX_DELIVERIES
    assert desk.said[-1][:2] == ("error", "evidence is not sent")


def test_a_directory_that_takes_nothing_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "deliveries").write_text("a file")
    assert desk.accept(act(1)).details["delivery"]["not_sent"] == f"{tmp_path}/deliveries: Not a directory"


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"act": "../../x"}'])
def test_files_that_are_no_deliveries_are_set_aside(text: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.accept(act(1))
    (tmp_path / "deliveries" / "x.json").write_text(text)
    (tmp_path / "deliveries" / "y.new").write_text("half")
    found, troubles = delivery_files(tmp_path).load()
    assert [delivery.act for delivery in found] == [act(1)]
    assert len(troubles) == 1
    assert "it is not sent" in troubles[0]
    assert not (tmp_path / "deliveries" / "y.new").exists()
    assert delivery_files(tmp_path).load() == (found, [])


def test_a_file_under_anothers_name_is_not_sent(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.accept(act(1))
    (name,) = files(desk)
    (tmp_path / "deliveries" / name).rename(tmp_path / "deliveries" / f"{BUNDLE}.{act(2)}.json")
    found, (trouble,) = delivery_files(tmp_path).load()
    assert found == []
    assert f"it says that it is {BUNDLE}.{act(1)}" in trouble


async def test_what_the_store_let_go_of_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.accept(act(1))
    desk.clocks.later_ns = 61 * 10**9
    await settled(desk)
    (row,) = desk.ledger.records
    assert (str(row.verdict), row.reason) == ("failed", GONE)
    assert files(desk) == []


async def test_after_a_week_it_is_given_up(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.bundle()
    desk.accept(act(1))
    desk.clocks.later_ns = MAX_AGE_NS + 10**9
    await settled(desk)
    (row,) = desk.ledger.records
    assert (str(row.verdict), row.reason) == ("failed", TOO_OLD)
    assert (files(desk), desk.jobs) == ([], [])


async def test_a_store_that_fails_waits_with_all_that_goes_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    desk = Desk(tmp_path)
    desk.bundle()
    desk.accept(act(1))
    desk.accept(act(2))
    desk.answers = [Result(False, "no space", {"fate": "later"})] * 2 + [Result(False, "no such", {"fate": "mend"})]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.deliveries.serve)
        for _ in range(3600):
            if len(desk.ledger.records) == 2:
                break
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [job.name for job in desk.jobs[:3]] != [desk.jobs[0].name] * 3  # the other had its turn
    assert len(desk.jobs) == 5
    words = [(level, fields.get("reason")) for level, event, fields in desk.said if "tried again" in event]
    assert words == [("warning", "no space"), ("error", "no such")]
    assert ("info", "evidence is sent again") in [(level, event) for level, event, _ in desk.said]
    assert {str(row.verdict) for row in desk.ledger.records} == {"done"}


async def test_what_is_damaged_is_given_up_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.bundle()
    desk.accept(act(1))
    desk.answers = [Result(False, "damaged", {"fate": "never"})]
    await settled(desk)
    (row,) = desk.ledger.records
    assert (str(row.verdict), row.reason) == ("failed", "damaged")


def use(desk: Desk, *targets: str) -> None:
    """Rules that have these outputs."""
    action = "{action: a, actionner: 'evidence:snapshot', output: {target: '%s', parameters: {%s: /kept}}}"
    actions = [action % (target, "destination" if target == "local:file" else "bucket") for target in targets]
    text = f"- {{rule: r, match: {{rules: [A]}}, actions: [{', '.join(actions)}]}}".replace(
        "bucket: /kept", "bucket: b"
    )
    desk.deliveries.use(RuleSet.of(rules.load((("r.yaml", text.encode()),), CATALOGUE).rules))


def test_what_the_node_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    assert desk.deliveries.unavailable() == {}
    use(desk, "aws:s3", "minio:s3", "gcp:gcs")
    assert desk.deliveries.unavailable() == {"minio:s3": "minio.endpoint is not set (stoop.yaml)"}
    monkeypatch.setitem(sys.modules, "obstore", None)  # as where it is not installed
    lacking = desk.deliveries.unavailable()
    assert set(lacking) == {"aws:s3", "minio:s3", "gcp:gcs"}
    assert lacking["aws:s3"] == "the Python package obstore is not installed: pip install 'stoop[outputs]'"
    use(desk, "local:file")
    assert desk.deliveries.unavailable() == {}


async def test_folders_of_rules_are_looked_at(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.answers = [Result(False, "/kept: No such file or directory", {"fate": "mend"})]
    told = []
    desk.deliveries.told = lambda: told.append(True)
    use(desk, "local:file")
    await settled(desk)
    assert desk.deliveries.unavailable() == {"local:file": "/kept: No such file or directory"}
    assert told == [True]
