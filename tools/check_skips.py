"""No test is skipped unnoticed: `python -m tools.check_skips REPORT [--allowed FILE]`.

REPORT is the JUnit XML of a pytest run (`--junit-xml`), FILE a list like `allowed_skips.txt` beside this program. Exit
codes: 0 every skip is on the list, 1 one is not (each is named, with its reason), 2 there is nothing to judge: no
report, no test in it, or a list that can't be read. An expected failure (xfail) counts as a skip: it proves nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ALLOWED = Path(__file__).resolve().with_name("allowed_skips.txt")

COLUMNS = 3

FINE, FOUND, USAGE = 0, 1, 2


class Skip(NamedTuple):
    """A test that was not run, or whose failure was expected, and what it said."""

    test: str
    reason: str


class Allowed(NamedTuple):
    """A line of the list: which skips, and why they are no hole."""

    test: re.Pattern[str]
    reason: re.Pattern[str]
    why: str

    def covers(self, skip: Skip) -> bool:
        """Whether this line speaks of that skip."""
        return bool(self.test.fullmatch(skip.test) and self.reason.fullmatch(skip.reason))


def read_allowed(text: str) -> list[Allowed]:
    """The list's lines. Raises ValueError for one that has not three columns with something in each."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = [column.strip() for column in line.split("|")]
        if len(columns) != COLUMNS or not all(columns):
            raise ValueError(f"line {number}: `test | reason | why` is wanted, each with something in it")
        found.append(Allowed(_pattern(columns[0]), _pattern(columns[1]), columns[2]))
    return found


def _pattern(text: str) -> re.Pattern[str]:
    """`*` stands for any characters. No fnmatch: in a parameter's name, brackets are brackets."""
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def read_report(text: str) -> tuple[int, list[Skip]]:
    """How many tests a JUnit XML tells of, and the skips among them. Raises ValueError for what is no such report."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not an XML report: {error}") from error
    cases = list(root.iter("testcase"))
    return len(cases), [_skip(case, mark) for case in cases if (mark := case.find("skipped")) is not None]


def _skip(case: ElementTree.Element, mark: ElementTree.Element) -> Skip:
    where, name = case.get("classname", ""), case.get("name", "")
    message = mark.get("message", "")
    if message == "collection skipped":  # a whole module; the reason stands in the text
        message = mark.text or message
    if mark.get("type") == "pytest.xfail":
        message = f"expected failure: {message}"
    return Skip(f"{where}::{name}" if where else name, " ".join(message.split()))


def check(report: str, allowed: str) -> list[Skip]:
    """The skips that are not allowed, in the order of the report. Raises ValueError as the readers do."""
    lines = read_allowed(allowed)
    count, skips = read_report(report)
    if not count:
        raise ValueError("the report tells of no test")
    return [skip for skip in skips if not any(line.covers(skip) for line in lines)]


def main(argv: Sequence[str]) -> int:
    """Judge one report. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="check_skips", description="Fail on skips that are not on the list.")
    parser.add_argument("report", type=Path, help="what pytest --junit-xml wrote")
    parser.add_argument("--allowed", type=Path, default=ALLOWED, metavar="FILE", help=f"default: tools/{ALLOWED.name}")
    asked = parser.parse_args(argv)
    try:
        found = check(asked.report.read_text("utf-8"), asked.allowed.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"check_skips: {error}\n")
        return USAGE
    for skip in found:
        sys.stderr.write(f"check_skips: skipped: {skip.test}: {skip.reason}\n")
    if found:
        said = "make them run here, or write down why not in"
        sys.stderr.write(f"check_skips: {len(found)} skips are not allowed: {said} {asked.allowed.name}\n")
    return FOUND if found else FINE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
