"""A skip that nobody allowed fails the gate, and so does a gate with nothing to look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tools import check_skips
from tools.check_skips import FINE, FOUND, USAGE, Skip, check, read_allowed, read_report

LIST = """
# a comment, and an empty line

tests.real.* | no cgroups of the layout v1 | not mounted here
tests.intake.test_http::test_names[a[b]] | * can't be listened on: * | no IPv6
"""


def report(*cases: tuple[str, str, str]) -> str:
    """A report of these (class, name, reason); "" for a test that passed."""
    lines = [
        f"<testcase classname={quoteattr(where)} name={quoteattr(name)}>"
        + (f'<skipped type="pytest.skip" message={quoteattr(reason)}>x</skipped>' if reason else "")
        + "</testcase>"
        for where, name, reason in cases
    ]
    return f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>"


PASSED = ("tests.test_engine", "test_the_table", "")
V1 = ("tests.real.test_kill_container", "test_all[v1]", "no cgroups of the layout v1")
NAMES = ("tests.intake.test_http", "test_names[a[b]]", "::1 can't be listened on: no such address")
UNKNOWN = ("tests.real.test_kill_process", "test_one", "needs the moon")


LIKE_V1 = (*V1[:2], "no cgroups of the layout v1 or v2")
ELSEWHERE = ("x.tests.real.a", *V1[1:])
LIKE_NAMES = (NAMES[0], "test_namesa", NAMES[2])  # in a parameter's name brackets are brackets


def skip(case: tuple[str, str, str]) -> Skip:
    return Skip(f"{case[0]}::{case[1]}", case[2])


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        ([PASSED], []),
        ([PASSED, V1, NAMES], []),
        ([V1, UNKNOWN], [skip(UNKNOWN)]),
        ([LIKE_V1, ELSEWHERE, LIKE_NAMES], [skip(LIKE_V1), skip(ELSEWHERE), skip(LIKE_NAMES)]),
    ],
)
def test_only_what_is_on_the_list_is_allowed(cases: list[tuple[str, str, str]], found: list[Skip]) -> None:
    assert check(report(*cases), LIST) == found


@pytest.mark.parametrize("line", ["tests.real.*", "a | b", "a | b |", "a || c", "a | b | c | d"])
def test_a_line_without_a_reason_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: `test \| reason \| why`"):
        read_allowed(f"# why\n{line}\n")


@pytest.mark.parametrize("text", ["", "half <a", "<testsuites/>", "<testsuites><testsuite/></testsuites>"])
def test_a_report_without_a_test_is_no_pass(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an XML report|tells of no test"):
        check(text, LIST)


SKIPS = """
import pytest

class TestOne:
    @pytest.mark.parametrize("x", ["a b", "c"])
    def test_in(self, x):
        pytest.skip(f"two\\nlines {x}")

@pytest.mark.xfail(reason="known")
def test_fails():
    assert False

def test_passes():
    pass
"""


def test_what_pytest_really_writes(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPS)
    (tmp_path / "test_whole.py").write_text('import pytest\npytest.skip("no module", allow_module_level=True)\n')
    written = tmp_path / "report.xml"
    options = ["-q", "-p", "no:trio", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, f"--junit-xml={written}", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    count, skips = read_report(written.read_text("utf-8"))
    assert count == 5
    told = {skip.test: skip.reason for skip in skips}
    whole = told.pop("test_whole")
    assert "no module" in whole
    assert told == {
        "test_some.TestOne::test_in[a b]": "two lines a b",
        "test_some.TestOne::test_in[c]": "two lines c",
        "test_some::test_fails": "expected failure: known",
    }


def test_the_program_names_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "report.xml"
    allowed = tmp_path / "list.txt"
    allowed.write_text(LIST)
    arguments = [str(written), "--allowed", str(allowed)]

    assert check_skips.main(arguments) == USAGE
    assert "report.xml" in capsys.readouterr().err

    written.write_text(report(PASSED, V1))
    assert check_skips.main(arguments) == FINE
    assert capsys.readouterr().err == ""

    written.write_text(report(PASSED, V1, UNKNOWN))
    assert check_skips.main(arguments) == FOUND
    said = capsys.readouterr().err
    assert "skipped: tests.real.test_kill_process::test_one: needs the moon" in said
    assert "1 skips are not allowed" in said
    assert "v1" not in said


def test_the_list_of_this_repository_can_be_read_and_is_short() -> None:
    lines = read_allowed(check_skips.ALLOWED.read_text("utf-8"))
    assert 0 < len(lines) <= 13
    assert not any(line.test.fullmatch("tests.test_engine::test_the_table") for line in lines)
