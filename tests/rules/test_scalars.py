"""What plain scalars mean: the cases in which YAML 1.1, YAML 1.2 and Go's yaml.v3 part ways."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stoop.rules.scalars import BOOL, FLOAT, INT, NULL, STR, TIMESTAMP, ScalarError, Timestamp, resolve, short_tag


@pytest.mark.parametrize(
    ("text", "tag", "value"),
    [
        ("true", BOOL, True),
        ("FALSE", BOOL, False),
        ("yes", STR, "yes"),
        ("off", STR, "off"),
        ("y", STR, "y"),
        ("tRue", STR, "tRue"),
        ("", NULL, None),
        ("~", NULL, None),
        ("Null", NULL, None),
        ("nULL", STR, "nULL"),
        ("12", INT, 12),
        ("+12", INT, 12),
        ("-12", INT, -12),
        ("014", INT, 12),
        ("0o14", INT, 12),
        ("-0o14", INT, -12),
        ("0x10", INT, 16),
        ("0b11", INT, 3),
        ("1_000", INT, 1000),
        ("08", FLOAT, 8.0),
        ("0x", STR, "0x"),
        ("-", STR, "-"),
        ("9223372036854775807", INT, 2**63 - 1),
        ("18446744073709551615", INT, 2**64 - 1),
        ("18446744073709551616", FLOAT, 2.0**64),
        ("-9223372036854775809", FLOAT, -(2.0**63)),
        ("1e3", FLOAT, 1000.0),
        ("1.", FLOAT, 1.0),
        (".5", FLOAT, 0.5),
        (".", STR, "."),
        ("1e999", STR, "1e999"),
        ("9" * 401, STR, "9" * 401),
        (".inf", FLOAT, math.inf),
        ("-.INF", FLOAT, -math.inf),
        ("1:30", STR, "1:30"),
        ("33%", STR, "33%"),
        ("10.0.0.0/8", STR, "10.0.0.0/8"),
        ("٣", STR, "٣"),
        (".1_0", FLOAT, 0.1),
        (".1__0", STR, ".1__0"),
        ("._1", STR, "._1"),
        ("2026-01-02", TIMESTAMP, Timestamp("2026-01-02T00:00:00Z")),
        ("2026-1-2", TIMESTAMP, Timestamp("2026-01-02T00:00:00Z")),
        ("2026-01-02t03:04:05.120+02:00", TIMESTAMP, Timestamp("2026-01-02T03:04:05.12+02:00")),
        ("2026-01-02 3:4:5", TIMESTAMP, Timestamp("2026-01-02T03:04:05Z")),
        ("2026-02-30", STR, "2026-02-30"),
        ("2026-01-02T24:00:00Z", STR, "2026-01-02T24:00:00Z"),
        ("2026-01-02T03:04:05+25:00", STR, "2026-01-02T03:04:05+25:00"),
        ("20260102", INT, 20260102),
        ("2026-01", STR, "2026-01"),
    ],
)
def test_plain_scalars(text: str, tag: str, value: Any) -> None:
    assert resolve("", text) == (tag, value)


@pytest.mark.parametrize(
    ("tag", "text", "value"),
    [
        (STR, "12", "12"),
        (FLOAT, "12", 12.0),
        (INT, "0x10", 16),
        ("!foo", "12", "12"),
        ("!!binary", "U3Rvb3A=", "Stoop"),
    ],
)
def test_written_tags(tag: str, text: str, value: Any) -> None:
    assert resolve(tag, text)[1] == value


@pytest.mark.parametrize(("tag", "text"), [(INT, "x"), (BOOL, "yes"), (NULL, "x"), ("!!binary", "%"), (INT, "1.5")])
def test_tags_that_do_not_fit(tag: str, text: str) -> None:
    with pytest.raises(ScalarError):
        resolve(tag, text)


def test_short_tags() -> None:
    assert short_tag("tag:yaml.org,2002:int") == INT
    assert short_tag("!foo") == "!foo"
    assert short_tag("!") == short_tag(None) == ""
