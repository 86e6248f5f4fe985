"""`stoop actions|outputs|notifiers list`: the catalogue as YAML blocks, in the form of Talon's lists."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import yaml

from stoop import control
from stoop.catalogue import CATALOGUE
from stoop.cli import FINE
from stoop.cli.options import ConfigOption, control_path
from stoop.cli.screen import raw
from stoop.errors import UserError
from stoop.spec import (
    Action,
    OutputUse,
    Spec,
)

LIST_ANSWER_S = 1.0
"""How long `stoop actions list` waits for the agent: it tells what it knows without."""


def list_actions(config: ConfigOption = None) -> int:
    """List what rules may name as `actionner`. A running agent is asked what can't be done on its node."""
    lacking = _lacking(config)
    for action in CATALOGUE.actions.values():
        told = _action(action)
        if reason := lacking.get(action.spec.name):
            told["unavailable_on_this_node"] = reason
        _block(action.spec.name, told)
    return FINE


def _lacking(config: str | None) -> dict[str, str]:
    """Why something can't be done on this node, by name, as its agent says. Nothing without one."""
    try:
        status = control.ask(control_path(config), control.Status(), LIST_ANSWER_S)
    except UserError:
        return {}
    found = status.get("unavailable") if isinstance(status, dict) else None
    return {name: str(lack.get("reason", "")) for name, lack in (found or {}).items() if isinstance(lack, dict)}


def list_outputs() -> int:
    """List where the evidence of an action may go."""
    for output in CATALOGUE.outputs.values():
        _block(output.name, _spec(output))
    return FINE


def list_notifiers() -> int:
    """List who can be told of what was done."""
    for notifier in CATALOGUE.notifiers.values():
        _block(notifier.name, _spec(notifier))
    return FINE


def _block(name: str, fields: dict[str, Any]) -> None:
    raw(f"--- {name} ---")
    raw(yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _action(action: Action) -> dict[str, Any]:
    spec = action.spec
    told = _spec(spec)
    example = told.pop("example", None)
    told |= {
        "source": ", ".join(spec.sources) or "any",
        "continue": spec.continue_default,
        "allow_output": spec.output is OutputUse.ALLOWED,
        "require_output": spec.output is OutputUse.REQUIRED,
        "required_output_fields": [" or ".join(group) for group in spec.needs],
        "scope": str(spec.scope),
        "reach": str(spec.reach),
        "destroys": spec.destroys,
        "reversible": spec.reversible,
        "in_this_version": action.begin is not None,
    }
    if spec.node_rights:
        told["node_rights"] = list(spec.node_rights)
    if spec.aliases:
        told["aliases"] = list(spec.aliases)
    if example is not None:
        told["example"] = example
    return told


def _spec(spec: Spec) -> dict[str, Any]:
    category, _, name = spec.name.rpartition(":")
    told: dict[str, Any] = {"name": name}
    if category:
        told["category"] = category
    told["description"] = spec.description
    told["parameters"] = parameters(spec)
    rights = [
        {"apiGroups": [right.group], "resources": list(right.resources), "verbs": list(right.verbs)}
        for right in spec.cluster_rights
    ]
    if rights or spec.cloud_rights:
        told["permissions"] = [*rights, *spec.cloud_rights]
    if spec.example:
        told["example"] = spec.example
    return told


def parameters(spec: Spec) -> dict[str, Any]:
    """Each parameter's name (required ones say so) with its default and meaning."""
    hints = typing.get_type_hints(spec.parameters, include_extras=True)
    told: dict[str, Any] = {}
    for field in msgspec.structs.fields(spec.parameters):
        said: dict[str, Any] = {}
        if not field.required:
            said["default"] = msgspec.to_builtins(_default(field))
        if description := _description(hints[field.name]):
            said["description"] = description
        told[f"{field.encode_name} (required)" if field.required else field.encode_name] = said
    return told


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _description(annotation: Any) -> str:
    """What the first `msgspec.Meta` of an annotation says."""
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    return ""


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as literal blocks: an example is there to be read and copied."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
