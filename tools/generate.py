"""Writes what is generated from the declarations: `python -m tools.generate`, or `--check` to compare only.

A generator is a function that gives texts by path (relative to the repository). To add one, write the function and put
it into GENERATORS. A generator must give the same text each time: no clock, no set order, nothing of this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stoop import config, metrics
from stoop.catalogue import CATALOGUE
from stoop.cli import falco
from stoop.cli.settings import DEFAULT_BEACON
from stoop.config_model import HEARTBEAT_RULE
from tools import reference, rules_schema

ROOT = Path(__file__).resolve().parent.parent
# Every file in here is generated; one that no generator makes is a leftover.
GENERATED_FOLDER = "docs/reference"

Generator = Callable[[], Mapping[str, str]]

GENERATORS: tuple[Generator, ...] = (
    lambda: reference.pages(CATALOGUE),
    lambda: rules_schema.pages(CATALOGUE),
    lambda: {"docs/reference/metrics.md": metrics.reference()},
    lambda: {"docs/configuration.md": config.reference()},
    lambda: {"docs/reference/falco-heartbeat.yaml": falco.heartbeat_rule(DEFAULT_BEACON, HEARTBEAT_RULE)},
)


def generate(generators: Sequence[Generator] = GENERATORS) -> dict[str, str]:
    """All generated texts by path. Raises ValueError when two generators make the same file."""
    texts: dict[str, str] = {}
    for generator in generators:
        for path, text in generator().items():
            if path in texts:
                raise ValueError(f"two generators make {path}")
            texts[path] = text
    return texts


def differences(root: Path, texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(path, what is wrong with it), sorted: `missing`, `stale`, or `not generated any more`."""
    folder = root / GENERATED_FOLDER
    there = {path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()}
    for path in sorted(texts.keys() | there):
        file = root / path
        if path not in texts:
            yield path, "not generated any more"
        elif not file.is_file():
            yield path, "missing"
        elif file.read_text(encoding="utf-8") != texts[path]:
            yield path, "stale"


def write(root: Path, texts: Mapping[str, str]) -> list[str]:
    """Make the files what the generators say; gives what was done to each that differed."""
    done = []
    for path, fault in list(differences(root, texts)):
        file = root / path
        if path in texts:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts[path], encoding="utf-8")
            done.append(f"wrote {path}")
        else:
            file.unlink()
            done.append(f"removed {path} ({fault})")
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is up to date (or was made so), 1 when `--check` found a difference."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description="Writes the generated files.")
    parser.add_argument("--check", action="store_true", help="only compare; name what differs and exit with 1")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args(argv)
    texts = generate()
    if not options.check:
        lines = write(options.root, texts)
        sys.stdout.write("".join(f"{line}\n" for line in lines) or f"{len(texts)} files are up to date\n")
        return 0
    found = list(differences(options.root, texts))
    sys.stdout.write("".join(f"{path}: {fault}\n" for path, fault in found))
    if found:
        sys.stdout.write("Run `make generate` and commit what it writes.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
