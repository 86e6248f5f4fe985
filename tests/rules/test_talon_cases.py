"""Talon's language case by case: what matches, what is refused, what merges into what.

The answers are Talon's, reasoned from its behaviour and, for YAML, JSON and the typing of parameters, compared with
what Go's libraries answer. Where Stoop parts from Talon on purpose is not here but in docs/talon.md, with a test each.
"""

from __future__ import annotations

import json
import operator
from typing import Any

import pytest

from stoop.alert import decode
from stoop.catalogue import CATALOGUE
from stoop.errors import RulesError
from stoop.rules import Loaded, RuleSet, load
from stoop.rules.model import PRIORITIES

CORDON = "  actions: [{action: a, actionner: kubernetes:cordon}]\n"


def load_match(match: str) -> Loaded:
    text = f"- rule: R\n  match: {match}\n{CORDON}"
    return load([("f", text.encode())], CATALOGUE)


def matches(match: str, event: str) -> bool:
    rules = RuleSet.of(load_match(match).rules)
    alert = decode(event.encode())
    return [rule.test(alert, {}).certain for rule in rules.route(alert)] == [True]


def is_valid(text: str) -> bool:
    try:
        load([("f", text.encode())], CATALOGUE)
    except RulesError:
        return False
    return True


# ---------------------------------------------------------------- output_fields

TEXT_FORMS = {
    '"sh"': "sh", '""': "", '"a b"': "a b", '" lead"': " lead", '"trail "': "trail ", '"True"': "True",
    '"<NA>"': "<NA>",
    '"tab\\t"': "tab\t", '"\\u00e9"': "é", '"\\ud83d\\ude42"': "🙂", '"\\ud800"': "\ufffd", '"1.0"': "1.0",
    "true": "true", "false": "false", "null": "<nil>",
    "0": "0", "-0": "-0", "-0.0": "-0", "1": "1", "-1": "-1", "1.5": "1.5", "1.50": "1.5", "1.0": "1", "0.1": "0.1",
    "1e2": "100", "1E5": "100000", "999999": "999999", "1000000": "1e+06", "1000001": "1.000001e+06",
    "-1000000": "-1e+06", "100000.5": "100000.5", "1234567.5": "1.2345675e+06", "123456789": "1.23456789e+08",
    "0.0001": "0.0001", "0.00012": "0.00012", "0.00001": "1e-05", "1e-7": "1e-07", "5e-324": "5e-324",
    "1e20": "1e+20", "1e21": "1e+21", "12345678901234567890": "1.2345678901234567e+19",
    "9007199254740993": "9.007199254740992e+15", "1.7976931348623157e308": "1.7976931348623157e+308",
    "[]": "[]", '["a"]': "[a]", '["a", "b"]': "[a b]", "[1, 2]": "[1 2]", '[1, "a", null, true]': "[1 a <nil> true]",
    "[[1], [2]]": "[[1] [2]]", "[0.00001, 1e6]": "[1e-05 1e+06]", "{}": "map[]", '{"a": 1}': "map[a:1]",
    '{"b": 1, "a": 2}': "map[a:2 b:1]", '{"a": {"b": [1]}}': "map[a:map[b:[1]]]",
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), TEXT_FORMS.items())
def test_a_field_of_each_type(value: str, text: str) -> None:
    event = f'{{"rule": "F", "output_fields": {{"k": {value}}}}}'
    for condition, wanted in (
        (f"k={text}", True),
        (f"k!={text}", False),
        (f"k={text}x", False),
        (f"k!={text}x", True),
        (f"j={text}", False),
        (f"j!={text}", True),
        (f'k="{text}"', True),
        (f"k={text}, j=x", False),
        (f"k={text}, j!=x", True),
    ):
        match = json.dumps({"output_fields": [condition]}, ensure_ascii=False)
        assert matches(match, event) is wanted, condition


