"""`stoop evidence`: over a real store, and with bundles that somebody else made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoop.evidence import manifest as manifests
from stoop.evidence.manifest import SUFFIX, Manifest, Origin, Part
from stoop.evidence.store import Limits, Store
from stoop.evidence.writing import END, FOOTER, FOOTER_MAGIC, FOOTER_TAG, header, padding
from stoop.evidence.zstd import ZstdCompressor

NOW_NS = 1_800_000_000 * 10**9


@pytest.fixture
def config(write: Callable[..., str], tmp_path: Path) -> str:
    return write("stoop.yaml", f"state_dir: {tmp_path}\n")


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., str]:
    """Keep a capture of two parts; gives its bundle's name. Without an act it has a bundle of its own."""

    def kept(
        run: str = "ab" * 16,
        rule: str = "A rule",
        comm: str = "sh",
        act: str = "",
        actionner: str = "evidence:snapshot",
        max_count: int = 0,
    ) -> str:
        origin = Origin(rule=rule, run=run, act=act, actionner=actionner, action="Keep it")
        limits = Limits(min_free_bytes=0, max_count=max_count)
        with (
            Store(str(tmp_path / "evidence"), limits, lambda: NOW_NS) as store,
            store.draft(origin if act else None) as draft,
        ):
            draft.writer.add("processes/4711.json", b'{"pid": 4711}')
            draft.writer.add("sockets.json", b"[]")
            draft.writer.lacks("upper", "no overlay")
            return draft.commit(origin, {"pid": 4711, "comm": comm}).bundle

    return kept


def test_nothing_was_kept(stoop: Any, config: str) -> None:
    assert stoop("evidence", "list", "-c", config).code == 0
    ran = stoop("evidence", "verify", "-c", config)
    assert (ran.code, ran.out) == (0, "no evidence was kept yet\n")
    ran = stoop("evidence", "show", "1", "-c", config)
    assert ran.code == 2
    assert "no bundle is '1'" in ran.err


def test_listed_oldest_first(stoop: Any, config: str, keep: Callable[..., str]) -> None:
    first, second = keep(), keep(run="cd" * 16)
    ran = stoop("evidence", "list", "-c", config)
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == [first, second]
    assert "A rule · evidence:snapshot · sh[4711] · 2 parts" in ran.out
    (line,) = stoop("evidence", "list", "-c", config, "--json", "--run", "cdcd").lines
    assert (line["bundle"], line["run"], line["missing"]) == (second, "cd" * 16, 1)


@pytest.mark.parametrize("word", ["1", "00000001", "abab", "ab" * 16])
def test_shown_by_number_name_or_run(stoop: Any, config: str, keep: Callable[..., str], word: str) -> None:
    name = keep()
    keep(run="ef" * 16)
    ran = stoop("evidence", "show", word, "-c", config)
    assert ran.code == 0
    assert name in ran.out
    assert "processes/4711.json" in ran.out
    assert "missing: upper: no overlay" in ran.out
    (line,) = stoop("evidence", "show", name, "-c", config, "--json").lines
    assert line["parts"][0]["sha256"] == hashlib.sha256(b'{"pid": 4711}').hexdigest()


def test_all_bundles_of_one_run(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path) -> None:
    """Such as could not be one."""
    names, to = [keep(), keep()], tmp_path / "out"
    assert [line["bundle"] for line in stoop("evidence", "show", "abab", "-c", config, "--json").lines] == names
    ran = stoop("evidence", "extract", "abab", "sockets.json", "-c", config, "--to", to)
    assert (ran.code, ran.out) == (0, "".join(f"1 parts are in {to}/{name}\n" for name in names))
    assert sorted(path.parent.name for path in to.rglob("sockets.json")) == names


def test_a_run_with_two_captures(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path) -> None:
    name, to = keep(act="1" * 32), tmp_path / "out"
    keep(run="cd" * 16)
    assert keep(act="2" * 32, actionner="kubernetes:log", comm="second") == name
    ran = stoop("evidence", "list", "-c", config, "--run", "abab")
    assert "evidence:snapshot, kubernetes:log · sh[4711] · 4 parts" in ran.out
    (line,) = stoop("evidence", "list", "-c", config, "--json", "--run", "abab").lines
    assert [each["actionner"] for each in line["captures"]] == ["evidence:snapshot", "kubernetes:log"]
    shown = stoop("evidence", "show", "abab", "-c", config).out
    for text in ("place        3", "replaces     place 1, ", "act-22222222/sockets.json", "second[4711]", "1" * 32):
        assert text in shown
    assert shown.index("  sockets.json") < shown.index("Keep it (kubernetes:log)") < shown.index("act-22222222/")
    assert shown.count("missing: upper") == 2
    ran = stoop("evidence", "verify", "-c", config)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "the chain is whole")
    assert stoop("evidence", "verify", "abab", "-c", config).out == f"{name}: as it was written, 4 parts\n"
    ran = stoop("evidence", "extract", "abab", "act-22222222", "-c", config, "--to", to)
    assert (ran.code, ran.out) == (0, f"2 parts are in {to}\n")
    assert sorted(str(path.relative_to(to)) for path in to.rglob("*.json")) == [
        "act-22222222/processes/4711.json",
        "act-22222222/sockets.json",
        "manifest.json",
    ]


