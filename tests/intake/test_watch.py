"""Waking up by inotify, and without it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import trio
import trio.testing

from stoop.intake.testing import RecordingWarn
from stoop.intake.watch import FileWatch


async def test_writing_and_other_changes_are_told_apart(tmp_path: Path, warn: RecordingWarn) -> None:
    path = str(tmp_path / "file")
    with FileWatch(path, 60, warn) as watch:
        watch.renew()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            assert await watch.wait()  # it was made
            watch.renew()
            os.write(fd, b"x")
            assert not await watch.wait()
            os.unlink(path)
            assert await watch.wait()
            watch.forget()
            watch.renew()
        finally:
            os.close(fd)
    assert not warn.said


async def test_a_link_loop_is_said_once(
    tmp_path: Path, warn: RecordingWarn, autojump_clock: trio.testing.MockClock
) -> None:
    path = str(tmp_path / "loop")
    os.symlink(path, path)
    with FileWatch(path, 60, warn) as watch:
        watch.renew()
        watch.renew()
        assert await watch.wait()
        assert autojump_clock.current_time() >= 60
    assert len(warn.said) == 1


async def test_without_inotify_there_is_the_slow_look(
    tmp_path: Path, warn: RecordingWarn, autojump_clock: trio.testing.MockClock
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        watch = FileWatch(str(tmp_path / "file"), 60, warn)
        watch.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(warn.said) == 1
    watch.renew()
    start = autojump_clock.current_time()
    assert await watch.wait()
    assert autojump_clock.current_time() - start >= 60
    watch.forget()
    watch.__exit__()