@pytest.mark.parametrize(
    ("entries", "fields", "wanted"),
    [
        (["a=1,b=2"], {"a": 1, "b": 2}, True),
        (["a=1,b=2"], {"a": 1, "b": 3}, False),
        (["a=9", "b=2"], {"a": 1, "b": 2}, True),
        (["a=1,b!=2", "c=1"], {"a": 1, "b": 2}, False),
        (["a=1,b!=2", "c=1"], {"a": 1, "b": 2, "c": "1"}, True),
        (["a=1,a=1"], {"a": 1}, True),
        (["a=1,a!=1"], {"a": 1}, False),
        (["a=1", "a!=1"], {}, True),
        (["a=1,a=2"], {"a": 1}, False),
        (["a= 1"], {"a": 1}, False),
        (["a= 1"], {"a": " 1"}, True),
        (["a="], {"a": ""}, True),
        (["a="], {}, False),
        (["a!="], {"a": ""}, False),
        (["a!="], {}, True),
        (["a='sh'"], {"a": "sh"}, False),
        (["A=1"], {"a": 1}, False),
        (["a=SH"], {"a": "sh"}, False),
        (["proc.aname[2]=sh"], {"proc.aname[2]": "sh"}, True),
        (["ſ=1"], {"ſ": 1}, True),
        (["\u212a=1"], {"\u212a": 1}, True),
        (["ka.target.resource=secrets, ka.response.code=200"],
         {"ka.target.resource": "secrets", "ka.response.code": "200"}, True),
        (["ka.req.pod.containers.image=[a b]"], {"ka.req.pod.containers.image": ["a", "b"]}, True),
        (["ka.req.pod.containers.image=a"], {"ka.req.pod.containers.image": ["a", "b"]}, False),
        (["ka.auth.decision=<nil>"], {"ka.auth.decision": None}, True),
        (["ka.auth.decision="], {"ka.auth.decision": None}, False),
    ],
)  # fmt: skip
def test_entries_and_conditions(entries: list[str], fields: dict[str, Any], wanted: bool) -> None:
    match = json.dumps({"source": "k8s_audit", "output_fields": entries}, ensure_ascii=False)
    assert matches(match, json.dumps({"rule": "F", "source": "k8s_audit", "output_fields": fields})) is wanted
    assert not matches(match, json.dumps({"rule": "F", "output_fields": fields}))


@pytest.mark.parametrize(
    "condition",
    ["", "a", "a=1,", ",a=1", "a=1,  b=2", "a =1", " a=1", "a = 1", "a>1", "a>=1", "a<=1", "a~=1", "a!1", "a:b=1",
     "a$=1", "é=1", "a*=1", "a(b)=1", "%a=1", "a\tb=1", "a\nb=1", "(a=1)", "not a=1", '"a"=1', "\u0130=1", "\u0131=1",
     "１=1", "a٣=1"],
)  # fmt: skip
def test_what_is_no_condition(condition: str) -> None:
    with pytest.raises(RulesError):
        load_match(json.dumps({"output_fields": ["x=1", condition]}, ensure_ascii=False))


# ---------------------------------------------------------------- priority, tags, source, rules

