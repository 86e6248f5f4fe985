"""What is generated: the same each time, up to date in the repository, and of use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoop.catalogue import CATALOGUE, build
from stoop.spec import (
    Spec,
)
from tools import generate, reference, rules_schema

SCHEMA = rules_schema.schema(CATALOGUE)


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """What is wrong with a value by a schema that uses only the keywords that ours uses."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    found = [f"{value!r} is not {schema['type']}" for _ in range(not is_a(value, schema.get("type")))]
    if "enum" in schema and not any(value == word and type(value) is type(word) for word in schema["enum"]):
        found.append(f"{value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']}")
    if "if" in schema:
        found += faults(value, schema.get("else" if faults(value, schema["if"]) else "then", {}))
    for part in schema.get("allOf", []):
        found += faults(value, part)
    if isinstance(value, dict):
        found += faults_of_map(value, schema)
    if isinstance(value, list):
        found += ["too few" for _ in range(len(value) < schema.get("minItems", 0))]
        found += [fault for item in value for fault in faults(item, schema.get("items", {}))]
    return found


def faults_of_map(value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    properties = schema.get("properties", {})
    found = [f"{key} is missing" for key in schema.get("required", []) if key not in value]
    found += ["too few" for _ in range(len(value) < schema.get("minProperties", 0))]
    for key, item in value.items():
        if key in properties:
            found += faults(item, properties[key])
        elif schema.get("additionalProperties") is False:
            found.append(f"{key} is unknown")
        elif isinstance(schema.get("additionalProperties"), dict):
            found += faults(item, schema["additionalProperties"])
    return found


def is_a(value: Any, types: str | list[str] | None) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
    if types is None:
        return True
    wanted = [types] if isinstance(types, str) else types
    return any(isinstance(value, kinds[kind]) and (kind == "boolean" or value is not True) for kind in wanted)


def test_the_repository_is_up_to_date() -> None:
    assert list(generate.differences(generate.ROOT, generate.generate())) == []


def test_the_same_comes_out_each_time() -> None:
    assert generate.generate() == generate.generate()


def test_check_names_what_differs_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert generate.main(root) == 0
    assert generate.main([*root, "--check"]) == 0
    page = tmp_path / "docs/reference/actions.md"
    page.write_text("edited by hand", encoding="utf-8")
    (tmp_path / "docs/reference/outputs.md").unlink()
    (tmp_path / "docs/reference/leftover.md").write_text("x", encoding="utf-8")
    capsys.readouterr()
    assert generate.main([*root, "--check"]) == 1
    said = capsys.readouterr().out
    assert "docs/reference/actions.md: stale\n" in said
    assert "docs/reference/leftover.md: not generated any more\n" in said
    assert "docs/reference/outputs.md: missing\n" in said
    assert "make generate" in said
    assert page.read_text(encoding="utf-8") == "edited by hand"
    assert generate.main(root) == 0
    assert generate.main([*root, "--check"]) == 0


def test_two_generators_may_not_make_one_file() -> None:
    with pytest.raises(ValueError, match=r"two generators make a\.md"):
        generate.generate([lambda: {"a.md": "1"}, lambda: {"a.md": "2"}])


def test_the_pages_hold_every_entry_and_every_parameter() -> None:
    pages = reference.pages(CATALOGUE)
    for acting in (action.spec for action in CATALOGUE.actions.values()):
        page = pages[f"docs/reference/{reference.action_path(acting.name)}"]
        assert page.startswith(f"# {acting.name}\n")
        assert acting.description in page
        assert acting.example in page
        assert all(f"| `{parameter}` |" in page for parameter in acting.parameters.__struct_encode_fields__)
    parts: dict[str, list[Spec]] = {
        "outputs": list(CATALOGUE.outputs.values()),
        "notifiers": list(CATALOGUE.notifiers.values()),
    }
    for name, specs in parts.items():
        page = pages[f"docs/reference/{name}.md"]
        for spec in specs:
            section = page.partition(f"\n## {spec.name}\n")[2].partition("\n## ")[0]
            assert spec.description in section
            assert spec.example in section
            for parameter in spec.parameters.__struct_encode_fields__:
                assert f"| `{parameter}` |" in section


def test_the_links_of_the_overview_lead_somewhere() -> None:
    pages = reference.pages(CATALOGUE)
    linked = set(re.findall(r"\]\(([^)]+)\)", pages["docs/reference/actions.md"]))
    assert {f"docs/reference/{link}" for link in linked} == {path for path in pages if "/actions/" in path}
    assert len(linked) == len(CATALOGUE.actions)


def test_a_page_says_whether_this_version_acts() -> None:
    page = reference.pages(CATALOGUE)["docs/reference/actions.md"]
    assert "| [kubernetes:terminate](actions/kubernetes-terminate.md) | declared only |" in page
    assert "| [process:kill](actions/process-kill.md) | yes |" in page


def test_the_schema_is_json_and_refers_only_to_what_it_holds() -> None:
    text = rules_schema.pages(CATALOGUE)[rules_schema.PATH]
    assert json.loads(text) == SCHEMA
    references = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', text)
    assert set(references) == SCHEMA["$defs"].keys()
    assert len(CATALOGUE.actions) + len(CATALOGUE.outputs) <= len(SCHEMA["$defs"])


@pytest.mark.parametrize(
    "spec",
    [*(action.spec for action in CATALOGUE.actions.values()), *CATALOGUE.outputs.values()],
    ids=lambda spec: spec.name,
)
def test_the_schema_takes_each_example(spec: Spec) -> None:
    assert faults(yaml.safe_load(spec.example), SCHEMA) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rule: x", "is not ['array', 'null']"),
        ("- rule: x\n  matches: {}", "matches is unknown"),
        ("- rule: x\n  match: {rules: one}", "'one' is not array"),
        ("- rule: x\n  match: {prioritty: '>=Warning'}", "prioritty is unknown"),
        ("- rule: x\n  continue: 'yes'", "'yes' is none of"),
        ("- rule: x\n  continue: 1", "1 is none of"),
        ("- rule: x\n  actions: []", "too few"),
        ("- description: x", "action is missing"),
        ("- {action: x, actionner: kubernetes:labelize}", "'kubernetes:labelize' is none of"),
        ("- {action: x, actionner: kubernetes:label, parameters: {labels: {a: 1}}}", "1 is not string"),
        ("- {action: x, actionner: kubernetes:terminate, parameters: {ignore_daemonsets: 1}}", "1 is not boolean"),
        ("- {action: x, actionner: kubernetes:log, parameters: {tail_lines: '5'}}", "'5' is not integer"),
        ("- {action: x, output: {target: 'local:file', parameters: {destination: 1}}}", "1 is not string"),
        ("- {action: x, output: {target: 'local:file', parameters: {}}}", "too few"),
        ("- {action: x, output: {target: nowhere}}", "'nowhere' is none of"),
    ],
)
def test_the_schema_flags_what_is_wrong(text: str, fault: str) -> None:
    assert [found for found in faults(yaml.safe_load(text), SCHEMA) if fault in found]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- action: inherits everything\n- rule: of another file",
        "- {action: x, actionner: kubernetes:label, parameters: {level: node}}",  # labels may stand in another file
        "- {action: x, parameters: null, continue: 'true', ignore_errors: false}",
    ],
)
def test_the_schema_takes_what_loads(text: str) -> None:
    assert faults(yaml.safe_load(text), SCHEMA) == []


def test_an_empty_catalogue_still_gives_pages() -> None:
    pages = reference.pages(build([], [], []))
    assert all(text.startswith("# ") and text.endswith("\n") for text in pages.values())
