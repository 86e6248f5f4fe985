"""The value rules that several declarations share, against what Falco Talon takes and refuses."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stoop import values
from stoop.spec import (
    ParameterFault,
)


def codes(faults: Iterable[ParameterFault]) -> list[str]:
    return [fault.code for fault in faults]


@pytest.mark.parametrize("value", ["", "0", "1", "007", "+5", "-0", "0%", "33%", "100%", "+5%", "9223372036854775807"])
def test_replicas_takes_counts_and_percentages(value: str) -> None:
    assert codes(values.replicas("min", value)) == []


BAD_COUNTS = "-1 -1% 101% 33%% % 5x 1.5 1e2 1_0 ٣ abc + --1 0x1 9223372036854775808"


@pytest.mark.parametrize("value", BAD_COUNTS.split())
def test_replicas_refuses_the_rest(value: str) -> None:
    (fault,) = values.replicas("min", value)
    assert (fault.code, fault.parameter) == ("param-value", "min")
    assert repr(value) in fault.message


@pytest.mark.parametrize("value", [" 5", "5 ", "50 %", "5\n"])
def test_replicas_refuses_blanks(value: str) -> None:
    assert codes(values.replicas("min", value)) == ["param-value"]


def test_replicas_of_any_length() -> None:
    assert codes(values.replicas("min", "0" * 9000 + "1")) == []
    assert codes(values.replicas("min", "1" * 9000)) == ["param-value"]


GOOD_NETWORKS = """
    10.0.0.0/8  10.1.2.3/8  0.0.0.0/0  1.2.3.4/32  10.0.0.0/08
    ::/0  2001:db8::/128  1:2:3:4:5:6:7::/64  ::ffff:10.0.0.0/104  ::1.2.3.4/128
"""
BAD_NETWORKS = """
    /  /8  x  10.0.0.1  10.0.0.0/  10.0.0.0/33  10.0.0.0/+8  10.0.0.0/-1  10.0.0.0/8/8  10.0.0/8  010.0.0.0/8
    10.0.0.0/٨  10.0.0.0/255.0.0.0  2001:db8::/129  fe80::1%eth0/64  1::2::3/64  ::ffff:10.0.0.0/129
"""


@pytest.mark.parametrize("value", GOOD_NETWORKS.split())
def test_cidrs_takes_networks(value: str) -> None:
    assert codes(values.cidrs("allow", [value])) == []


@pytest.mark.parametrize("value", BAD_NETWORKS.split())
def test_cidrs_refuses_the_rest(value: str) -> None:
    (fault,) = values.cidrs("allow", [value])
    assert (fault.code, fault.parameter) == ("cidr", "allow")
    assert repr(value) in fault.message


@pytest.mark.parametrize("value", ["", " 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0/8\n"])
def test_cidrs_refuses_blanks(value: str) -> None:
    assert codes(values.cidrs("allow", [value])) == ["cidr"]


def test_cidrs_with_a_mask_of_any_length() -> None:
    assert codes(values.cidrs("allow", ["10.0.0.0/" + "1" * 9000])) == ["cidr"]


def test_cidrs_tells_each_bad_one() -> None:
    assert len(list(values.cidrs("allow", ["x", "10.0.0.0/8", "y"]))) == 2


@pytest.mark.parametrize(
    ("value", "bad"), [(-1, True), (0, False), (9, False), (10, False), (11, True), (10**30, True)]
)
def test_number_is_bounded_on_both_sides(value: int, bad: bool) -> None:
    assert codes(values.number("n", value, 0, 10)) == (["param-value"] if bad else [])


def test_number_without_an_upper_bound() -> None:
    assert codes(values.number("n", 10**30, 0)) == []
    (fault,) = values.number("n", -1, 0)
    assert fault.message == "n must be at least 0, not -1"


def test_given_and_not_empty() -> None:
    assert codes(values.given("a", "")) == ["param-required"]
    assert codes(values.given("a", "x")) == []
    assert codes(values.not_empty("a", {})) == codes(values.not_empty("a", [])) == ["param-empty"]
    assert codes(values.not_empty("a", {"k": ""})) == []


def test_choice_is_exact_and_empty_means_not_given() -> None:
    assert codes(values.choice("c", "", ("a", "b"))) == []
    assert codes(values.choice("c", "b", ("a", "b"))) == []
    (fault,) = values.choice("c", "B", ("a", "b"))
    assert fault.message == "c must be a or b, not 'B'"


@pytest.mark.parametrize("value", ["http://h", "https://h:1/p?q#f", "HTTPS://H/", "http://[::1]:3100", "http://u:p@h"])
def test_url_takes_http(value: str) -> None:
    assert codes(values.url("u", value)) == []


@pytest.mark.parametrize(
    "value", ["h", "ftp://h", "http://", "http:///p", "https:h", "http://a b", " http://h", "http://h\n"]
)
def test_url_refuses_the_rest_without_repeating_it(value: str) -> None:
    (fault,) = values.url("u", value)
    assert fault.code == "param-value"
    assert fault.message == "u must begin with http:// or https:// and name a host"  # a webhook's URL is a secret


@pytest.mark.parametrize("value", ["h:25", "mail.example.com:587", "1.2.3.4:65535", "[::1]:25"])
def test_host_port_takes_both_parts(value: str) -> None:
    assert codes(values.host_port("h", value)) == []


@pytest.mark.parametrize("value", ["h", ":25", "h:", "h:0", "h:65536", "h:x", "::1:25", "a b:25", "h:٢٥", "h:25\n"])
def test_host_port_refuses_the_rest(value: str) -> None:
    assert codes(values.host_port("h", value)) == ["param-value"]


def test_required_addresses() -> None:
    assert codes(values.url("u", "")) == codes(values.host_port("h", "")) == ["param-required"]
