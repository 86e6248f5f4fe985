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
    """Keep a bundle of two parts; gives its name."""

    def kept(run: str = "ab" * 16, rule: str = "A rule", comm: str = "sh") -> str:
        with (
            Store(str(tmp_path / "evidence"), Limits(min_free_bytes=0), lambda: NOW_NS) as store,
            store.draft() as draft,
        ):
            draft.writer.add("processes/4711.json", b'{"pid": 4711}')
            draft.writer.add("sockets.json", b"[]")
            draft.writer.lacks("upper", "no overlay")
            origin = Origin(rule=rule, run=run, actionner="evidence:snapshot", action="Keep it")
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


def test_all_bundles_of_one_run(stoop: Any, config: str, keep: Callable[..., str]) -> None:
    names = [keep(), keep()]
    assert [line["bundle"] for line in stoop("evidence", "show", "abab", "-c", config, "--json").lines] == names
    ran = stoop("evidence", "extract", "abab", "-c", config)
    assert ran.code == 2
    assert "2 bundles are of run abab" in ran.err


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
