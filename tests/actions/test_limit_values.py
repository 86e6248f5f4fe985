"""What `container:limit` writes into which file, and what it makes of what is there."""

from __future__ import annotations

import pytest

from stoop.actions.container.limit_values import Change, Limits, is_tighter, now_of, parse_cores, wanted

ALL = Limits(cores_thousandths=100, pids=64, memory_bytes=64 * 2**20 + 1, io_bytes_per_s=2**20)


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [("0.1", 100), ("100m", 100), ("10%", 100), ("1", 1000), ("2.5", 2500), ("250%", 2500), ("0.5%", 5), (" 1m ", 1)],
)
def test_an_amount_of_cpu(text: str, thousandths: int) -> None:
    assert parse_cores(text) == thousandths


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0m", "0.0004", "1e3", "1 core", "10 %", "٣", "1" * 20])
def test_what_is_no_amount_of_cpu_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="CPU"):
        parse_cores(text)


def test_the_files_of_v2() -> None:
    assert list(wanted(ALL, v2=True, devices=["8:0", "254:0"])) == [
        Change("", "cpu.max", "", "10000 100000"),
        Change("", "pids.max", "", "64"),
        Change("", "memory.high", "", str(64 * 2**20)),
        Change("", "io.max", "8:0", "rbps=1048576 wbps=1048576"),
        Change("", "io.max", "254:0", "rbps=1048576 wbps=1048576"),
    ]


def test_the_files_of_v1_have_no_memory() -> None:
    assert list(wanted(ALL, v2=False, devices=["8:0"])) == [
        Change("cpu", "cpu.cfs_quota_us", "", "10000"),
        Change("pids", "pids.max", "", "64"),
        Change("blkio", "blkio.throttle.read_bps_device", "8:0", "1048576"),
        Change("blkio", "blkio.throttle.write_bps_device", "8:0", "1048576"),
    ]


def test_what_is_not_wanted_is_not_written() -> None:
    assert list(wanted(Limits(), v2=True, devices=["8:0"])) == []
    assert [change.new for change in wanted(Limits(cores_thousandths=1), v2=True, devices=[])] == ["1000 100000"]


CPU, PIDS = Change("", "cpu.max", "", "10000 100000"), Change("", "pids.max", "", "64")
QUOTA = Change("cpu", "cpu.cfs_quota_us", "", "10000")
IO = Change("", "io.max", "8:0", "rbps=1000 wbps=1000")
READS = Change("blkio", "blkio.throttle.read_bps_device", "8:0", "1000")


@pytest.mark.parametrize(
    ("change", "content", "now", "tighter"),
    [
        (CPU, "max 100000\n", "max 100000", False),
        (CPU, "5000 100000\n", "5000 100000", True),
        (CPU, "10000 100000\n", "10000 100000", True),
        (CPU, "10000 50000\n", "10000 50000", False),
        (PIDS, "max\n", "max", False),
        (PIDS, "65\n", "65", False),
        (PIDS, "0\n", "0", True),
        (QUOTA, "-1\n", "-1", False),
        (QUOTA, "9999\n", "9999", True),
        (IO, "", "rbps=max wbps=max", False),
        (IO, "8:16 rbps=1 wbps=1 riops=max wiops=max\n", "rbps=max wbps=max", False),
        (IO, "8:16 rbps=1\n8:0 rbps=500 wbps=max riops=7 wiops=max\n", "rbps=500 wbps=max", False),
        (IO, "8:0 rbps=500 wbps=1000 riops=7 wiops=max\n", "rbps=500 wbps=1000", True),
        (READS, "", "0", False),
        (READS, "8:0 999\n", "999", True),
        (READS, "8:16 1\n8:0 1001\n", "1001", False),
    ],
)
def test_what_is_there_already(change: Change, content: str, now: str, tighter: bool) -> None:
    assert now_of(change, content) == now
    assert is_tighter(change, now) is tighter


def test_an_entry_of_one_device_is_written_with_its_name() -> None:
    assert (IO.line("rbps=max wbps=max"), READS.line("0"), PIDS.line("max")) == (
        "8:0 rbps=max wbps=max",
        "8:0 0",
        "max",
    )
