"""What `network:isolate` and `network:block` make of their parameters: policies, faults, and rules as text."""

from __future__ import annotations

import ipaddress
import itertools
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.actions import ACTIONS
from stoop.actions.network import block, isolate
from stoop.actions.network.block import BlockParameters, BlockPolicy
from stoop.actions.network.isolate import IsolateParameters, IsolatePolicy
from stoop.actions.network.ruleset import (
    Place,
    Rules,
    network,
    networks,
    port_range,
    port_set,
    rule_counts,
    table,
    table_name,
)
from stoop.catalogue import build
from stoop.errors import TargetRefused
from stoop.rules import load
from stoop.spec import (
    Action,
    ActionSpec,
)

EVERYTHING = IsolatePolicy(("10.0.0.0/8", "fd00::/8"), ("10.96.0.10/32", "fd00::a/128"), True)
POLICIES = [IsolatePolicy(), EVERYTHING, BlockPolicy(("10.0.0.0/8",)), BlockPolicy((), ((53, 53), (80, 90)), "tcp")]

addresses = st.ip_addresses().map(str)
cidrs = st.builds(
    lambda address, cut: f"{address}/{cut % (address.max_prefixlen + 1)}", st.ip_addresses(), st.integers(0)
)


def faults(spec: ActionSpec, raw: dict[str, Any]) -> list[tuple[str, str]]:
    assert spec.check is not None
    return [(fault.code, fault.parameter) for fault in spec.check(msgspec.convert(raw, spec.parameters))]


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({}, []),
        ({"allow_cidr": ["10.0.0.0/8", "2001:db8::/32", "10.0.0.1"], "dns": ["10.96.0.10", "fd00::a"]}, []),
        ({"allow_cidr": [""]}, [("cidr", "allow_cidr")]),
        ({"allow_cidr": ["10.0.0.0/33"]}, [("cidr", "allow_cidr")]),
        ({"allow_cidr": ["10.0.0.0/8 }"]}, [("cidr", "allow_cidr")]),
        ({"allow_cidr": ["fe80::1%eth0"]}, [("cidr", "allow_cidr")]),
        ({"allow_cidr": ["example.com"]}, [("cidr", "allow_cidr")]),
        ({"allow_cidr": ["10.0.0.0/8"] * 257}, [("param-value", "allow_cidr")]),
        ({"dns": ["10.96.0.0/24"]}, [("param-value", "dns")]),
        ({"dns": ["kube-dns"]}, [("cidr", "dns")]),
        ({"dns": ["10.96.0.10"] * 17}, [("param-value", "dns")]),
    ],
)
def test_values_of_isolate(raw: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert faults(isolate.SPEC, raw) == found


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({}, []),
        ({"cidr": ["203.0.113.0/24"], "ports": ["443", "8000-8080"], "protocol": "tcp"}, []),
        ({"whole_peer": True}, []),
        ({"cidr": ["x"]}, [("cidr", "cidr")]),
        ({"cidr": ["1.2.3.4"] * 257}, [("param-value", "cidr")]),
        ({"ports": ["0"]}, [("param-value", "ports")]),
        ({"ports": ["65536"]}, [("param-value", "ports")]),
        ({"ports": ["90-80"]}, [("param-value", "ports")]),
        ({"ports": ["https"]}, [("param-value", "ports")]),
        ({"ports": ["٤٤٣"]}, [("param-value", "ports")]),
        ({"ports": ["1"] * 65}, [("param-value", "ports")]),
        ({"whole_peer": True, "ports": ["1"]}, [("param-value", "whole_peer")]),
    ],
)
def test_values_of_block(raw: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert faults(block.SPEC, raw) == found


@pytest.mark.parametrize("spec", [isolate.SPEC, block.SPEC], ids=lambda spec: spec.name)
def test_the_example_loads_without_a_warning(spec: ActionSpec) -> None:
    loaded = load([(spec.name, spec.example.encode())], build([*ACTIONS, Action(spec)], [], []))
    assert loaded.warnings == ()
    assert [step.actionner for rule in loaded.rules for step in rule.actions] == [spec.name]


# ---------------------------------------------------------------- policies


def test_isolate_reads_its_parameters() -> None:
    params = IsolateParameters(["10.1.0.0/16", "10.0.0.1/8"], True, ["10.96.0.10"])
    assert isolate.policy_of(params) == IsolatePolicy(("10.0.0.0/8",), ("10.96.0.10/32",), True)


def test_block_reads_its_parameters() -> None:
    params = BlockParameters(["::ffff:192.0.2.0/120"], ["443", "80-90"], "udp")
    assert block.policy_of(params, {}) == BlockPolicy(("192.0.2.0/24",), ((443, 443), (80, 90)), "udp")


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({"fd.rip": "203.0.113.9", "fd.rport": 443}, BlockPolicy(("203.0.113.9/32",), ((443, 443),))),
        ({"fd.rip": "203.0.113.9", "fd.rport": "443"}, BlockPolicy(("203.0.113.9/32",), ((443, 443),))),
        ({"fd.rip": "::ffff:203.0.113.9", "fd.rport": 1}, BlockPolicy(("203.0.113.9/32",), ((1, 1),))),
        ({"fd.rip": "2001:db8::9", "fd.rport": 65535}, BlockPolicy(("2001:db8::9/128",), ((65535, 65535),))),
    ],
)
def test_without_parameters_the_events_peer_is_blocked(fields: dict[str, Any], policy: BlockPolicy) -> None:
    assert block.policy_of(BlockParameters(), fields) == policy


