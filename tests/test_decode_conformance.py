"""The `decode` cases of Talon's conformance file: each holds, but for the deviations that are listed and meant."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tools.conformance_decode import LISTED_DEVIATIONS, check_decode_case

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in Path(__file__).with_name("data").joinpath("decode_cases.jsonl").read_bytes().splitlines()
]

# Of the 207 cases: what nests deeper than 512 levels, and what Talon answers with 200 and then loses.
MEANT = {
    "decode-0041": "nesting",
    "decode-0043": "nesting",
    "decode-0157": "kept",
    "decode-0159": "kept",
    "decode-0216": "kept",
    "decode-0236": "kept",
    "decode-0237": "kept",
}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_decodes_as_talon_or_differs_as_listed(case: dict[str, Any]) -> None:
    deviation = check_decode_case(case)
    word = deviation.partition(":")[0] if deviation else None
    assert word == MEANT.get(case["id"]), deviation


def test_every_meant_deviation_is_listed_and_in_the_file() -> None:
    assert {*MEANT.values(), "repeated time"} == set(LISTED_DEVIATIONS)
    assert set(MEANT) <= {case["id"] for case in CASES}


def test_a_time_that_stands_twice_is_a_listed_deviation() -> None:
    body = b'{"time":"never","Time":"2026-01-02T03:04:05Z"}'
    case = {"body": base64.b64encode(body).decode(), "accepted": False}
    assert (check_decode_case(case) or "").startswith("repeated time: ")
    assert check_decode_case({**case, "accepted": True, "fields": {"time": "2026-01-02T03:04:05Z"}}) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"accepted": False}, "accepted"),
        ({"fields": {"rule": "other"}}, "rule"),
        ({"fields": {"tags": ["other"]}}, "tags"),
        ({"fields": {"output_fields": {"user.name": True}}}, "output_fields"),
        ({"match_text": {"proc.name": "other"}}, "text of proc.name"),
        ({"body": "e30K", "fields": {"output_fields": {"a": 1}}}, "output_fields"),
        ({"body": "Ww=="}, "malformed"),
    ],
)
def test_the_checker_sees_differences(change: dict[str, Any], word: str) -> None:
    case = next(case for case in CASES if case["note"] == "full alert")
    deviation = check_decode_case({**case, **change})
    assert deviation is not None
    assert deviation.partition(":")[0] == word
