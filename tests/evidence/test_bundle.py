"""A bundle as written and as read: whole, cut off at every byte, changed, and made by an enemy."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoop.evidence import manifest as manifests
from stoop.evidence.extract import extract
from stoop.evidence.manifest import MANIFEST, Manifest, ManifestError, Origin, Part
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.writing import END, FOOTER, FOOTER_MAGIC, FOOTER_TAG, BundleWriter, header, padding
from stoop.evidence.zstd import ZstdCompressor

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]

Fill = Callable[[BundleWriter], object]


def manifest_of(*parts: Part, **changes: object) -> Manifest:
    made = Manifest("00000001-20270115T080000Z-none", 1, "", Origin(rule="A rule"), {"comm": "sh"}, 1, 2, parts)
    return msgspec.structs.replace(made, **changes)


def write(path: Path, fill: Fill, max_bytes: int = 2**40) -> Path:
    with path.open("wb") as file:
        writer = BundleWriter(file.fileno(), 1_800_000_000, max_bytes)
        fill(writer)
        writer.seal_parts()
        writer.seal(manifests.encode(manifest_of(*writer.parts, missing=tuple(writer.missing))))
    return path


def read(path: Path) -> tuple[Manifest, list[str], dict[str, bytes]]:
    contents: dict[str, bytes] = {}

    def sink(part: Part, data: bytes) -> None:
        contents[part.name] = contents.get(part.name, b"") + data

    with path.open("rb") as file:
        reader = BundleReader(file.fileno())
        return reader.manifest, reader.check(sink), contents


def forge(path: Path, members: bytes, manifest: bytes, name: str = MANIFEST) -> Path:
    """A bundle of any bytes, in the form of one."""
    parts = ZstdCompressor().compress(members, ZstdCompressor.FLUSH_FRAME)
    body = header(name, len(manifest), 0) + manifest + padding(len(manifest)) + END
    tail = ZstdCompressor().compress(body, ZstdCompressor.FLUSH_FRAME)
    path.write_bytes(parts + tail + FOOTER.pack(FOOTER_MAGIC, 16, FOOTER_TAG, len(parts)))
    return path


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    if kind == tarfile.SYMTYPE:
        info.size, info.linkname, content = 0, "/etc/shadow", b""
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding(len(content))


def part(name: str, content: bytes) -> Part:
    return Part(name, len(content), hashlib.sha256(content).hexdigest())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_what_is_written_is_read(tmp_path: Path, contents: list[bytes]) -> None:
    def fill(writer: BundleWriter) -> None:
        for number, content in enumerate(contents):
            assert writer.add(f"parts/{number}.bin", content, {"number": number})

    manifest, wrong, found = read(write(tmp_path / "b", fill))
    assert wrong == []
    assert [part.about["number"] for part in manifest.parts] == list(range(len(contents)))
    assert [found[f"parts/{number}.bin"] for number in range(len(contents))] == contents


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("zstd")), reason="no tar and zstd programs here")
def test_tar_reads_it_too(tmp_path: Path) -> None:
    path = write(tmp_path / "b.tar.zst", lambda writer: writer.add("processes/1.json", b"{}"))
    subprocess.run(["tar", "--zstd", "-xf", path, "-C", tmp_path], check=True, timeout=30)
    assert (tmp_path / "processes/1.json").read_bytes() == b"{}"
    assert manifests.decode((tmp_path / MANIFEST).read_bytes()).parts[0].name == "processes/1.json"


def test_gaps_are_zeros_and_told(tmp_path: Path) -> None:
    def fill(writer: BundleWriter) -> None:
        part = writer.begin("memory/1.bin", 10)
        assert part is not None
        for step in (b"ab", 2, 1, b"c"):
            part.gap(step) if isinstance(step, int) else part.write(step)
        part.end()

    manifest, wrong, found = read(write(tmp_path / "b", fill))
    assert wrong == []
    assert found["memory/1.bin"] == b"ab\0\0\0c\0\0\0\0"
    assert manifest.parts[0].gaps == ((2, 3), (6, 4))
    assert "7 of 10 bytes are zeros" in manifest.missing[0].why


def test_more_than_was_declared_is_left_out(tmp_path: Path) -> None:
    def fill(writer: BundleWriter) -> None:
        part = writer.begin("log", 3)
        assert part is not None
        part.write(b"abcdef")
        part.end()

    manifest, wrong, found = read(write(tmp_path / "b", fill))
    assert (wrong, found, manifest.parts[0].gaps) == ([], {"log": b"abc"}, ())


def test_a_full_bundle_says_so(tmp_path: Path) -> None:
    def fill(writer: BundleWriter) -> None:
        assert writer.add("one", os.urandom(300_000))
        assert writer.add("two", os.urandom(300_000))
        assert not writer.add("three", b"x")

    manifest, wrong, _ = read(write(tmp_path / "b", fill, max_bytes=400_000))
    assert wrong == []
    assert [missing.what for missing in manifest.missing] == ["three"]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../b", "a//b", "", ".", ".hidden", "a\nb", "a b", "é", "x" * 101, MANIFEST, "a/b/c/d/e"],
)
def test_names_that_could_lead_elsewhere_are_no_names(tmp_path: Path, name: str) -> None:
    writer = BundleWriter(-1, 0, 0)
    with pytest.raises(ValueError, match="can't be a part's name"):
        writer.begin(name, 1)
    with pytest.raises(ManifestError, match="no safe path"):
        manifests.decode(manifests.encode(manifest_of(part(name, b""))))


def test_cut_off_anywhere_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "b", lambda writer: writer.add("one", b"abc" * 50)).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(BundleError):
            read(tmp_path / "cut")


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "b", lambda writer: writer.add("one", os.urandom(200)))
    whole, as_written = path.read_bytes(), read(path)
    noticed = 0
    for at in range(len(whole)):
        (tmp_path / "changed").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = read(tmp_path / "changed")
        except BundleError:
            noticed += 1
            continue
        # zstd has bits without a meaning, and two ways to say one thing.
        assert found[1] or found == as_written
    assert noticed > len(whole) * 0.9


def test_forged_parts_are_noticed(tmp_path: Path) -> None:
    good = manifests.encode(manifest_of(part("one", b"abc")))
    cases = {
        "another content": member("one", b"abd"),
        "another name": member("two", b"abc"),
        "a link": member("one", b"", tarfile.SYMTYPE),
        "a device": member("one", b"", tarfile.CHRTYPE),
        "a long name": member("one", b"abc", tarfile.GNUTYPE_LONGNAME),
        "no header": b"x" * 512,
        "nothing": b"",
        "more": member("one", b"abc") + member("two", b""),
    }
    for case, members in cases.items():
        try:
            _, wrong, _ = read(forge(tmp_path / "forged", members, good))
        except BundleError:
            continue
        assert wrong, case


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"format": 1}'])
def test_a_forged_manifest_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(BundleError, match="manifest"):
        read(forge(tmp_path / "forged", b"", raw))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="format is 3"):
        read(forge(tmp_path / "forged", b"", manifests.encode(manifest_of(format=3))))


def test_a_manifest_of_any_size_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not where it should be"):
        read(forge(tmp_path / "forged", b"", b" " * (manifests.MAX_MANIFEST + 1)))
    with pytest.raises(BundleError, match="not where it should be"):
        read(forge(tmp_path / "forged", b"", b"{}", name="else.json"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.booleans())
def test_any_bytes_are_a_bundle_or_an_error(tmp_path: Path, data: bytes, footed: bool) -> None:
    path = tmp_path / "any"
    path.write_bytes(data + (FOOTER.pack(FOOTER_MAGIC, 16, FOOTER_TAG, len(data) // 2) if footed else b""))
    with pytest.raises(BundleError):
        read(path)


def test_extracted_into_a_new_folder_only(tmp_path: Path) -> None:
    path = write(tmp_path / "b", lambda writer: (writer.add("a/one", b"1"), writer.add("two", b"")))
    with path.open("rb") as file:
        assert extract(BundleReader(file.fileno()), str(tmp_path / "to"), lambda _: True) == (2, [])
    found = {str(each.relative_to(tmp_path / "to")): each.stat().st_mode for each in (tmp_path / "to").rglob("*")}
    assert sorted(found) == ["a", "a/one", MANIFEST, "two"]
    assert {mode & 0o077 for mode in found.values()} == {0}
    (tmp_path / "to2").mkdir()
    (tmp_path / "to2" / "a").symlink_to("/tmp")
    with path.open("rb") as file, pytest.raises(Exception, match="is not empty"):
        extract(BundleReader(file.fileno()), str(tmp_path / "to2"), lambda _: True)


# Writes a bundle of so many MiB that can't be compressed, and tells by how much its memory grew beyond a small one's.
GROW = """
import os, resource, sys
from stoop.evidence.writing import BundleWriter
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def bundle(mib):
    file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = BundleWriter(file, 0, 2**40)
    part = writer.begin("big", mib << 20)
    for _ in range(mib):
        part.write(os.urandom(1 << 20))
    part.end()
    writer.seal_parts()
    return peak()
before = peak()
small = bundle(1)
print(small - before, bundle(int(sys.argv[2])) - small)
"""


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", GROW, str(tmp_path / "big"), "256"],
        cwd=ROOT,
        check=True,
        timeout=60,
        capture_output=True,
    )
    first, more = map(int, ran.stdout.split())
    assert first <= 16 * MIB
    assert more <= 1 * MIB


def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """4 GiB of zeros in some hundred KiB: hashed as they come, never held."""
    size = 4 * 1024 * MIB
    path = write(tmp_path / "b", lambda writer: writer.begin("zeros", size))
    assert path.stat().st_size < MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with path.open("rb") as file:
        assert BundleReader(file.fileno()).check() == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 32 * 1024
