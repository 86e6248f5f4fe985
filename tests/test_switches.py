"""The emergency stop and the disarmed rules: kept, and safe when they can't be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stoop.spec import (
    Mode,
)
from stoop.switches import DISARMED_FILE, MODE_FILE, Switches


class Said:
    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.events.append(event)


def loaded(directory: Path, said: Said | None = None, configured: Mode = Mode.ENFORCE) -> Switches:
    switches = Switches(directory, configured, said or Said())
    switches.load()
    return switches


def test_without_a_file_the_configured_mode_holds(tmp_path: Path) -> None:
    assert loaded(tmp_path).mode(0) is Mode.ENFORCE
    assert loaded(tmp_path, configured=Mode.OBSERVE).mode(0) is Mode.OBSERVE


def test_a_switched_mode_holds_over_a_restart(tmp_path: Path) -> None:
    loaded(tmp_path).switch(Mode.OFF)
    assert loaded(tmp_path).mode(10**18) is Mode.OFF


def test_a_mode_for_a_while_ends_by_itself_and_says_so(tmp_path: Path) -> None:
    said = Said()
    switches = loaded(tmp_path, said)
    switches.switch(Mode.OFF, until_ns=100)
    assert (switches.mode(99), switches.mode(100)) == (Mode.OFF, Mode.ENFORCE)
    assert said.events == ["the switched mode ended"]
    assert not (tmp_path / MODE_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"mode":"kill"}', b"\xff\xfe", b"[]"])
def test_a_mode_that_can_not_be_read_means_observe_loudly(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MODE_FILE).write_bytes(content)
    said = Said()
    assert loaded(tmp_path, said).mode(0) is Mode.OBSERVE
    assert len(said.events) == 1


def test_disarmed_rules_are_kept_until_armed(tmp_path: Path) -> None:
    loaded(tmp_path).disarm("R", "too many")
    switches = loaded(tmp_path)
    assert switches.disarmed == {"R": "too many"}
    switches.arm("R")
    assert loaded(tmp_path).disarmed == {}


def test_disarmed_rules_that_can_not_be_read_disarm_all(tmp_path: Path) -> None:
    (tmp_path / DISARMED_FILE).write_bytes(b"nonsense")
    assert set(loaded(tmp_path).disarmed) == {"*"}


def test_a_directory_that_is_gone_is_said_and_the_switch_holds(tmp_path: Path) -> None:
    said = Said()
    switches = loaded(tmp_path / "gone", said)
    switches.switch(Mode.OFF)
    assert switches.mode(0) is Mode.OFF
    assert said.events == ["a switch can't be kept: it holds until the agent ends"]


def test_what_was_switched_is_synced_with_its_directory(tmp_path: Path) -> None:
    switches = loaded(tmp_path)
    assert switches.sync() == ""
    switches.switch(Mode.OFF)
    switches.disarm("R", "too many")
    assert switches.sync() == ""


@pytest.mark.parametrize("name", [MODE_FILE, DISARMED_FILE])
def test_what_the_disk_does_not_take_is_told(tmp_path: Path, name: str) -> None:
    # Nothing in /proc can be synced (fsync(2): EINVAL), so this tells what is.
    assert loaded(Path("/proc/self")).sync() == os.strerror(errno.EINVAL)
    (tmp_path / name).symlink_to("/proc/self/status")
    assert Switches(tmp_path, Mode.ENFORCE, Said()).sync() == os.strerror(errno.EINVAL)
