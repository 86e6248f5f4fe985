"""sysdig's command line, its bounds and its refusals. The real program where there is one, else one that stands in."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from agent.jobs import ProbeJob, SyscallsJob
from agent.work import syscalls
from agent.work.syscalls import arguments
from stoop.errors import TargetRefused
from tests.real.conftest import PATIENCE_S
from tests.work.conftest import Bench

pytestmark = pytest.mark.root

SYSDIG = shutil.which("sysdig") or ""

IDS = ("0123456789ab", "ba9876543210")


def test_the_command_line() -> None:
    whole = ["/x/sysdig", "--modern-bpf", "-M", "7", "-s", "256", "-z", "-w", "-"]
    assert arguments("/x/sysdig", 7, 256, ()) == whole
    assert arguments("/x/sysdig", 7, 256, IDS) == [*whole, "container.id in (0123456789ab, ba9876543210)"]


@pytest.mark.parametrize("wrong", ["", "host", "0123) or (evt.num>0", "0123456789ab,", "-w", "ABCDEF"])
def test_what_is_no_id_makes_no_filter(wrong: str) -> None:
    with pytest.raises(TargetRefused, match="is no container's id"):
        arguments("sysdig", 5, 128, (IDS[0], wrong))


# Says how it was called in place of a capture. As sysdig does, it ends by itself.
STAND_IN = """#!/bin/sh
{ echo "$0"; printf '%s\\n' "$@"; yes | head -c 10000; } | gzip
"""


def program(tmp_path: Path, text: str) -> str:
    """A program that stands in for sysdig."""
    made = tmp_path / "sysdig"
    made.write_text(text)
    made.chmod(0o755)
    return str(made)


def job(bench: Bench, path: str, **changes: object) -> SyscallsJob:
    """A capture with this program."""
    made = SyscallsJob(**bench.common(()), program=path, containers=IDS, seconds=1, snaplen=128, bytes=2**20)
    return msgspec.structs.replace(made, **changes)


async def test_what_it_writes_is_kept(bench: Bench, tmp_path: Path) -> None:
    path = program(tmp_path, STAND_IN)
    result = await bench.workers.run(job(bench, path), 20.0)
    assert result.ok, result
    manifest, parts = bench.only()
    told = gzip.decompress(parts["sysdig.scap.gz"]).decode().splitlines()
    assert told[:10] == arguments(path, 1, 128, IDS)
    assert manifest.missing == ()
    assert manifest.parts[0].about["containers"] == list(IDS)
    assert bench.leftovers() == []


async def test_it_is_bounded(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path, "#!/bin/sh\nexec cat /dev/zero\n")
    begun = trio.current_time()
    result = await bench.workers.run(job(bench, path, bytes=5000), 60.0)
    assert result.ok
    assert trio.current_time() - begun < PATIENCE_S
    manifest, parts = bench.only()
    assert parts["sysdig.scap.gz"] == bytes(5000)
    assert "5000 bytes, the act's bound" in manifest.missing[0].why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\necho; echo 'no driver' >&2; exit 1\n", "sysdig captured nothing: no driver"),
        ("#!/bin/sh\nexit 3\n", "sysdig captured nothing: sysdig ended before its time (status 3)"),
        ("", "sysdig captured nothing"),
    ],
)
async def test_one_that_does_not_capture(bench: Bench, tmp_path: Path, text: str, why: str) -> None:
    result = await bench.workers.run(job(bench, program(tmp_path, text) if text else "/none"), 20.0)
    assert (result.ok, why in result.reason) == (False, True), result
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\nexit 0\n", ""),
        ('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no driver" >&2; exit 1\n', "no driver"),
        ("#!/bin/sh\necho 'no library' >&2; exit 127\n", "`sysdig --version`: no library"),
        ("", "No such file"),
    ],
)
async def test_it_is_tried(bench: Bench, tmp_path: Path, text: str, why: str) -> None:
    path = program(tmp_path, text) if text else "/none"
    result = await bench.workers.run(ProbeJob(**bench.common(()), program=path), 40.0)
    assert (result.ok, why in result.reason) == (not why, True), result
    assert bench.kept() == []


needs_sysdig = pytest.mark.skipif(not SYSDIG, reason="needs sysdig(8) (apt-get install sysdig)")


@needs_sysdig
async def test_the_real_one_is_told_to_work_only_where_it_captures(bench: Bench) -> None:
    tried = await bench.workers.run(ProbeJob(**bench.common(()), program=SYSDIG), 40.0)
    result = await bench.workers.run(job(bench, SYSDIG, containers=()), 60.0)
    assert tried.ok is result.ok, (tried, result)
    if not tried.ok:  # Debian's 0.29.3 has no such driver
        assert tried.reason.startswith("`sysdig --modern-bpf")
        assert result.reason.startswith("the target: sysdig captured nothing: ")


@needs_sysdig
@pytest.mark.parametrize("ids", [(), IDS, tuple(f"{number:012x}" for number in range(64))])
def test_the_real_one_takes_the_command_line_on_a_file(tmp_path: Path, ids: tuple[str, ...]) -> None:
    """All but the driver: a capture file without calls, by way of the same filter, to a pipe."""
    (tmp_path / "empty.scap").write_bytes(empty_capture())
    argv = arguments(SYSDIG, 1, 128, ids)
    argv[1:4] = ["-r", str(tmp_path / "empty.scap")]
    ran = subprocess.run(argv, capture_output=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 0, ran
    assert gzip.decompress(ran.stdout)[:4] == b"\x0a\x0d\x0d\x0a"
    wrong = subprocess.run([*argv[:8], "container.idd=1"], capture_output=True, timeout=PATIENCE_S, check=False)
    assert wrong.returncode != 0


def block(kind: int, body: bytes) -> bytes:
    """A block of a capture file: as those of pcapng."""
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def empty_capture() -> bytes:
    """A section header, the machine, and one event of no kind."""
    section = block(0x0A0D0D0A, struct.pack("<IHHQ", 0x1A2B3C4D, 1, 2, 2**64 - 1))
    machine = block(0x201, struct.pack("<IQQ128s4Q", 1, 2**30, 32768, b"node", 0, 0, 0, 0).ljust(180, b"\0"))
    return section + machine + block(0x216, struct.pack("<HQQIHI", 0, 10**18, 1, 26, 0, 0))


def test_its_part_is_what_talon_calls_it() -> None:
    assert syscalls.PART == "sysdig.scap.gz"
