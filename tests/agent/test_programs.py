"""What captures need of a node, and what is said where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import programs
from stoop.catalogue import CATALOGUE


def test_a_program_is_a_file_that_may_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"relative::{tmp_path}")
    monkeypatch.chdir(tmp_path)
    assert programs.find("a-program") == ""
    (tmp_path / "relative").mkdir()
    for place in (tmp_path, tmp_path / "relative"):
        (place / "a-program").write_text("#!/bin/sh\n")
    assert programs.find("a-program") == "" or os.geteuid() == 0
    (tmp_path / "relative" / "a-program").chmod(0o755)
    assert programs.find("a-program") == ""
    (tmp_path / "a-program").chmod(0o755)
    assert programs.find("a-program") == f"{tmp_path}/a-program"
    (tmp_path / "a-directory").mkdir()
    assert programs.find("a-directory") == ""


def test_every_right_that_is_asked_for_has_its_number() -> None:
    for actionner in programs.NEEDS:
        assert set(CATALOGUE.actions[actionner].spec.node_rights) <= programs.CAPABILITIES.keys()


def test_effective_rights_are_those_of_the_status_file() -> None:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert programs.effective() == int(status["CapEff"], 16)
