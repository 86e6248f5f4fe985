"""Every command as a person meets it: help, wrong words, exit codes, one clear line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoop.catalogue import CATALOGUE

COMMANDS = [
    ["run"],
    ["send"],
    ["explain"],
    ["replay"],
    ["rules"],
    ["rules", "check"],
    ["rules", "print"],
    ["actions"],
    ["actions", "list"],
    ["actionners", "list"],
    ["outputs", "list"],
    ["notifiers", "list"],
    ["history"],
    ["status"],
    ["mode"],
    ["arm"],
    ["config"],
    ["config", "print"],
    ["falco-config"],
    ["version"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(stoop: Any, words: list[str]) -> None:
    ran = stoop(*words, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: stoop {' '.join(words)}")
    assert "completion" not in ran.out


@pytest.mark.parametrize("words", [[], ["rules"], ["actions"], ["config"]], ids=" ".join)
def test_no_words_show_the_help(stoop: Any, words: list[str]) -> None:
    ran = stoop(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "Commands:" in ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nope"], "No such command 'nope'. (see `stoop --help`)"),
        (["rules", "nope"], "No such command 'nope'. (see `stoop rules --help`)"),
        (["rules", "check", "--nope"], "No such option: --nope (see `stoop rules check --help`)"),
        (["rules", "check", ""], "the name of a file is empty"),
        (["explain", ""], "the name of a file is empty"),
        (["status", "--nope"], "No such option: --nope (see `stoop status --help`)"),
        (["explain"], "Missing argument 'alert'. (see `stoop explain --help`)"),
        (["mode", "maybe"], "'maybe' is not one of 'off', 'observe', 'enforce'"),
        (["mode", "off", "--for", "soon"], "--for: 'soon' is not a duration: write a number and a unit"),
        (["mode", "off", "--for", "0"], "--for takes more than 0 and at most 30d"),
        (["mode", "off", "--for", "31d"], "--for takes more than 0 and at most 30d"),
        (["arm"], "name one rule, or --all"),
        (["arm", "R", "--all"], "name one rule, or --all"),
        (["history", "--limit", "0"], "--limit"),
        (["history", "--outcome", "maybe"], "--outcome"),
        (["history", "--since", "yesterday"], "--since: 'yesterday' is not a duration"),
        (["falco-config", "--way", "grpc"], "--way"),
        (["status", "-c", "/nonexistent/x.yaml"], "/nonexistent/x.yaml: can't be read: No such file or directory"),
        (["rules", "check", "-r", "/nonexistent/r.yaml"], "/nonexistent/r.yaml: can't be read"),
        (["explain", "/nonexistent/alert"], "/nonexistent/alert: can't be read"),
        (["send", "/nonexistent/alert"], "/nonexistent/alert: can't be read"),
        (["send", "-", "--rate", "0"], "--rate takes a number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_clear_line(stoop: Any, words: list[str], says: str) -> None:
    ran = stoop(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("stoop: ")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_hostile_words_are_shown_escaped(stoop: Any, hostile: str, is_harmless: Callable[[str], bool]) -> None:
    assert is_harmless(stoop("explain", f"/nonexistent/{hostile}").err)


def test_version_tells_what_it_stands_on(stoop: Any) -> None:
    ran = stoop("version")
    assert ran.code == 0
    assert ran.out.startswith("stoop ")
    assert "Python 3" in ran.out
    assert "\ntrio " in ran.out
    assert "missing" not in ran.out


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("actions", list(CATALOGUE.actions)),
        ("actionners", list(CATALOGUE.actions)),
        ("outputs", list(CATALOGUE.outputs)),
        ("notifiers", list(CATALOGUE.notifiers)),
    ],
)
def test_lists_are_yaml_blocks_with_a_header_each(stoop: Any, word: str, names: list[str]) -> None:
    ran = stoop(word, "list")
    assert ran.code == 0
    heads = [line for line in ran.out.splitlines() if line.startswith("--- ")]
    assert heads == [f"--- {name} ---" for name in names]
    blocks = [yaml.safe_load(block) for block in re.split(r"^--- \S+ ---$", ran.out, flags=re.MULTILINE)[1:]]
    assert [block["name"] for block in blocks] == [name.rpartition(":")[2] for name in names]


def test_a_listed_action_tells_what_it_declares(stoop: Any) -> None:
    text = stoop("actions", "list").out
    block = text.split("--- process:kill ---\n")[1].split("\n--- ")[0]
    told = yaml.safe_load(block)
    assert (told["name"], told["category"], told["continue"]) == ("kill", "process", True)
    assert told["parameters"]["scope"]["default"] == "process"
    assert told["required_output_fields"] == ["proc.pid"]
    assert told["in_this_version"] is True
    download = yaml.safe_load(text.split("--- kubernetes:download ---\n")[1].split("\n--- ")[0])
    assert download["require_output"] is True
    assert any(name.endswith(" (required)") for name in download["parameters"])
    assert "permissions" not in download  # it is done on the node, without the API
    executed = yaml.safe_load(text.split("--- kubernetes:exec ---\n")[1].split("\n--- ")[0])
    assert executed["permissions"][0]["apiGroups"] == [""]


def test_config_print_shows_values_origins_and_warnings(stoop: Any, write: Callable[..., str], tmp_path: Path) -> None:
    path = write("stoop.yaml", f"state_dir: {tmp_path}\nmode: observe\nnonsense: 1\n")
    ran = stoop("config", "print", "-c", path)
    assert ran.code == 0
    assert "mode" in ran.out
    assert f"observe  # {path}:2" in ran.out
    assert "nonsense" in ran.err
    assert ran.err.startswith("warning: ")
    as_json = stoop("config", "print", "-c", path, "--json")
    assert {"key": "mode", "value": "observe", "origin": f"{path}:2"} in as_json.lines


def test_config_print_warns_of_a_token_that_others_can_read(stoop: Any, write: Callable[..., str]) -> None:
    token = write("token", "s3cret")
    path = write("stoop.yaml", f"intake: {{http: {{token_file: {token}}}}}\n")
    for mode, is_told in ((0o644, True), (0o640, True), (0o600, False)):
        Path(token).chmod(mode)
        ran = stoop("config", "print", "-c", path)
        assert (ran.code, "can be read by others" in ran.err) == (0, is_told), ran.err
        assert "s3cret" not in ran.out + ran.err


def test_a_wrong_configuration_is_told_line_by_line(stoop: Any, write: Callable[..., str]) -> None:
    path = write("stoop.yaml", "mode: maybe\nmetrics: {port: 99999}\n")
    ran = stoop("status", "-c", path)
    assert ran.code == 2
    assert [line.startswith(f"stoop: {path}:") for line in ran.err.splitlines()] == [True, True]


def test_stoop_config_names_the_file(stoop: Any, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOOP_CONFIG", write("stoop.yaml", "node_name: from-the-environment\n"))
    assert "from-the-environment" in stoop("config", "print").out


def run_program(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "stoop.cli", *words], capture_output=True, timeout=60, **options)


def test_it_is_a_program() -> None:
    ran = run_program("version")
    assert ran.returncode == 0
    assert ran.stdout.startswith(b"stoop ")
    assert ran.stderr == b""


def test_a_closed_pipe_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = subprocess.Popen(
        [sys.executable, "-m", "stoop.cli", "actions", "list"], stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, b"")
