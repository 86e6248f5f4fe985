"""Every action's declaration is proven: against Falco Talon's table, against itself, against its own example."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import stoop.actions
from stoop.actions import ACTIONS
from stoop.catalogue import CATALOGUE, build
from stoop.rules import load
from stoop.spec import (
    Action,
    ActionSpec,
    NoParameters,
    OutputUse,
    Reach,
    Scope,
    TargetKind,
)

REQUIRED = object()

# Typed from Falco Talon's own lists (main at 19d3add): the default of `continue`, the use of outputs, and the
# parameters with the defaults that count when it runs (not those that its help shows).
TALON: dict[str, tuple[bool, str, dict[str, object]]] = {
    "kubernetes:terminate": (
        False,
        "none",
        {
            "grace_period_seconds": 0,
            "ignore_daemonsets": False,
            "ignore_statefulsets": False,
            "ignore_standalone_pods": False,
            "min_healthy_replicas": "",
        },
    ),
    "kubernetes:label": (True, "none", {"labels": REQUIRED, "level": "pod"}),
    "kubernetes:annotation": (True, "none", {"annotations": REQUIRED, "level": "pod"}),
    "kubernetes:networkpolicy": (True, "none", {"allow_cidr": [], "allow_namespaces": []}),
    "kubernetes:exec": (True, "none", {"command": REQUIRED, "shell": "/bin/sh"}),
    "kubernetes:script": (True, "none", {"script": "", "file": "", "shell": "/bin/sh"}),
    "kubernetes:log": (True, "allowed", {"tail_lines": 20}),
    "kubernetes:delete": (False, "none", {}),
    "kubernetes:cordon": (True, "none", {}),
    "kubernetes:drain": (
        True,
        "none",
        {
            "ignore_daemonsets": False,
            "ignore_statefulsets": False,
            "min_healthy_replicas": "",
            "ignore_errors": False,
            "max_wait_period": 0,
            "wait_period_excluded_namespaces": [],
        },
    ),
    "kubernetes:download": (True, "required", {"file": REQUIRED}),
    "kubernetes:tcpdump": (False, "required", {"duration": 5, "snaplen": 0, "image": "issif/tcpdump:latest"}),
    "kubernetes:sysdig": (
        False,
        "required",
        {"duration": 5, "scope": "pod", "buffer_size": 2048, "image": "issif/sysdig:latest"},
    ),
    "aws:lambda": (
        True,
        "none",
        {
            "aws_lambda_name": REQUIRED,
            "aws_lambda_alias_or_version": "$LATEST",
            "aws_lambda_invocation_type": "RequestResponse",
        },
    ),
    "gcp:function": (
        True,
        "none",
        {"gcp_function_name": REQUIRED, "gcp_function_location": REQUIRED, "gcp_function_timeout": 0},
    ),
    "calico:networkpolicy": (True, "none", {"allow_cidr": [], "allow_namespaces": [], "order": 0}),
    "cilium:networkpolicy": (True, "none", {"allow_cidr": [], "allow_namespaces": []}),
}

OWN = {"process:kill", "process:suspend", "container:kill", "container:freeze", "container:limit"}
OWN |= {"network:isolate", "network:block", "evidence:snapshot", "evidence:memory", "evidence:pcap"}
OWN |= {"file:quarantine"}

ON_THE_NODE = {"kubernetes:log", "kubernetes:download", "kubernetes:tcpdump", "kubernetes:sysdig"}
"""Acts of Talon's that the agent carries out."""

# Fields that Falco (system calls) and its plugin k8saudit have.
FALCO_FIELDS = {
    "proc.pid",
    "container.id",
    "k8s.pod.name",
    "k8s.ns.name",
    "ka.target.name",
    "ka.target.namespace",
    "ka.target.pod.name",
    "ka.target.resource",
    "fd.rip",
    "fd.sip",
}

# Sources that an event of Falco can have and that acts are declared for.
SOURCES = {"syscall", "k8s_audit"}

VERBS = {"get", "list", "watch", "create", "update", "patch", "delete"}

# capabilities(7)
CAPABILITY = re.compile(r"CAP_[A-Z]+(_[A-Z]+)*")


