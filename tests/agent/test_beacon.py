"""The beacon on a real file system: made for the agent alone, refused where others may enter, left as it was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.beacon import Beacon
from stoop.heartbeat import Beat

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes rights, owners or mounts")

TOKEN = "0123456789abcdef" * 2


async def test_a_touch_is_timed_around_its_open_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run" / "heartbeat"
    beacon = Beacon(str(path))
    await beacon.prepare()
    assert (path.stat().st_mode & 0o777, os.listdir(path)) == (0o700, [])
    beat = Beat(TOKEN, 1)
    before_ns, before_mono_ns = time.time_ns(), time.monotonic_ns()
    await beacon.touch(beat)
    assert before_ns <= beat.begun_ns <= beat.done_ns <= time.time_ns()
    assert before_mono_ns <= beat.begun_mono_ns <= time.monotonic_ns()
    assert os.listdir(path) == []


async def test_what_killed_agents_left_goes_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    path.mkdir(mode=0o700)
    for name in (TOKEN, "f" * 32, "F" * 32, "note", TOKEN + "0"):
        (path / name).touch()
    await Beacon(str(path)).prepare()
    assert sorted(os.listdir(path)) == [TOKEN + "0", "F" * 32, "note"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755, 0o710])
async def test_one_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "heartbeat"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(PermissionError, match="mode 0700"):
        await Beacon(str(path)).prepare()


async def test_a_link_to_a_directory_of_the_agent_is_refused_and_nothing_in_it_removed(tmp_path: Path) -> None:
    aim = tmp_path / "aim"
    aim.mkdir(mode=0o700)
    (aim / TOKEN).touch()
    (tmp_path / "heartbeat").symlink_to(aim)
    with pytest.raises(PermissionError):
        await Beacon(str(tmp_path / "heartbeat")).prepare()
    assert os.listdir(aim) == [TOKEN]


@needs_root
async def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    with pytest.raises(PermissionError):
        await Beacon(str(path)).prepare()


async def test_a_file_in_its_place_or_of_the_beats_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError):
        await Beacon(str(tmp_path / "file")).prepare()
    path = tmp_path / "heartbeat"
    beacon = Beacon(str(path))
    await beacon.prepare()
    (path / TOKEN).symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        await beacon.touch(Beat(TOKEN, 1))
    assert not (tmp_path / "victim").exists()


async def test_a_directory_that_went_away_is_an_error_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    beacon = Beacon(str(path))
    await beacon.prepare()
    path.rmdir()
    with pytest.raises(FileNotFoundError):
        await beacon.touch(Beat(TOKEN, 1))
    await beacon.prepare()
    await beacon.touch(Beat(TOKEN, 2))
