"""Following Falco's file: over rename, truncation and restart, with real files and inotify."""

# ruff: noqa: ASYNC220, ASYNC240 - a local test file is touched in between: that is the test

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from stoop.errors import StartRefused
from stoop.intake.file import FileIntake
from stoop.intake.limits import Limits
from stoop.intake.marks import FileMark
from stoop.intake.sink import Desk
from stoop.intake.testing import MemoryMarks, RecordingSink, RecordingWarn

MakeBytes = Callable[[str], bytes]
Following = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def limits() -> Limits:
    """The slow look is so slow that whatever a test waits for comes by inotify."""
    return Limits(poll_seconds=60, first_read_bytes=4096)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.json"


@pytest.fixture
def marks() -> MemoryMarks:
    return MemoryMarks()


@pytest.fixture
def following(path: Path, marks: MemoryMarks, desk: Desk) -> Following:
    """A run of the intake: may be entered again, as after a restart."""

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            assert await nursery.start(FileIntake(str(path), marks, desk).serve) == str(path)
            yield
            nursery.cancel_scope.cancel()

    return run


@pytest.fixture
def append(path: Path, alert_of: MakeBytes) -> Callable[..., None]:
    """Write alerts as Falco does: open to append, one write each, close."""

    def write(*rules: str, to: Path = path) -> None:
        for rule in rules:
            with to.open("ab", buffering=0) as file:
                file.write(alert_of(rule) + b"\n")

    return write


async def test_what_is_there_and_what_comes(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, marks: MemoryMarks
) -> None:
    append("a", "b")
    async with following():
        await sink.until_alerts(2)
        append("c")
        await sink.until_alerts(3)
        assert [peer.name for peer in sink.present] == [str(path)]
    assert sink.rules == ["a", "b", "c"]
    assert marks.committed[-1].offset == path.stat().st_size
    assert not sink.present


async def test_a_file_that_is_not_there_yet_is_waited_for(
    following: Following, append: Callable[..., None], sink: RecordingSink
) -> None:
    async with following():
        await trio.testing.wait_all_tasks_blocked()
        assert not sink.present
        append("a")
        await sink.until_alerts(1)


async def test_half_a_line_waits_for_its_rest(
    following: Following, path: Path, alert_of: MakeBytes, sink: RecordingSink, marks: MemoryMarks
) -> None:
    first, second = alert_of("a") + b"\n", alert_of("b") + b"\n"
    path.write_bytes(first + second[:40])
    async with following():
        await sink.until_alerts(1)
        assert marks.committed[-1].offset == len(first)
        with path.open("ab") as file:
            file.write(second[40:])
        await sink.until_alerts(2)
        assert marks.committed[-1].offset == len(first + second)


async def test_bad_lines_are_refused_and_passed(
    following: Following, path: Path, alert_of: MakeBytes, sink: RecordingSink, marks: MemoryMarks
) -> None:
    path.write_bytes(b"bad\n" * 1000 + alert_of("a") + b"\n" + b"x\n")
    marks.commit(FileMark(str(path), *_identity(path), 0, ""))
    async with following():
        await sink.until_faults(1001)
    assert sink.rules == ["a"]
    assert marks.committed[-1].offset == path.stat().st_size


# ---------------------------------------------------------------- rename


async def test_a_renamed_file_is_read_to_its_end_and_on_until_the_new_one_begins(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, marks: MemoryMarks
) -> None:
    old = path.with_suffix(".1")
    async with following():
        append("a")
        await sink.until_alerts(1)
        path.rename(old)
        path.touch()  # logrotate's `create`: Falco still writes to the old one
        append("b", to=old)
        await sink.until_alerts(2)
        append("c", to=old)
        append("d")
        await sink.until_alerts(4)
        append("e")
        await sink.until_alerts(5)
        path.rename(path.with_suffix(".2"))
        append("f")
        await sink.until_alerts(6)
    assert sink.rules == ["a", "b", "c", "d", "e", "f"]
    assert (marks.committed[-1].dev, marks.committed[-1].ino) == _identity(path)


async def test_half_a_line_at_the_end_of_the_old_file_is_refused(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink
) -> None:
    append("a")
    with path.open("ab") as file:
        file.write(b'{"rule": "half')
    async with following():
        await sink.until_alerts(1)
        path.rename(path.with_suffix(".1"))
        append("b")
        await sink.until_alerts(2)
    assert len(sink.faults) == 1


async def test_a_deleted_file_is_followed_by_the_next(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink
) -> None:
    append("a")
    async with following():
        await sink.until_alerts(1)
        path.unlink()
        append("b")
        await sink.until_alerts(2)


# ---------------------------------------------------------------- truncation


