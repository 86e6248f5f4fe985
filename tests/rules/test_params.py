"""Raw values → the declared Struct: Talon's typing, one fault for each parameter that is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, field

from stoop.rules import ParametersWrong, check_parameters, typed_parameters
from stoop.rules.params import find_unknown, parameter_names
from stoop.rules.scalars import Timestamp
from stoop.spec import (
    NotifierSpec,
    ParameterFault,
    Parameters,
)


class Sample(Parameters, frozen=True):
    """Each type that a parameter can have."""

    text: Annotated[str, Meta(description="required")]
    count: int = 5
    flag: bool = False
    share: float = 0.5
    some: int | None = None
    low: Annotated[int, Meta(ge=0, le=9)] = 0
    how: Literal["hard", "soft"] = "hard"
    items: list[str] = field(default_factory=list)
    pair: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


def check_sample(params: Sample) -> Iterator[ParameterFault]:
    if not params.text:
        yield ParameterFault("param-required", "text", "text is required")
    if params.count == 13:
        yield ParameterFault("param-value", "count", "count must not be 13")


SPEC = NotifierSpec(name="sample", description="for tests", parameters=Sample, check=check_sample)


def typed(**raw: Any) -> Sample:
    params = typed_parameters(SPEC, {"text": "t", **raw})
    assert isinstance(params, Sample)
    return params


def faults(raw: dict[str, Any]) -> list[tuple[str, str]]:
    params, found = check_parameters(SPEC, raw)
    assert params is None
    return [(fault.code, fault.parameter) for fault in found]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", 7, 7),
        ("count", 1.9, 1),
        ("count", -0.5, 0),
        ("count", 1e20, -(2**63)),
        ("count", math.inf, -(2**63)),
        ("count", math.nan, -(2**63)),
        ("count", 2**64 - 1, -1),
        ("count", None, 5),
        ("flag", True, True),
        ("share", 1, 1.0),
        ("share", 1.5, 1.5),
        ("some", 3, 3),
        ("how", "soft", "soft"),
        ("items", ["a", None], ["a", ""]),
        ("items", [], []),
        ("pair", ["a"], ("a",)),
        ("labels", {"a": "b", "c": None}, {"a": "b", "c": ""}),
        ("labels", {None: "x"}, {"": "x"}),
    ],
)
def test_what_is_taken(name: str, value: Any, wanted: Any) -> None:
    assert getattr(typed(**{name: value}), name) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1),
        ("text", True),
        ("text", ["a"]),
        ("text", Timestamp("2026-01-02T00:00:00Z")),
        ("count", "5"),
        ("count", True),
        ("count", [1]),
        ("flag", "true"),
        ("flag", 1),
        ("flag", 0.0),
        ("flag", {}),
        ("share", "1"),
        ("share", True),
        ("items", "a"),
        ("items", [1]),
        ("items", [["a"]]),
        ("items", {"a": "b"}),
        ("labels", "a"),
        ("labels", ["a"]),
        ("labels", {"a": 1}),
        ("labels", {1: "a"}),
        ("labels", {"a": {"b": "c"}}),
    ],
)
def test_wrong_types(name: str, value: Any) -> None:
    assert faults({"text": "t", name: value}) == [("param-type", name)]


def test_names_count_in_any_case_and_the_exact_one_first() -> None:
    assert typed(COUNT=7).count == 7
    assert typed(COUNT=7, count=8).count == 8
    assert typed(COUNT=7, count=None).count == 5
    assert typed(ſome=3).some == 3


def test_unknown_names_are_left_alone() -> None:
    assert typed(other=[1]) == typed()
    assert find_unknown(SPEC, {"text": "t", "Count": 1, "other": 1}) == ["other"]
    assert parameter_names(SPEC)[:2] == ("text", "count")


def test_what_is_required() -> None:
    assert faults({}) == [("param-required", "text")]
    assert faults({"text": None}) == [("param-required", "text")]
    assert faults({"text": ""}) == [("param-required", "text")]
    assert faults({"count": 13}) == [("param-required", "text"), ("param-value", "count")]


class Demanding(Parameters, frozen=True):
    """Nothing has a default."""

    text: str
    flag: bool
    count: int
    share: float
    items: list[str]
    labels: dict[str, str]
    low: Annotated[int, Meta(ge=1)]


def test_every_missing_parameter_is_told() -> None:
    spec = NotifierSpec(name="demanding", description="for tests", parameters=Demanding)
    _, found = check_parameters(spec, {})
    assert [(fault.code, fault.parameter) for fault in found] == [
        ("param-required", name) for name in ("text", "flag", "count", "share", "items", "labels", "low")
    ]
    assert check_parameters(SPEC, {"text": "t", "low": 10})[1][0].message.startswith("low: expected `int` <= 9")


def test_constraints_and_own_checks_are_told_together() -> None:
    assert faults({"text": "t", "low": 10, "how": "so", "count": 13}) == [
        ("param-value", "low"),
        ("param-value", "how"),
        ("param-value", "count"),
    ]


def test_wrong_types_are_told_before_everything_else() -> None:
    assert faults({"count": "x", "low": 10, "flag": 1}) == [
        ("param-type", "count"),
        ("param-type", "flag"),
        ("param-required", "text"),
        ("param-value", "low"),
    ]


def test_a_wrong_type_is_not_called_missing_too() -> None:
    assert faults({"text": 1, "count": 13}) == [("param-type", "text"), ("param-value", "count")]


def test_the_error_names_every_fault() -> None:
    with pytest.raises(
        ParametersWrong, match=r"sample: count must be a whole number.*; flag must be true or false"
    ) as caught:
        typed_parameters(SPEC, {"text": "t", "count": "x", "flag": 1})
    assert len(caught.value.faults) == 2
