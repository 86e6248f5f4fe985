"""Alerts from a pipe and from a file."""

# ruff: noqa: ASYNC230 - a local test file

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import trio

from stoop.intake.sink import Desk
from stoop.intake.stdin import StdinIntake
from stoop.intake.testing import RecordingSink

MakeBytes = Callable[[str], bytes]


async def test_a_pipe_is_read_as_it_comes_until_its_end(alert_of: MakeBytes, desk: Desk, sink: RecordingSink) -> None:
    reader, writer = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            assert await nursery.start(StdinIntake(reader, desk).serve) == reader
            os.write(writer, alert_of("a") + b"\nbad\n" + alert_of("b")[:30])
            await sink.until_faults(1)
            assert sink.rules == ["a"]
            assert [peer.kind for peer in sink.present] == ["stdin"]
            os.write(writer, alert_of("b")[30:])
            os.close(writer)
    finally:
        os.close(reader)
    assert sink.rules == ["a", "b"]
    assert not sink.present


async def test_a_file_is_read_whole(alert_of: MakeBytes, desk: Desk, sink: RecordingSink, tmp_path: Path) -> None:
    path = tmp_path / "alerts"
    path.write_bytes(b"\n".join([alert_of("a")] * 200) + b"\n" + b"x\n" * 2000)
    with path.open("rb") as file:
        await StdinIntake(file.fileno(), desk).serve()
    assert len(sink.alerts) == 200
    assert len(sink.faults) == 2000


async def test_nothing_is_an_end(desk: Desk, sink: RecordingSink) -> None:
    with open(os.devnull, "rb") as nothing:
        await StdinIntake(nothing.fileno(), desk).serve()
    assert len(sink.gone) == 1


async def test_a_directory_is_an_end(desk: Desk, sink: RecordingSink, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        await StdinIntake(fd, desk).serve()
    finally:
        os.close(fd)
    assert len(sink.gone) == 1


async def test_a_terminal_that_is_gone_is_an_end(alert_of: MakeBytes, desk: Desk, sink: RecordingSink) -> None:
    main, terminal = os.openpty()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(StdinIntake(terminal, desk).serve)
            os.write(main, alert_of("a") + b"\n")
            await sink.until_alerts(1)
            os.close(main)
    finally:
        os.close(terminal)
    assert sink.rules == ["a"]