async def test_a_truncated_file_is_read_from_its_beginning_and_it_is_said(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    append("a", "b")
    size = path.stat().st_size
    async with following():
        await sink.until_alerts(2)
        os.truncate(path, 0)
        append("c")
        await sink.until_alerts(3)
    ((event, fields),) = warn.said
    assert event.startswith("the file was truncated")
    assert (fields["lost_from_byte"], fields["read_to_byte"]) == (size, size)


async def test_a_file_that_was_cut_and_is_longer_already_is_known_by_its_fingerprint(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    append("a")
    async with following():
        await sink.until_alerts(1)
        os.truncate(path, 0)
        append("bb", "c", "d")  # nothing ran meanwhile: this is one event for the reader
        await sink.until_alerts(4)
    assert sink.rules == ["a", "bb", "c", "d"]
    assert len(warn.said) == 1


async def test_half_a_line_is_dropped_with_the_truncation(
    following: Following, append: Callable[..., None], path: Path, alert_of: MakeBytes, sink: RecordingSink
) -> None:
    append("a")
    with path.open("ab") as file:
        file.write(alert_of("half")[:-9])
    async with following():
        await sink.until_alerts(1)
        os.truncate(path, 0)
        append("b")
        await sink.until_alerts(2)
    assert not sink.faults


# ---------------------------------------------------------------- restart


async def test_a_restart_goes_on_where_the_last_recorded_alert_was(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink
) -> None:
    append("a", "b")
    async with following():
        await sink.until_alerts(2)
    append("c")
    async with following():
        await sink.until_alerts(3)
        sink.hold = True  # what comes of d is not recorded when the program dies
        append("d")
        await sink.until_alerts(4)
    sink.hold = False
    async with following():
        await sink.until_alerts(5)
    assert sink.rules == ["a", "b", "c", "d", "d"]


async def test_rotated_while_nobody_read(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    append("a")
    async with following():
        await sink.until_alerts(1)
    append("b")
    path.rename(path.with_suffix(".1"))
    append("c")
    async with following():
        await sink.until_alerts(3)
    assert sink.rules == ["a", "b", "c"]
    assert not warn.said


async def test_rotated_and_the_new_file_not_there_yet(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink
) -> None:
    append("a")
    async with following():
        await sink.until_alerts(1)
    append("b")
    path.rename(path.with_suffix(".1"))
    async with following():
        await sink.until_alerts(2)
        append("c")
        await sink.until_alerts(3)
    assert sink.rules == ["a", "b", "c"]


@pytest.mark.parametrize("in_place", [True, False])
async def test_replaced_while_nobody_read_is_said(
    following: Following,
    append: Callable[..., None],
    path: Path,
    sink: RecordingSink,
    warn: RecordingWarn,
    in_place: bool,
) -> None:
    append("a", "b")
    size = path.stat().st_size
    async with following():
        await sink.until_alerts(2)
    if in_place:
        os.truncate(path, 0)
    else:
        path.unlink()
    append("c", "d", "e")
    async with following():
        await sink.until_alerts(5)
    ((event, fields),) = warn.said
    assert event.startswith("the file is not the one that was read before")
    assert fields["lost_from_byte"] == size


async def test_a_copy_is_the_same_file(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    append("a")
    async with following():
        await sink.until_alerts(1)
    content = path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(content)
    append("b")
    async with following():
        await sink.until_alerts(2)
    assert sink.rules == ["a", "b"]
    assert not warn.said


async def test_a_large_file_that_is_met_for_the_first_time_is_read_from_near_its_end(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    rules = [f"rule-{number:02}" for number in range(40)]
    append(*rules)
    line = path.stat().st_size // len(rules)
    async with following():
        await sink.until(lambda: sink.rules[-1:] == rules[-1:])
    assert sink.rules == rules[-len(sink.rules) :]
    assert len(sink.rules) == 4096 // line
    assert not sink.faults
    assert warn.said[0][1]["skipped_to_byte"] == path.stat().st_size - len(sink.rules) * line


# ---------------------------------------------------------------- what is no such file


async def test_a_fifo_and_a_directory_are_refused(path: Path, marks: MemoryMarks, desk: Desk) -> None:
    for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir)):
        make(path)
        with pytest.raises(StartRefused, match="not a regular file"):
            await FileIntake(str(path), marks, desk).serve()
        remove(path)


async def test_a_fifo_in_its_place_is_said_and_passed_over(
    following: Following, append: Callable[..., None], path: Path, sink: RecordingSink, warn: RecordingWarn
) -> None:
    async with following():
        os.mkfifo(path)
        await warn.until_said(1)
        assert warn.said[0][1]["error"] == "not a regular file"
        path.unlink()
        append("a")
        await sink.until_alerts(1)


async def test_without_inotify_it_looks_from_time_to_time(
    path: Path,
    append: Callable[..., None],
    marks: MemoryMarks,
    sink: RecordingSink,
    warn: RecordingWarn,
    nursery: trio.Nursery,
) -> None:
    desk = Desk(sink=sink, now_ns=time.time_ns, warn=warn, limits=Limits(poll_seconds=0.01))
    missing = path.parent / "later" / "events.json"  # no directory, so nothing to watch
    missing.parent.touch()
    await nursery.start(FileIntake(str(missing), marks, desk).serve)
    await warn.until_said(1)
    assert warn.said[0][1]["error"] == "Not a directory"
    missing.parent.unlink()
    missing.parent.mkdir()
    append("a", to=missing)
    await sink.until_alerts(1)
    append("b", to=missing)
    await sink.until_alerts(2)


async def test_a_foreign_writer(following: Following, path: Path, alert_of: MakeBytes, sink: RecordingSink) -> None:
    async with following():
        with subprocess.Popen(["/bin/sh", "-c", f"exec cat >> {path}"], stdin=subprocess.PIPE, bufsize=0) as writer:
            assert writer.stdin is not None
            for count in range(1, 20):
                writer.stdin.write(alert_of(f"rule {count}") + b"\n")
                await sink.until_alerts(count)
    assert not sink.faults


def _identity(path: Path) -> tuple[int, int]:
    there = path.stat()
    return there.st_dev, there.st_ino
