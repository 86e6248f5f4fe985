"""Every notifier's declaration is proven: against Falco Talon's table, against itself, against its own example."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import stoop.notifiers
from stoop.catalogue import CATALOGUE
from stoop.notifiers import NOTIFIERS
from stoop.spec import (
    NotifierSpec,
)

REQUIRED = object()

# From Falco Talon's own list, with two differences on purpose: what people see names Stoop and not Talon (slack's
# username and footer), and no picture of someone else's site is sent (slack's icon).
TALON: dict[str, dict[str, object]] = {
    "k8sevents": {},
    "slack": {"webhook_url": REQUIRED, "icon": "", "username": "Stoop", "footer": "", "format": "long"},
    "webhook": {
        "url": REQUIRED,
        "http_method": "POST",
        "user_agent": "falco-talon",
        "content_type": "application/json; charset=utf-8",
        "custom_headers": {},
    },
    "smtp": {
        "host_port": REQUIRED,
        "from": REQUIRED,
        "to": REQUIRED,
        "user": "",
        "password": "",
        "format": "html",
        "tls": False,
    },
    "loki": {"url": REQUIRED, "user": "", "api_key": "", "tenant": "", "custom_headers": {}},
    "elasticsearch": {
        "url": REQUIRED,
        "user": "",
        "password": "",
        "index": "falco-talon",
        "suffix": "daily",
        "create_index_template": True,
        "number_of_shards": 3,
        "number_of_replicas": 3,
        "custom_headers": {},
    },
}

each_spec = pytest.mark.parametrize("spec", NOTIFIERS, ids=lambda spec: spec.name)


def defaults(parameters: type[msgspec.Struct]) -> dict[str, object]:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(parameters):
        if field.required:
            found[field.encode_name] = REQUIRED
        elif field.default is not msgspec.NODEFAULT:
            found[field.encode_name] = field.default
        else:
            found[field.encode_name] = field.default_factory()
    return found


def test_the_table_of_talon_is_declared_and_nothing_else() -> None:
    assert list(CATALOGUE.notifiers) == [spec.name for spec in NOTIFIERS] == list(TALON)


@each_spec
def test_its_settings_are_those_of_talon(spec: NotifierSpec) -> None:
    assert defaults(spec.parameters) == TALON[spec.name]


def test_each_file_is_listed() -> None:
    files = [path for path in Path(stoop.notifiers.__file__).parent.glob("*.py") if path.name != "__init__.py"]
    modules = [importlib.import_module(f"stoop.notifiers.{path.stem}") for path in files]
    assert {module.__name__.rpartition(".")[2]: module.SPEC for module in modules} == {
        spec.name: spec for spec in NOTIFIERS
    }


@each_spec
def test_it_says_what_it_does(spec: NotifierSpec) -> None:
    assert spec.description.endswith(".")
    for field in msgspec.structs.fields(spec.parameters):
        (meta,) = field.type.__metadata__
        assert meta.description.endswith("."), field.name


@each_spec
def test_its_example_shows_it(spec: NotifierSpec) -> None:
    example: dict[str, Any] = yaml.safe_load(spec.example)
    assert example["default_notifiers"] == [spec.name]
    settings = example.get("notifiers", {}).get(spec.name, {})
    assert settings.keys() <= defaults(spec.parameters).keys()
    params = msgspec.convert(settings, spec.parameters, strict=True)
    assert spec.check is None or list(spec.check(params)) == []


@pytest.mark.parametrize(
    ("name", "raw", "faults"),
    [
        ("slack", {"webhook_url": ""}, [("param-required", "webhook_url")]),
        ("slack", {"webhook_url": "hooks.example.com"}, [("param-value", "webhook_url")]),
        ("slack", {"webhook_url": "https://h", "format": "Long"}, [("param-value", "format")]),
        ("webhook", {"url": "ftp://h"}, [("param-value", "url")]),
        ("loki", {"url": ""}, [("param-required", "url")]),
        (
            "smtp",
            {"host_port": "mail", "from": "", "to": " , ", "format": "rtf"},
            [
                ("param-value", "host_port"),
                ("param-required", "from"),
                ("param-required", "to"),
                ("param-value", "format"),
            ],
        ),
        ("smtp", {"host_port": "h:25", "from": "a@b", "to": "c@d,e@f", "format": ""}, []),
        (
            "elasticsearch",
            {"url": "http://h", "suffix": "hourly", "number_of_shards": 0, "number_of_replicas": 0},
            [("param-value", "suffix"), ("param-value", "number_of_shards"), ("param-value", "number_of_replicas")],
        ),
    ],
)
def test_value_rules(name: str, raw: dict[str, Any], faults: list[tuple[str, str]]) -> None:
    spec = CATALOGUE.notifiers[name]
    assert spec.check is not None
    found = list(spec.check(msgspec.convert(raw, spec.parameters)))
    assert [(fault.code, fault.parameter) for fault in found] == faults
