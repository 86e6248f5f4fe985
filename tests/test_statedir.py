"""The state directory: one agent's, nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoop.errors import StartRefused
from stoop.statedir import LOCK_FILE, StateLock, boot_id, make_state_dir, set_aside


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    assert make_state_dir(path) == ""
    assert path.stat().st_mode & 0o777 == 0o700
    assert make_state_dir(path) == ""


def test_one_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StartRefused, match="chmod go-w"):
        make_state_dir(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(StartRefused, match="uid 12345"):
        make_state_dir(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("")
    with pytest.raises(StartRefused, match="not a directory"):
        make_state_dir(path)
    with pytest.raises(StartRefused, match="not a directory"):
        make_state_dir(path / "below")


def test_one_that_cannot_be_made_is_said() -> None:
    assert "can't be made" in make_state_dir(Path("/proc/stoop"))


def test_a_second_agent_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    assert first.take() == ""
    with pytest.raises(StartRefused, match=f"pid {os.getpid()}"):
        second.take()
    first.close()
    assert second.take() == ""
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    second.close()
    second.close()


def test_a_lock_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    assert "can't be locked" in StateLock(tmp_path / "missing").take()


def test_broken_files_go_aside_with_what_belongs_to_them(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for number in range(5):
        path.write_text(f"file {number}")
        if number != 4:
            Path(f"{path}-wal").write_text(f"log {number}")
        kept = tmp_path / f"journal.db.corrupt-{number % 3 + 1}"
        assert set_aside(path, "-wal") == f"it is {kept.name} now"
        assert kept.read_text() == f"file {number}"
        os.utime(kept, ns=(number, number))
    assert {each.name for each in tmp_path.iterdir()} == {
        *(f"journal.db.corrupt-{number}" for number in (1, 2, 3)),
        *(f"journal.db.corrupt-{number}-wal" for number in (1, 3)),
    }


def test_what_cannot_go_aside_is_said(tmp_path: Path) -> None:
    assert "can't be set aside" in set_aside(tmp_path / "missing")


def test_the_boot_has_a_name_of_sixteen_bytes() -> None:
    assert len(boot_id()) == 16
    assert boot_id() == boot_id()
