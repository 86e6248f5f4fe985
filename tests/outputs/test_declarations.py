"""Every output's declaration is proven: against Falco Talon's table, against itself, against its own example."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import stoop.outputs
from stoop.catalogue import CATALOGUE
from stoop.outputs import OUTPUTS
from stoop.rules import load
from stoop.spec import (
    OutputSpec,
)

# Name, required parameters, further ones (all text, empty by default). From Falco Talon's own list.
TALON = {
    "local:file": (["destination"], []),
    "aws:s3": (["bucket"], ["prefix", "region"]),
    "minio:s3": (["bucket"], ["prefix"]),
    "gcp:gcs": (["bucket"], ["prefix"]),
}

each_spec = pytest.mark.parametrize("spec", OUTPUTS, ids=lambda spec: spec.name)


def test_the_table_of_talon_is_declared_and_nothing_else() -> None:
    assert list(CATALOGUE.outputs) == [spec.name for spec in OUTPUTS] == list(TALON)


@each_spec
def test_it_is_what_talon_has(spec: OutputSpec) -> None:
    fields = msgspec.structs.fields(spec.parameters)
    required, further = TALON[spec.name]
    assert [field.encode_name for field in fields if field.required] == required
    assert [(field.encode_name, field.default) for field in fields if not field.required] == [(n, "") for n in further]


def test_each_file_is_listed() -> None:
    files = [path for path in Path(stoop.outputs.__file__).parent.glob("*.py") if path.name != "__init__.py"]
    modules = [importlib.import_module(f"stoop.outputs.{path.stem}") for path in files]
    assert {module.__name__.rpartition(".")[2]: module.SPEC.name for module in modules} == {
        spec.name.replace(":", "_"): spec.name for spec in OUTPUTS
    }


@each_spec
def test_it_says_what_it_does(spec: OutputSpec) -> None:
    assert spec.description.endswith(".")
    for field in msgspec.structs.fields(spec.parameters):
        (meta,) = field.type.__metadata__
        assert meta.description.endswith("."), field.name
    assert spec.name == "local:file" or spec.cloud_rights


@each_spec
def test_what_is_required_must_not_be_empty(spec: OutputSpec) -> None:
    assert spec.check is not None
    (required,), _ = TALON[spec.name]
    (fault,) = spec.check(msgspec.convert({required: ""}, spec.parameters))
    assert (fault.code, fault.parameter) == ("param-required", required)
    assert list(spec.check(msgspec.convert({required: "x"}, spec.parameters))) == []


@each_spec
def test_its_example_shows_it(spec: OutputSpec) -> None:
    example: list[dict[str, Any]] = yaml.safe_load(spec.example)
    shown = [step for rule in example for step in rule["actions"] if step["output"]["target"] == spec.name]
    assert shown
    for step in shown:
        assert step["actionner"] in CATALOGUE.actions
        params = msgspec.convert(step["output"]["parameters"], spec.parameters)
        assert spec.check is not None
        assert list(spec.check(params)) == []


@each_spec
def test_its_example_loads_without_a_warning(spec: OutputSpec) -> None:
    loaded = load([(spec.name, spec.example.encode())], CATALOGUE)
    assert loaded.warnings == ()
    outputs = [step.output for rule in loaded.rules for step in rule.actions]
    assert [output.target for output in outputs if output is not None] == [spec.name]
