"""Numbers stay exact, and values have two texts: Talon's (Go's) and the plain decimal one."""

from __future__ import annotations

from decimal import Decimal

import pytest

from stoop.alert import alert_id, decimal_form, decode, text_form


def field(text: str) -> object:
    """The value that a JSON text has as a field."""
    return decode(b'{"output_fields":{"n":%s}}' % text.encode()).fields["n"]


@pytest.mark.parametrize(
    ("sent", "talon", "plain"),
    [
        ("0", "0", "0"),
        ("-1", "-1", "-1"),
        ("-0", "-0", "-0"),
        ("1.0", "1", "1"),
        ("999999", "999999", "999999"),
        ("1000000", "1e+06", "1000000"),
        ("-1234567", "-1.234567e+06", "-1234567"),
        ("1234567.5", "1.2345675e+06", "1234567.5"),
        ("1749208721382570987", "1.749208721382571e+18", "1749208721382570987"),
        ("123456789012345678901234567890", "1.2345678901234568e+29", "123456789012345678901234567890"),
        ("0.0001", "0.0001", "0.0001"),
        ("0.00001", "1e-05", "0.00001"),
        ("1e-400", "0", "0"),
        ("1e16", "1e+16", "10000000000000000"),
        ("1e20", "1e+20", "100000000000000000000"),
        ("1e300", "1e+300", "1e+300"),
        ("1.5e-30", "1.5e-30", "1.5e-30"),
        ("1e999", "1e+999", "1e+999"),
        ("-12.50e1000", "-1.25e+1001", "-1.25e+1001"),
        ("1e99999999999999999999", "+Inf", "+Inf"),
        ("-1e99999999999999999999", "-Inf", "-Inf"),
    ],
)
def test_numbers_as_text(sent: str, talon: str, plain: str) -> None:
    assert (text_form(field(sent)), decimal_form(field(sent))) == (talon, plain)


@pytest.mark.parametrize("digits", [308, 309, 310, 4_300, 4_301, 5_000, 100_000])
def test_long_numbers_are_exact_and_never_raise(digits: int) -> None:
    sent = "7" * digits
    assert decimal_form(field(sent)) == sent
    assert decimal_form(field(f"-{sent}")) == f"-{sent}"
    assert text_form(field(sent)).endswith(f"e+{digits - 1}")
    assert len(alert_id(decode(b'{"output_fields":{"n":%s}}' % sent.encode()), "n")) == 32


def test_numbers_are_exact() -> None:
    assert field("1749208721382570987") == 1_749_208_721_382_570_987
    assert field("18446744073709551617") == 2**64 + 1
    assert isinstance(field("1.0"), float)
    assert field("1e999") == Decimal("1e999")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "<nil>"),
        (True, "true"),
        (False, "false"),
        ("a b", "a b"),
        ([], "[]"),
        ({}, "map[]"),
        (["a", None, True, 1], "[a <nil> true 1]"),
        ([["a"], [], {"b": [1, {}], "a": "x"}], "[[a] [] map[a:x b:[1 map[]]]]"),
    ],
)
def test_other_values_as_text(value: object, text: str) -> None:
    assert text_form(value) == decimal_form(value) == text


def test_numbers_inside_lists() -> None:
    assert text_form([1, 2.5, 10_000_000]) == "[1 2.5 1e+07]"
    assert decimal_form({"a": [10_000_000]}) == "map[a:[10000000]]"