def test_what_the_store_let_go_of_is_told_apart(
    stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path
) -> None:
    for number in range(4):
        keep(run=str(number) * 32, max_count=2)
    ran = stoop("evidence", "verify", "-c", config)
    assert ran.code == 0
    assert "places 1 to 2 were let go, the store is bounded\n" in ran.out
    kept = sorted((tmp_path / "evidence").glob(f"0*{SUFFIX}"))
    kept[0].unlink()
    ran = stoop("evidence", "verify", "-c", config)
    assert (ran.code, ran.err) == (1, "stoop: bundle 3 is missing, and the store did not let go of it\n")


@pytest.mark.root
@pytest.mark.parametrize("command", ["list", "show", "verify", "extract"])
def test_only_root_may_read(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path, command: str) -> None:
    """Where others can come to the store at all, what keeps them out is its mode; the error says what to do."""
    keep()
    words = [command, *(["1"] if command in ("show", "extract") else []), "-c", config]
    own = (folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o077 == 0)
    modes = {folder: folder.stat().st_mode & 0o7777 for folder in own}
    for folder in modes:
        folder.chmod(0o755)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            ran = stoop("evidence", *words)
            os.write(write, f"{ran.code} {ran.err}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    said = os.read(read, 4096).decode()
    os.close(read)
    for folder, mode in modes.items():
        folder.chmod(mode)
    assert said.startswith("2 ")
    assert "only root may read evidence" in said


def test_verified(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path) -> None:
    name = keep()
    keep()
    ran = stoop("evidence", "verify", "-c", config)
    assert ran.code == 0
    assert ran.out.endswith("the chain is whole\n")
    (tmp_path / "evidence" / f"{name}{SUFFIX}").unlink()
    ran = stoop("evidence", "verify", "-c", config)
    assert ran.code == 1
    assert "bundle 1 is missing" in ran.err
    assert ran.out.endswith("the chain is broken\n")


def test_a_cut_bundle_is_a_finding(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path) -> None:
    name = keep()
    path = tmp_path / "evidence" / f"{name}{SUFFIX}"
    os.truncate(path, path.stat().st_size - 1)
    assert stoop("evidence", "list", "-c", config).code == 1
    assert stoop("evidence", "verify", "-c", config).code == 1
    ran = stoop("evidence", "show", name, "-c", config)
    assert ran.code == 2
    assert "does not end as a bundle does" in ran.err


def test_extracted(stoop: Any, config: str, keep: Callable[..., str], tmp_path: Path) -> None:
    name, to = keep(), tmp_path / "out"
    ran = stoop("evidence", "extract", name, "processes", "-c", config, "--to", to)
    assert (ran.code, ran.out) == (0, f"1 parts are in {to}\n")
    assert sorted(str(path.relative_to(to)) for path in to.rglob("*.json")) == ["manifest.json", "processes/4711.json"]
    again = stoop("evidence", "extract", name, "-c", config, "--to", to)
    assert again.code == 2
    assert "is not empty" in again.err
    none = stoop("evidence", "extract", name, "nothing", "-c", config, "--to", tmp_path / "new")
    assert none.code == 2
    assert not (tmp_path / "new").exists()


def forged(path: Path, name: str, content: bytes) -> Path:
    """A bundle with one part of any name."""
    part = Part(name, len(content), hashlib.sha256(content).hexdigest())
    raw = manifests.encode(Manifest("x", 1, "", Origin(), {}, 1, 2, (part,)))
    parts = header(name, len(content), 0) + content + padding(len(content))
    first = ZstdCompressor().compress(parts, ZstdCompressor.FLUSH_FRAME)
    body = header("manifest.json", len(raw), 0) + raw + padding(len(raw)) + END
    second = ZstdCompressor().compress(body, ZstdCompressor.FLUSH_FRAME)
    path.write_bytes(first + second + FOOTER.pack(FOOTER_MAGIC, 16, FOOTER_TAG, len(first)))
    return path


@pytest.mark.parametrize("name", ["../out", "/tmp/stoop-evidence-out", "a/../../out", ".."])
def test_names_that_lead_out_are_refused(stoop: Any, config: str, tmp_path: Path, name: str) -> None:
    path = forged(tmp_path / f"b{SUFFIX}", name, b"evil")
    for command in ("show", "verify", "extract"):
        words = ("--to", tmp_path / "to") if command == "extract" else ()
        ran = stoop("evidence", command, path, "-c", config, *words)
        assert ran.code == 2
        assert "no safe path" in ran.err
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/stoop-evidence-out").exists()


def test_a_file_from_elsewhere_needs_a_folder_named(stoop: Any, config: str, tmp_path: Path) -> None:
    path = forged(tmp_path / f"b{SUFFIX}", "one", b"1")
    ran = stoop("evidence", "extract", path, "-c", config)
    assert ran.code == 2
    assert "say --to DIR" in ran.err
    assert stoop("evidence", "extract", path, "-c", config, "--to", tmp_path / "to").code == 0


def test_hostile_text_is_escaped(
    stoop: Any, config: str, keep: Callable[..., str], hostile: str, is_harmless: Callable[[str], bool]
) -> None:
    keep(rule=hostile, comm=hostile)
    assert is_harmless(stoop("evidence", "list", "-c", config).out.replace("\n", " "))
    assert is_harmless(stoop("evidence", "show", "1", "-c", config).out)
