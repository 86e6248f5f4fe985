"""Every example in README.md and docs/*.md is loaded by what it is an example for (docs/reference is made from specs).

```yaml     first line `# rules.yaml`, `# stoop.yaml`, `# falco.yaml` or `# values.yaml` (of Falco's Helm chart)
```json     an alert, or one a line
```console  each line `$ stoop …` must be a command with flags that it has
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from stoop import config
from stoop.alert import decode
from stoop.catalogue import CATALOGUE
from stoop.cli.alerts import split
from stoop.cli.app import build
from stoop.cli.falco import APPENDED_FIELDS
from stoop.rules import load

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FALCO = {
    "json_output": None,
    "json_include_output_fields_property": None,
    "append_output": None,
    "http_output": {"enabled", "url"},
    "program_output": {"enabled", "keep_alive", "program"},
    "file_output": {"enabled", "keep_alive", "filename"},
}
"""The keys of falco.yaml that examples may use (Falco 0.39 to 0.44), and those below them."""


class Example(NamedTuple):
    """One fenced block, and where it is."""

    place: str
    language: str
    text: str

    @property
    def title(self) -> str:
        """Its first line."""
        return self.text.partition("\n")[0]


def examples(*languages: str) -> list[Any]:
    return list(_examples(languages))


def _examples(languages: tuple[str, ...]) -> Iterator[Any]:
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        content = file.read_text()
        for found in FENCE.finditer(content):
            if found[1] in languages:
                line = content.count("\n", 0, found.start()) + 1
                place = f"{file.relative_to(ROOT)}:{line}"
                yield pytest.param(Example(place, found[1], found[2]), id=place)


def check_rules(text: str, tmp_path: Path) -> None:
    loaded = load([("rules.yaml", text.encode())], CATALOGUE)
    assert loaded.rules
    assert [str(warning) for warning in loaded.warnings] == []


def check_stoop(text: str, tmp_path: Path) -> None:
    path = tmp_path / "stoop.yaml"
    path.write_text(text)
    loaded = config.load(str(path), {}, is_root=True, hostname="node-1")
    assert [line for line in loaded.warnings if "insecure" not in line] == []


def check_falco(text: str, tmp_path: Path) -> None:
    check_falco_settings(yaml.safe_load(text))


def check_values(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    assert set(values) <= {"falco", "extra", "mounts", "driver", "customRules"}
    check_falco_settings(values["falco"])


def check_falco_settings(settings: dict[str, Any]) -> None:
    assert settings["json_output"] is True
    for key, value in settings.items():
        assert key in FALCO
        below = FALCO[key]
        assert below is None or set(value) <= below
    for entry in settings.get("append_output", ()):
        assert set(entry) <= {"match", "extra_fields", "extra_output", "suggested_output"}
        if "extra_fields" in entry:
            assert entry["match"] == {"source": "syscall"}
            assert set(entry["extra_fields"]) <= set(APPENDED_FIELDS)
            assert "proc.pid" in entry["extra_fields"]


CHECKS = {
    "# rules.yaml": check_rules,
    "# stoop.yaml": check_stoop,
    "# falco.yaml": check_falco,
    "# values.yaml of Falco's chart": check_values,
}


@pytest.mark.parametrize("example", examples("yaml", "yml"))
def test_yaml_says_what_it_is_and_loads(example: Example, tmp_path: Path) -> None:
    assert example.title in CHECKS, "the first line of a YAML example says which file it is of"
    CHECKS[example.title](example.text, tmp_path)


@pytest.mark.parametrize("example", [*examples("json"), pytest.param(Example("", "json", '{"rule": "x"}'), id="none")])
def test_json_is_alerts(example: Example) -> None:
    for alert in split(example.text.encode()):
        decode(alert)


def commands() -> Iterator[Any]:
    for parameter in examples("console"):
        example: Example = parameter.values[0]
        for number, line in enumerate(example.text.splitlines()):
            if line.startswith("$ stoop "):
                yield pytest.param(line.removeprefix("$ stoop "), id=f"{example.place}+{number}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_exist_with_their_flags(line: str) -> None:
    words = shlex.split(line, comments=True)
    command: Any = typer.main.get_command(build())
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context("stoop", words)
    context.close()


def test_the_fragment_in_the_docs_is_the_one_that_is_printed() -> None:
    first = next(found[2] for found in FENCE.finditer((ROOT / "docs/falco.md").read_text()) if found[1] == "yaml")
    assert tuple(yaml.safe_load(first)["append_output"][1]["extra_fields"]) == APPENDED_FIELDS
