"""The JSON schema of rules files (draft 2020-12), for editors: what the language's keys mean and what each act takes.

It is stricter than the loader on purpose: it flags what loads with a warning (a misspelt key). What it can't know, it
leaves to `stoop rules check`: an action may get its actionner and parameters from another file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from stoop.spec import (
    Catalogue,
    Spec,
)

Schema = dict[str, Any]

PATH = "docs/reference/rules.schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"


def pages(catalogue: Catalogue) -> dict[str, str]:
    """The schema by its path."""
    return {PATH: json.dumps(schema(catalogue), indent=2, ensure_ascii=False) + "\n"}


def schema(catalogue: Catalogue) -> Schema:
    """The schema of one rules file."""
    return {
        "$schema": _DIALECT,
        "title": "Rules of Stoop",
        "description": "A list of action definitions and rules.",
        "type": ["array", "null"],
        "items": {"if": {"required": ["rule"]}, "then": _ref("rule"), "else": _ref("action")},
        "$defs": {
            "rule": _rule(),
            "match": _match(),
            "action": _action(catalogue),
            "output": _output(catalogue),
            "switch": {"enum": [True, False, "true", "false"]},
            "texts": {"type": "array", "items": {"type": "string"}},
            **_parameters(catalogue),
        },
    }


def _rule() -> Schema:
    return _object(
        {
            "rule": _text("The rule's name. Rules of one name are merged, over all files."),
            "description": _text("What it is for, for people."),
            "match": _ref("match", "Which alerts. Without it the rule matches every alert."),
            "actions": {
                "description": "What to do, in this order.",
                "type": "array",
                "minItems": 1,
                "items": _ref("action"),
            },
            "continue": _ref("switch", "Whether the rules after this one are looked at too. Default: true."),
            "dry_run": _ref("switch", "Only say what would be done. Default: false."),
            "notifiers": _ref("texts", "Whom to tell, beside the default notifiers."),
            "allow_host": _ref("switch", "Whether it may touch processes in no container. Default: false."),
            "match_all": _ref("switch", "Must be true if the rule matches every alert and destroys. Default: false."),
            "evidence_first": _ref("switch", "Whether what destroys waits for evidence. Default: the configuration's."),
        },
        required=["rule"],
    )


def _match() -> Schema:
    return _object(
        {
            "rules": _ref("texts", "Names of Falco rules; one of them must be the alert's."),
            "output_fields": _ref(
                "texts", "Conditions such as `k8s.ns.name!=kube-system`: commas mean and, entries mean or."
            ),
            "priority": _text("A priority, with `=`, `>`, `>=`, `<` or `<=` before it if wanted (`>=Warning`)."),
            "source": _text("The alert's source (`syscall`, `k8s_audit`)."),
            "tags": _ref("texts", "Tags of the alert: commas mean and, entries mean or."),
        }
    )


def _action(catalogue: Catalogue) -> Schema:
    specs = {name: action.spec for name, action in catalogue.actions.items()}
    shape = _object(
        {
            "action": _text("The action's name; it gets what a definition of the same name says."),
            "actionner": {
                "description": "What it does.",
                "enum": [*specs, *(alias for spec in specs.values() for alias in spec.aliases)],
            },
            "description": _text("What it is for, for people."),
            "parameters": {"description": "What the actionner takes.", "type": ["object", "null"]},
            "output": _ref("output", "Where what the act leaves goes."),
            "continue": _ref("switch", "Whether the rule's next action follows. Default: the actionner's own."),
            "ignore_errors": _ref("switch", "Whether the next action follows a failed one. Default: false."),
            "additional_contexts": _ref("texts", "More facts to look up (`aws`, `k8snode`)."),
        },
        required=["action"],
    )
    return {**shape, "allOf": [_when("actionner", spec) for spec in specs.values()]}


def _output(catalogue: Catalogue) -> Schema:
    shape = _object(
        {
            "target": {"description": "Which output.", "enum": list(catalogue.outputs)},
            "parameters": {"description": "What the output takes.", "type": "object", "minProperties": 1},
        }
    )
    return {**shape, "allOf": [_when("target", spec) for spec in catalogue.outputs.values()]}


def _when(key: str, spec: Spec) -> Schema:
    """If `key` names this one, its parameters must be of the declared types."""
    return {
        "if": {"properties": {key: {"const": spec.name}}, "required": [key]},
        "then": {"description": spec.description, "properties": {"parameters": _ref(spec.name)}},
    }


def _parameters(catalogue: Catalogue) -> Mapping[str, Schema]:
    """The parameters' schemas by the name of what takes them. Nothing is required: it may stand in another file."""
    specs: list[Spec] = [*(action.spec for action in catalogue.actions.values()), *catalogue.outputs.values()]
    schemas: dict[str, Schema] = {}
    for spec in specs:
        _, definitions = msgspec.json.schema_components([spec.parameters], ref_template=_REF)
        own = definitions.pop(spec.parameters.__name__)
        schemas[spec.name] = {"type": ["object", "null"], "properties": own["properties"]}
        # What the parameters refer to (an enumeration), by its class's name: those hold no colon, so none is lost.
        schemas.update(definitions)
    return schemas


def _object(properties: Mapping[str, Schema], required: list[str] | None = None) -> Schema:
    shape = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {**shape, "required": required} if required else shape


def _text(description: str) -> Schema:
    return {"description": description, "type": "string"}


def _ref(name: str, description: str = "") -> Schema:
    reference = {"$ref": _REF.format(name=name)}
    return {"description": description, **reference} if description else reference
