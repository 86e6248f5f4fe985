"""local:file: whole or not at all, through no link, never among the agent's own files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.jobs import DeliverJob, Result
from agent.work.deliver import BEGUN, perform
from stoop.evidence.manifest import Origin
from tests.real.stores.bundles import MIB, PART, make_bundle

Deliver = Callable[..., Result]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The operator's folder."""
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


@pytest.fixture
def deliver(tmp_path: Path) -> Deliver:
    """`deliver(folder, name=…, part=…, bundle=…)`: do the job in this process."""
    made: list[Path] = []

    def do(folder: Path | str, name: str = "one", part: str = PART, bundle: Path | None = None) -> Result:
        if bundle is None:
            made[:] = made or [make_bundle(tmp_path)]
        path = bundle or made[0]
        job = DeliverJob(
            key="local:file",
            origin=Origin(),
            store=str(path.parent),
            folder=str(folder),
            state_dir=str(tmp_path / "state"),
            name=name,
            bundle=path.name.removesuffix(".tar.zst"),
            part=part,
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return perform(job, ours, 0.0, ())

    return do


def test_a_part_and_the_whole(kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    result = deliver(kept)
    assert (result.ok, result.details["fate"], result.details["bytes"]) == (True, "sent", 17)
    assert (kept / "one").read_bytes() == b"what was captured"
    assert (kept / "one").stat().st_mode & 0o777 == 0o600
    assert deliver(kept, "whole", "").ok
    (bundle,) = (tmp_path / "state" / "evidence").glob("*.tar.zst")
    assert (kept / "whole").read_bytes() == bundle.read_bytes()
    assert deliver(kept).ok  # twice is harmless
    assert sorted(os.listdir(kept)) == ["one", "whole"]


def test_a_look_leaves_nothing(kept: Path, deliver: Deliver) -> None:
    assert deliver(kept, "").ok
    assert os.listdir(kept) == []


def test_a_link_on_the_way_is_refused(kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    (tmp_path / "link").symlink_to(kept)
    result = deliver(tmp_path / "link")
    assert (result.ok, result.details["fate"]) == (False, "mend")
    assert result.reason == f"{tmp_path}/link: a symbolic link leads there: name the folder itself ({kept})"
    assert os.listdir(kept) == []


def test_links_in_the_folder_are_replaced_and_never_followed(kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("one", f"{BEGUN}one"):
        (kept / name).symlink_to(victim)
    assert deliver(kept).ok
    assert victim.read_text() == "mine"
    assert not (kept / "one").is_symlink()
    assert os.listdir(kept) == ["one"]


@pytest.mark.parametrize("below", ["", "evidence", "evidence/deeper", "deliveries"])
def test_the_state_directory_is_not_for_it(below: str, tmp_path: Path, deliver: Deliver) -> None:
    bundle = make_bundle(tmp_path)
    folder = tmp_path / "state" / below
    folder.mkdir(parents=True, exist_ok=True)
    before = sorted(os.listdir(folder))
    result = deliver(folder, bundle=bundle)
    assert (result.ok, result.details["fate"]) == (False, "mend")
    assert "lies in the agent's own state directory: name another folder" in result.reason
    assert sorted(os.listdir(folder)) == before


def test_a_way_round_to_it_is_seen(kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    make_bundle(tmp_path)
    assert "state directory" in deliver(f"{kept}/../state").reason


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("relative", "relative: the destination must be an absolute path"),
        ("/no/such/folder", "/no/such/folder: No such file or directory"),
        ("/etc/hostname", "/etc/hostname: Not a directory"),
        ("/proc/self/cwd", "/proc/self/cwd: a symbolic link leads there"),
    ],
)
def test_what_is_no_folder(folder: str, reason: str, deliver: Deliver) -> None:
    result = deliver(folder)
    assert (result.ok, result.details["fate"]) == (False, "mend")
    assert result.reason.startswith(reason)


@pytest.mark.parametrize("part", [PART, ""])
def test_a_damaged_bundle_leaves_nothing(part: str, kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    bundle = make_bundle(tmp_path, mib=3)
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bundle.write_bytes(data)
    result = deliver(kept, part=part, bundle=bundle)
    assert (result.ok, result.details["fate"]) == (False, "never")
    assert os.listdir(kept) == []


def test_a_folder_at_its_name(kept: Path, deliver: Deliver) -> None:
    (kept / "one").mkdir()
    result = deliver(kept)
    assert (result.ok, result.reason) == (False, f"{kept}: Is a directory")
    assert os.listdir(kept) == ["one"]


def test_a_big_part(kept: Path, tmp_path: Path, deliver: Deliver) -> None:
    result = deliver(kept, bundle=make_bundle(tmp_path, mib=64))
    assert (result.ok, (kept / "one").stat().st_size) == (True, 64 * MIB)