def defaults(parameters: type[msgspec.Struct]) -> dict[str, object]:
    """Each parameter's default by its name in files; REQUIRED where there is none."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(parameters):
        if field.required:
            found[field.encode_name] = REQUIRED
        elif field.default is not msgspec.NODEFAULT:
            found[field.encode_name] = field.default
        else:
            found[field.encode_name] = field.default_factory()
    return found


def descriptions(parameters: type[msgspec.Struct]) -> dict[str, str]:
    """What each parameter says of itself, by its name in files."""
    info = msgspec.inspect.type_info(parameters)
    assert isinstance(info, msgspec.inspect.StructType)
    return {
        field.encode_name: str((field.type.extra_json_schema or {}).get("description", ""))
        if isinstance(field.type, msgspec.inspect.Metadata)
        else ""
        for field in info.fields
    }


def uses(example: Any, name: str) -> list[dict[str, Any]]:
    """Every action in a parsed rules file that names this actionner."""
    steps = [step for item in example for step in (item, *item.get("actions", []))]
    return [step for step in steps if step.get("actionner") == name]


AT_LEAST_ONE = {"kubernetes:script", "container:limit"}
"""Of their parameters none is required, and one must be there."""

each_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.spec.name)
each_spec = pytest.mark.parametrize("spec", [action.spec for action in ACTIONS], ids=lambda spec: spec.name)


def test_the_table_of_talon_is_declared_and_nothing_is_left_out() -> None:
    assert set(CATALOGUE.actions) == TALON.keys() | OWN


@pytest.mark.parametrize("name", TALON)
def test_it_is_what_talon_has(name: str) -> None:
    spec = CATALOGUE.actions[name].spec
    assert (spec.continue_default, str(spec.output), defaults(spec.parameters)) == TALON[name]


def test_names_are_unique() -> None:
    assert len(CATALOGUE.actions) == len(ACTIONS)
    aliases = [alias for action in ACTIONS for alias in action.spec.aliases]
    assert len(set(aliases) | CATALOGUE.actions.keys()) == len(aliases) + len(ACTIONS)


def test_a_name_that_talon_gave_up_stays_unknown() -> None:
    assert "kubernetes:labelize" not in CATALOGUE.actions


def test_each_file_is_listed() -> None:
    folder = Path(stoop.actions.__file__).parent
    files = [path for path in folder.glob("*/*.py") if path.name != "__init__.py"]
    modules = [importlib.import_module(f"stoop.actions.{path.parent.name}.{path.stem}") for path in files]
    own = [module.ACTION for module in modules if hasattr(module, "ACTION")]
    assert {action.spec.name for action in own} == set(CATALOGUE.actions)
    assert all(CATALOGUE.actions[action.spec.name] is action for action in own)
    for module in modules:
        if hasattr(module, "ACTION"):
            category, _, name = module.ACTION.spec.name.partition(":")
            assert module.__name__ == f"stoop.actions.{category}.{name}{'_' if name == 'lambda' else ''}"


def test_the_later_of_two_counts() -> None:
    action = ACTIONS[0]
    other = Action(spec=msgspec.structs.replace(action.spec, description="another"))
    assert build([action, other], [], []).actions == {action.spec.name: other}


@each_spec
def test_it_says_what_it_does(spec: ActionSpec) -> None:
    assert re.fullmatch(r"[a-z]+:[a-z]+", spec.name)
    assert spec.description.endswith(".")
    for name, description in descriptions(spec.parameters).items():
        assert description.endswith("."), name


@each_spec
def test_its_defaults_are_what_its_types_allow(spec: ActionSpec) -> None:
    """What is required is filled in here by its type; all else is the defaults, and they raise no fault."""
    filled = {list[str]: ["x"], dict[str, str]: {"x": "y"}, str: "x", int: 1}
    raw = {
        field.encode_name: filled[field.type.__origin__]
        for field in msgspec.structs.fields(spec.parameters)
        if field.required
    }
    params = msgspec.convert(raw, spec.parameters)
    assert msgspec.convert(msgspec.to_builtins(params), spec.parameters) == params
    if spec.check is not None and spec.name not in AT_LEAST_ONE:
        assert list(spec.check(params)) == []


@each_spec
def test_its_example_shows_it(spec: ActionSpec) -> None:
    example = yaml.safe_load(spec.example)
    steps = uses(example, spec.name)
    assert steps
    for step in steps:
        params = msgspec.convert(step.get("parameters") or {}, spec.parameters, strict=True)
        assert (step.get("parameters") or {}).keys() <= defaults(spec.parameters).keys()
        assert spec.check is None or list(spec.check(params)) == []
        assert spec.output is not OutputUse.REQUIRED or step["output"]["target"] in CATALOGUE.outputs
    assert any("rule" in item and item["match"] for item in example)


@each_spec
def test_its_example_loads_without_a_warning(spec: ActionSpec) -> None:
    loaded = load([(spec.name, spec.example.encode())], CATALOGUE)
    assert loaded.warnings == ()
    assert spec.name in {step.actionner for rule in loaded.rules for step in rule.actions}


@each_spec
def test_what_it_needs_and_reaches_fits_together(spec: ActionSpec) -> None:
    assert {field for group in spec.needs for field in group} <= FALCO_FIELDS
    assert all(spec.needs)
    assert set(spec.sources) <= SOURCES
    if spec.scope is Scope.NODE:
        assert spec.target in (TargetKind.PROCESS, TargetKind.CONTAINER)
        assert spec.reach in (Reach.PROCESS, Reach.CONTAINER, Reach.POD, Reach.NODE)
    if spec.target in (TargetKind.PROCESS, TargetKind.CONTAINER, TargetKind.OBJECT):
        assert spec.needs
        assert spec.reach is not Reach.NONE
    # What is given back is no loss, but for a file, which others may need meanwhile.
    assert not (spec.destroys and spec.reversible) or spec.name == "file:quarantine"
    assert spec.parameters is not NoParameters or spec.check is None


@each_spec
def test_its_rights_are_stated(spec: ActionSpec) -> None:
    if spec.scope is Scope.CLUSTER:
        assert spec.cluster_rights or spec.cloud_rights
        assert not spec.node_rights
    else:
        assert not spec.cluster_rights
    for right in spec.cluster_rights:
        assert set(right.verbs) <= VERBS
        assert "*" not in (right.group, *right.resources)
        assert list(right.verbs) == sorted(right.verbs)
        assert list(right.resources) == sorted(right.resources)
    granted = [(right.group, resource) for right in spec.cluster_rights for resource in right.resources]
    assert len(granted) == len(set(granted))
    assert all(CAPABILITY.fullmatch(right) for right in spec.node_rights)


@each_action
def test_what_acts_now_is_on_the_node_and_the_rest_is_declared_only(action: Action) -> None:
    assert (action.begin is not None) is (action.spec.scope is Scope.NODE)
    assert (action.spec.scope is Scope.NODE) is (action.spec.name in OWN | ON_THE_NODE)
    if action.begin is None:
        assert (action.begin, action.verify, action.overdue) == (None, None, None)
    else:
        assert action.begin is not None


@each_action
def test_what_can_be_undone_says_how(action: Action) -> None:
    if action.begin is not None:
        parts = (action.plan, action.undo, action.drift)
        assert all(part is not None for part in parts) is action.spec.reversible
        assert any(part is not None for part in (*parts, action.at_end)) is action.spec.reversible
    if action.spec.reversible and action.begin is not None:
        assert defaults(action.spec.parameters)["ttl"] == "1h"
    assert action.spec.reversible or not action.spec.outlives_boot


def granted(name: str) -> set[tuple[str, str, str]]:
    rights = CATALOGUE.actions[name].spec.cluster_rights
    return {(right.group, resource, verb) for right in rights for resource in right.resources for verb in right.verbs}


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("kubernetes:delete", ("", "services", "delete")),
        ("kubernetes:delete", ("", "serviceaccounts", "delete")),
        ("kubernetes:label", ("", "nodes", "patch")),
        ("kubernetes:annotation", ("", "nodes", "patch")),
        ("kubernetes:drain", ("", "nodes", "get")),
        ("kubernetes:drain", ("", "pods/eviction", "create")),
        ("calico:networkpolicy", ("projectcalico.org", "networkpolicies", "create")),
    ],
)
def test_rights_that_talon_forgot_are_there(name: str, right: tuple[str, str, str]) -> None:
    assert right in granted(name)


def test_only_what_takes_something_away_for_good_destroys() -> None:
    destroying = {action.spec.name for action in ACTIONS if action.spec.destroys}
    assert destroying == {"kubernetes:terminate", "kubernetes:delete", "kubernetes:drain"} | {
        "process:kill",
        "container:kill",
        "file:quarantine",
    }


@pytest.mark.parametrize(
    ("name", "raw", "faults"),
    [
        ("kubernetes:terminate", {"min_healthy_replicas": "101%"}, [("param-value", "min_healthy_replicas")]),
        ("kubernetes:terminate", {"grace_period_seconds": -1}, []),
        ("container:freeze", {"ttl": "x", "then": "kill"}, [("param-value", "ttl")]),
        ("container:freeze", {"ttl": "0", "then": "kill"}, [("param-value", "then")]),
        ("container:freeze", {"ttl": "0"}, []),
        ("process:suspend", {"ttl": "1 week"}, [("param-value", "ttl")]),
        ("container:limit", {}, [("param-required", "cpu")]),
        ("container:limit", {"cpu": "10%", "pids": 64, "memory": "64MiB", "io": "1MiB", "ttl": "2h"}, []),
        (
            "container:limit",
            {"cpu": "much", "pids": -1, "memory": "0", "io": "1 parsec"},
            [("param-value", "pids"), ("param-value", "cpu"), ("param-value", "memory"), ("param-value", "io")],
        ),
        ("kubernetes:drain", {"min_healthy_replicas": "-1"}, [("param-value", "min_healthy_replicas")]),
        ("kubernetes:drain", {"max_wait_period": -1}, []),
        ("kubernetes:label", {"labels": {}}, [("param-empty", "labels")]),
        ("kubernetes:label", {"labels": {"a": ""}, "level": "galaxy"}, []),
        ("kubernetes:annotation", {"annotations": {}}, [("param-empty", "annotations")]),
        ("kubernetes:networkpolicy", {"allow_cidr": ["10.0.0.0/8", "x"]}, [("cidr", "allow_cidr")]),
        ("kubernetes:networkpolicy", {"allow_namespaces": [""]}, []),
        ("calico:networkpolicy", {"allow_cidr": [""], "order": -1}, [("cidr", "allow_cidr")]),
        ("cilium:networkpolicy", {"allow_cidr": ["10.0.0.1"]}, [("cidr", "allow_cidr")]),
        ("kubernetes:exec", {"command": ""}, [("param-required", "command")]),
        ("kubernetes:exec", {"command": "id", "shell": ""}, []),
        ("kubernetes:download", {"file": ""}, [("param-required", "file")]),
        ("kubernetes:script", {}, [("script-missing", "script")]),
        ("kubernetes:script", {"script": "", "file": ""}, [("script-missing", "script")]),
        ("kubernetes:script", {"script": "id", "file": "/x"}, [("script-and-file", "script")]),
        ("kubernetes:script", {"script": "id", "file": ""}, []),
        ("kubernetes:script", {"script": "", "file": "/x"}, []),
        ("kubernetes:log", {"tail_lines": -1}, [("param-value", "tail_lines")]),
        ("kubernetes:log", {"tail_lines": 0}, []),
        (
            "kubernetes:tcpdump",
            {"duration": -1, "snaplen": -1},
            [("param-value", "duration"), ("param-value", "snaplen")],
        ),
        ("kubernetes:tcpdump", {"duration": 0, "image": ""}, []),
        ("kubernetes:sysdig", {"duration": 0, "buffer_size": 0, "scope": "", "image": ""}, []),
        ("kubernetes:sysdig", {"duration": 1, "buffer_size": 128, "scope": "node"}, []),
        ("kubernetes:sysdig", {"duration": 30}, []),
        (
            "kubernetes:sysdig",
            {"duration": 31, "buffer_size": 127, "scope": "Pod"},
            [("param-value", "buffer_size"), ("param-value", "duration"), ("param-value", "scope")],
        ),
        (
            "kubernetes:sysdig",
            {"duration": -1, "buffer_size": -1},
            [("param-value", "buffer_size"), ("param-value", "duration")],
        ),
        ("aws:lambda", {"aws_lambda_name": ""}, [("param-required", "aws_lambda_name")]),
        ("aws:lambda", {"aws_lambda_name": "f", "aws_lambda_invocation_type": ""}, []),
        (
            "aws:lambda",
            {"aws_lambda_name": "f", "aws_lambda_invocation_type": "event"},
            [("param-value", "aws_lambda_invocation_type")],
        ),
        (
            "gcp:function",
            {"gcp_function_name": "", "gcp_function_location": ""},
            [("param-required", "gcp_function_location"), ("param-required", "gcp_function_name")],
        ),
    ],
)
def test_value_rules(name: str, raw: dict[str, Any], faults: list[tuple[str, str]]) -> None:
    spec = CATALOGUE.actions[name].spec
    assert spec.check is not None
    found = list(spec.check(msgspec.convert(raw, spec.parameters)))
    assert [(fault.code, fault.parameter) for fault in found] == faults
    assert all(fault.message for fault in found)