def test_the_whole_peer_needs_no_port() -> None:
    params = BlockParameters(whole_peer=True, protocol="tcp")
    assert block.policy_of(params, {"fd.rip": "203.0.113.9"}) == BlockPolicy(("203.0.113.9/32",), (), "tcp")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "no fd.rip"),
        ({"fd.rip": None}, "no fd.rip"),
        ({"fd.rip": ""}, "no fd.rip"),
        ({"fd.rip": 7, "fd.rport": 443}, "no address"),
        ({"fd.rip": "10.0.0.0/8", "fd.rport": 443}, "no address"),
        ({"fd.rip": "10.0.0.1; drop", "fd.rport": 443}, "no address"),
        ({"fd.rip": "127.0.0.1", "fd.rport": 443}, "never leaves the pod"),
        ({"fd.rip": "::1", "fd.rport": 443}, "never leaves the pod"),
        ({"fd.rip": "::ffff:127.0.0.1", "fd.rport": 443}, "never leaves the pod"),
        ({"fd.rip": "0.0.0.0", "fd.rport": 443}, "never leaves the pod"),
        ({"fd.rip": "10.0.0.1"}, "no port"),
        ({"fd.rip": "10.0.0.1", "fd.rport": 0}, "no port"),
        ({"fd.rip": "10.0.0.1", "fd.rport": 65536}, "no port"),
        ({"fd.rip": "10.0.0.1", "fd.rport": True}, "no port"),
        ({"fd.rip": "10.0.0.1", "fd.rport": "x"}, "no port"),
        ({"fd.rip": "10.0.0.1", "fd.rport": 44.3}, "no port"),
    ],
)
def test_an_event_without_a_peer_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(TargetRefused, match=told):
        block.policy_of(BlockParameters(), fields)


# ---------------------------------------------------------------- networks and ports


@given(st.lists(cidrs, max_size=30))
def test_networks_hold_the_same_addresses_and_never_overlap(texts: list[str]) -> None:
    found = [ipaddress.ip_network(text) for text in networks(texts)]
    for number, one in enumerate(found):
        assert not any(one.version == other.version and one.overlaps(other) for other in found[number + 1 :])
    for text in texts:
        given_one = network(text)
        assert any(given_one.network_address in one and one.prefixlen <= given_one.prefixlen for one in found)


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted), min_size=1, max_size=20))
def test_ports_hold_the_same_numbers_and_never_touch(pairs: list[list[int]]) -> None:
    shown = port_set([(low, high) for low, high in pairs])
    ranges = [port_range(text) for text in shown.strip("{ }").split(", ")]
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(ranges))
    for low, high in pairs:
        assert any(first <= low and high <= last for first, last in ranges)


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1.2.3.4/x", "1.2.3.4/-1", "1.2.3.4/", "fe80::1%2", "1.2.3.4/33"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        network(text)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("act", ["", "x", "0123456", 'a" { }', "ABCDEF0123", "0" * 65])
def test_only_an_acts_id_names_a_table(act: str) -> None:
    with pytest.raises(ValueError):
        table_name(Place.POD_LINK, act)
    with pytest.raises(ValueError):
        table(Place.HOST_LINK, act, Rules(True), '"eth0"')


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("policy", POLICIES)
def test_each_chain_has_as_many_rules_as_are_counted(place: Place, policy: IsolatePolicy | BlockPolicy) -> None:
    rules = policy.rules(place)
    text = table(place, "00000000", rules, '"eth0"')
    chains = re.findall(r"  chain ([\w-]+) \{\n((?:    .*\n)*)  \}", text)
    assert {name: body.count("\n") for name, body in chains} == rule_counts(place, "00000000", rules)


@pytest.mark.parametrize("place", Place)
def test_a_closed_table_drops_what_no_rule_takes(place: Place) -> None:
    text = table(place, "00000000", IsolatePolicy().rules(place), '"eth0"')
    assert "policy accept" not in text
    accepted = [line.strip() for line in text.splitlines() if "accept" in line]
    others = ['iifname != { "eth0" } accept']
    lo = ['oifname "lo" accept', 'iifname "lo" accept']
    wanted = {Place.POD_SOCKETS: lo, Place.HOST_STACK: others, Place.HOST_BRIDGE: others}
    assert accepted == wanted.get(place, [])


def test_the_hooks_are_turned_round_at_the_pods_end() -> None:
    hooks = {
        place: re.findall(r"hook (\w+)( devices)?", table(place, "00000000", Rules(True), '"eth0"')) for place in Place
    }
    assert hooks == {
        Place.HOST_LINK: [("ingress", " devices"), ("egress", " devices")],
        Place.HOST_STACK: [("prerouting", "")],
        Place.HOST_BRIDGE: [("prerouting", "")],
        Place.POD_LINK: [("egress", " devices"), ("ingress", " devices")],
        Place.POD_SOCKETS: [("output", ""), ("input", ""), ("forward", "")],
    }


def test_who_begins_a_probe_is_asked_at_the_hosts_end_only() -> None:
    asked = {place: "meta skuid 0" in "".join(EVERYTHING.rules(place).into) for place in Place}
    assert [place for place, is_asked in asked.items() if is_asked] == [Place.HOST_LINK]


@given(st.lists(cidrs, max_size=5), st.lists(addresses, max_size=3), st.booleans())
def test_isolate_says_nothing_but_what_was_given(allow: list[str], dns: list[str], probes: bool) -> None:
    """Every address in the text is one of the policy's, and braces pair: nothing else can have come in."""
    policy = IsolatePolicy(networks(allow), networks(dns), probes)
    text = table(Place.HOST_LINK, "00000000", policy.rules(Place.HOST_LINK), '"eth0"')
    assert text.count("{") == text.count("}")
    for found in re.findall(r"[sd]addr \{ ([^}]*) \}", text):
        assert set(found.split(", ")) <= {*policy.allow, *policy.dns}