COMPARISONS = {
    "": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@pytest.mark.parametrize("sign", COMPARISONS)
@pytest.mark.parametrize("level", range(1, 9))
def test_every_comparison_of_priorities(sign: str, level: int) -> None:
    match = json.dumps({"priority": sign + PRIORITIES[level - 1].title()})
    for priority, name in enumerate(("Info", *PRIORITIES)):
        event = json.dumps({"rule": "F", "priority": name.upper()})
        assert matches(match, event) is COMPARISONS[sign](priority, level)


@pytest.mark.parametrize(
    "priority",
    ["Info", "warn", "=>Warning", "==Warning", ">= Warning", " Warning", "Warning ", "!=Warning", "Warning,Error",
     "<>Warning", "4", "*", "Emerg", "crit", "Warning\n", ">\n", "> "],
)  # fmt: skip
def test_what_is_no_priority(priority: str) -> None:
    with pytest.raises(RulesError):
        load_match(json.dumps({"priority": priority}))


@pytest.mark.parametrize(
    ("tags", "sent", "wanted"),
    [
        ("[a]", '["a", "b"]', True),
        ("['a,b']", '["a"]', False),
        ("['a,b']", '["b", "a"]', True),
        ("['a, b', c]", '["c"]', True),
        ("[A]", '["a"]', False),
        ("[a]", "[]", False),
        ("[a]", "null", False),
        ("[]", '["a"]', True),
        ("[' a ']", '["a"]', True),
        ("[a b]", '["ab"]', True),
        ("[a]", '["a "]', False),
        ("[a]", '[["a"]]', False),
        ("[1]", "[1]", False),
        ("[1]", '["1"]', True),
        ("[true]", '["true"]', True),
        ("[0x10]", '["0x10"]', True),
        ("[1.0]", '["1.0"]', True),
        ("[_a]", '["_a"]', True),
        ("[.a]", '[".a"]', True),
        ("[ſ]", '["ſ"]', True),
    ],
)
def test_tags(tags: str, sent: str, wanted: bool) -> None:
    assert matches(f"{{tags: {tags}}}", f'{{"rule": "F", "tags": {sent}}}') is wanted


@pytest.mark.parametrize(
    "tag", ["", "a,", ",a", "a.", "a_", "a:b", "a/b", "é", "a!", "\u0130", "\u0131", "a\tb", "a\n", "１", "a,,b"]
)
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(RulesError):
        load_match(json.dumps({"tags": ["ok", tag]}, ensure_ascii=False))


@pytest.mark.parametrize(
    ("match", "event", "wanted"),
    [
        ("{source: syscall}", "{}", True),
        ("{source: syscall}", '{"source": ""}', True),
        ("{source: syscall}", '{"source": null}', True),
        ("{source: syscalls}", "{}", False),
        ("{source: syscalls}", '{"source": "syscalls"}', True),
        ("{source: K8s_audit}", '{"source": "k8s_audit"}', False),
        ("{source: '*'}", '{"source": "x"}', False),
        ("{source: ' syscall'}", "{}", False),
        ("{source: ''}", '{"source": "x"}', True),
        ("{source: 1}", '{"source": "1"}', True),
        ("{rules: [F]}", '{"rule": "F"}', True),
        ("{rules: [f]}", '{"rule": "F"}', False),
        ("{rules: [G, F]}", '{"rule": "F"}', True),
        ("{rules: ['F ']}", '{"rule": "F"}', False),
        ("{rules: ['F*']}", '{"rule": "Fx"}', False),
        ("{rules: ['']}", '{"rule": ""}', True),
        ("{rules: ['']}", '{"rule": "F"}', False),
        ("{rules: []}", '{"rule": "F"}', True),
        ("{rules: }", '{"rule": "F"}', True),
        ("{rules: [~, F]}", '{"rule": "F"}', True),
        ("{rules: [1.50]}", '{"rule": "1.50"}', True),
        ("{rules: [yes]}", '{"rule": "yes"}', True),
        ("{rules: [2026-01-02]}", '{"rule": "2026-01-02"}', True),
        ("{rules: [0o14]}", '{"rule": "0o14"}', True),
        ("{rules: [!x F]}", '{"rule": "F"}', True),
        ("{rules: [!!binary Rg==]}", '{"rule": "F"}', True),
        ("{rules: [!!int 5]}", '{"rule": "5"}', True),
        ("{rules: [&x F, *x]}", '{"rule": "F"}', True),
        ("{rules: [F], source: k8s_audit}", '{"rule": "F"}', False),
        ("{rules: [F], tags: [a]}", '{"rule": "F", "tags": ["b"]}', False),
        ("{rules: [F], priority: '>Notice'}", '{"rule": "F", "priority": "notice"}', False),
        ("{rules: [F], output_fields: ['a=1']}", '{"rule": "F", "output_fields": null}', False),
        ("{rules: [F], output_fields: ['a!=1']}", '{"rule": "F"}', True),
        ("~", "{}", True),
        ("{}", "null", True),
    ],
)
def test_criteria(match: str, event: str, wanted: bool) -> None:
    assert matches(match, event) is wanted


# ---------------------------------------------------------------- parameters and outputs

ANY_INTEGER = "5 -5 5.9 1e3 0x10 014 1_000 .inf 99999999999999999999 ~"
NO_INTEGER = "'5' true 5s [5] {a:b} 2026-01-02"
ANY_BOOLEAN = "true True FALSE ~"
NO_BOOLEAN = "'true' yes on 1 0 t [true]"
REPLICAS = "'1' 33% '33%' '100%' '0%' '0' '' '+5' '-0' '9223372036854775807' ~"
NO_REPLICAS = "1 1.0 0x1 '101%' '-1' '-1%' '1.5' '%' a '33%%' '1_0' '0x1' '9223372036854775808' 2026-01-02 [a]"
NETWORKS = "[10.0.0.0/8] ['::1/128'] [1.2.3.4/24] [10.0.0.0/08] ['::ffff:1.2.3.4/100'] [] ~"
NO_NETWORKS = "[10.0.0.1] [1.2.3.4/33] ['fe80::1%eth0/64'] [010.0.0.0/8] 10.0.0.0/8 [''] [~] [1] [10.0.0.0/-1] {a:b}"
TEXT_MAP = "{a:b} {a:''} {a:~} {a:'true'} {a:yes} {'':b}"
NO_TEXT_MAP = "{} ~ {a:true} {a:1} {a:1.5} {1:b} {true:b} [a] a {a:[b]} {a:2026-01-02} {a:0o7}"
NEEDS_OUTPUT = "      output: {target: local:file, parameters: {destination: /tmp}}\n"

PARAMETERS = [
    ("kubernetes:terminate", "{grace_period_seconds: %s}", ANY_INTEGER, NO_INTEGER),
    ("kubernetes:terminate", "{GRACE_period_seconds: %s}", ANY_INTEGER, NO_INTEGER),
    ("kubernetes:terminate", "{ignore_daemonsets: %s}", ANY_BOOLEAN, NO_BOOLEAN),
    ("kubernetes:terminate", "{ignore_standalone_pods: %s}", ANY_BOOLEAN, NO_BOOLEAN),
    ("kubernetes:terminate", "{min_healthy_replicas: %s}", REPLICAS, NO_REPLICAS),
    ("kubernetes:terminate", "%s", "{} ~ {1:2} {unknown:[1]}", "[] abc 5"),
    ("kubernetes:drain", "{min_healthy_replicas: %s}", REPLICAS, NO_REPLICAS),
    ("kubernetes:drain", "{max_wait_period: %s}", ANY_INTEGER, NO_INTEGER),
    ("kubernetes:drain", "{ignore_errors: %s}", ANY_BOOLEAN, NO_BOOLEAN),
    ("kubernetes:drain", "{force: %s}", "true x [1]", ""),
    ("kubernetes:label", "{labels: %s}", TEXT_MAP, NO_TEXT_MAP),
    ("kubernetes:label", "{labels: {a: b}, level: %s}", "node pod x ~ ''", "1 true [node]"),
    ("kubernetes:annotation", "{annotations: %s}", TEXT_MAP, NO_TEXT_MAP),
    ("kubernetes:networkpolicy", "{allow_cidr: %s}", NETWORKS, NO_NETWORKS),
    ("kubernetes:networkpolicy", "{allow_namespaces: %s}", "[a] [''] [] ~", "a [1] {a:b}"),
    ("calico:networkpolicy", "{allow_cidr: %s}", NETWORKS, NO_NETWORKS),
    ("calico:networkpolicy", "{order: %s}", ANY_INTEGER, NO_INTEGER),
    ("cilium:networkpolicy", "{allow_cidr: %s}", NETWORKS, NO_NETWORKS),
    ("kubernetes:exec", "{command: %s}", "ls yes", "'' ~ 5 true [ls]"),
    ("kubernetes:exec", "{command: ls, shell: %s}", "/bin/bash '' ~", "5 [x]"),
    ("kubernetes:script", "%s", "{script:ls}", "{} {script:''} {script:5} {file:5} {script:a,file:/etc/passwd}"),
    ("kubernetes:log", "{tail_lines: %s}", "5 0 1.9 -0.5 ~", "-1 '5' true"),
    ("kubernetes:delete", "%s", "{} {a:b}", "[]"),
    ("kubernetes:cordon", "%s", "{} {a:b}", "[]"),
    ("kubernetes:download", "{file: %s}", "/a", "'' ~ 1"),
    ("kubernetes:tcpdump", "{duration: %s}", "5 0 5.5 100000 ~", "-1 '5'"),
    ("kubernetes:tcpdump", "{snaplen: %s}", "5 0 ~", "-1 '5'"),
    ("kubernetes:sysdig", "{duration: %s}", "1 30 0 0.5 30.9 ~", "31 -1 '5'"),
    ("kubernetes:sysdig", "{buffer_size: %s}", "128 0 4096", "127 -1 '128'"),
    ("kubernetes:sysdig", "{scope: %s}", "pod node '' ~", "Pod x 1"),
    ("aws:lambda", "{aws_lambda_name: %s}", "f", "'' ~ 5"),
    ("aws:lambda", "{aws_lambda_name: f, aws_lambda_invocation_type: %s}", "Event DryRun ''", "event x"),
    ("aws:lambda", "{aws_lambda_name: f, aws_lambda_alias_or_version: %s}", "'3' ~", "3"),
    ("gcp:function", "{gcp_function_name: f, gcp_function_location: %s}", "l", "'' ~ 5"),
    ("gcp:function", "{gcp_function_name: f, gcp_function_location: l, gcp_function_timeout: %s}", "5 -5 ~", "'5'"),
]  # fmt: skip


def spaced(value: str) -> str:
    """The tables write maps without blanks; YAML wants one after a colon."""
    return value if value[0] != "{" else value.replace(":", ": ").replace(",", ", ")


@pytest.mark.parametrize(("actionner", "parameters", "good", "bad"), PARAMETERS)
def test_parameters(actionner: str, parameters: str, good: str, bad: str) -> None:
    output = NEEDS_OUTPUT if actionner in ("kubernetes:download", "kubernetes:tcpdump", "kubernetes:sysdig") else ""
    head = f"- rule: R\n  match: {{rules: [F]}}\n  actions:\n    - action: a\n      actionner: {actionner}\n"
    good_values, bad_values = (
        [spaced(value) for value in values.split(" ")] if values else [] for values in (good, bad)
    )
    text = f"{head}      parameters: {parameters}\n{output}"
    assert [value for value in good_values if not is_valid(text % value)] == []
    assert [value for value in bad_values if is_valid(text % value)] == []


@pytest.mark.parametrize(
    ("actionner", "output", "valid"),
    [
        ("kubernetes:log", "{target: local:file, parameters: {destination: /tmp}}", True),
        ("kubernetes:log", "{target: local:file, parameters: {DESTINATION: /tmp}}", True),
        ("kubernetes:log", "{target: local:file, parameters: {destination: ''}}", False),
        ("kubernetes:log", "{target: local:file, parameters: {destination: 5}}", False),
        ("kubernetes:log", "{target: local:file, parameters: {x: y}}", False),
        ("kubernetes:log", "{target: local:file, parameters: {}}", False),
        ("kubernetes:log", "{target: local:file}", False),
        ("kubernetes:log", "{parameters: {destination: /tmp}}", True),
        ("kubernetes:log", "{}", True),
        ("kubernetes:log", "~", True),
        ("kubernetes:log", "{target: ''}", True),
        ("kubernetes:log", "{target: AWS:S3, parameters: {bucket: b}}", False),
        ("kubernetes:log", "{target: gcp:s3, parameters: {bucket: b}}", False),
        ("kubernetes:log", "{target: aws:s3, parameters: {bucket: b, prefix: p, region: r}}", True),
        ("kubernetes:log", "{target: aws:s3, parameters: {bucket: b, region: 5}}", False),
        ("kubernetes:log", "{target: aws:s3, parameters: {prefix: p}}", False),
        ("kubernetes:log", "{target: minio:s3, parameters: {bucket: b}}", True),
        ("kubernetes:log", "{target: gcp:gcs, parameters: {bucket: ~}}", False),
        ("kubernetes:log", "x", False),
        ("kubernetes:log", "[]", False),
        ("kubernetes:cordon", "{target: aws:s3, parameters: {bucket: b}}", True),
        ("kubernetes:cordon", "{target: x:y, parameters: {a: b}}", False),
        ("kubernetes:tcpdump", "{parameters: {bucket: b}}", False),
        ("kubernetes:tcpdump", "{target: gcp:gcs, parameters: {bucket: b}}", True),
    ],
)
def test_outputs(actionner: str, output: str, valid: bool) -> None:
    step = f"{{action: a, actionner: {actionner}, output: {output}}}"
    assert is_valid(f"- rule: R\n  match: {{rules: [F]}}\n  actions: [{step}]\n") is valid


# ---------------------------------------------------------------- structure


@pytest.mark.parametrize("place", ["  continue: %s\n", "  dry_run: %s\n", "continue", "ignore_errors"])
def test_keywords(place: str) -> None:
    def text(value: str) -> str:
        if place.startswith(" "):
            return f"- rule: R\n{place % value}{CORDON}"
        return f"- rule: R\n  actions: [{{action: a, actionner: kubernetes:cordon, {place}: {value}}}]\n"

    good = ("true", "false", "'true'", '"false"', "''", "~", "null", "!!str true", "!!bool true")
    assert [value for value in good if not is_valid(text(value))] == []
    bad = ("True", "TRUE", "yes", "no", "on", "1", "0", "t", "' true'", "'true '", "[true]", "{a: b}", "!!int true")
    assert [value for value in bad if is_valid(text(value))] == []
