"""Check one `decode` case of a conformance file (form: ../shared/talon/README.md) against Stoop's decoder."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from stoop.alert import Alert, decode, text_form
from stoop.errors import AlertError
from stoop.gojson import time_ns

# The word before the colon of a deviation that is meant, and why; each is a row in docs/talon.md. What deviates in
# another way is a fault.
LISTED_DEVIATIONS = {
    "nesting": "Stoop refuses what nests deeper than 512 levels (Talon 10,000): reading deeper may end a process",
    "repeated time": "Of repeated `time` keys only the last is parsed: to look for a first one would slow every alert",
    "kept": "Talon answers 200 and then loses alerts with numbers beyond a float or offsets of a day; Stoop keeps them",
}

_TIME_KEY = re.compile(rb'"time"\s*:', re.IGNORECASE)


def check_decode_case(case: Mapping[str, Any]) -> str | None:
    """None when Stoop does as Talon, else the deviation: a word, a colon and what differs."""
    try:
        alert = decode(base64.b64decode(case["body"]))
    except AlertError as error:
        return f"{error.kind}: {error.reason}" if case["accepted"] else None
    if not case["accepted"]:
        if alert.time_ns and len(_TIME_KEY.findall(alert.raw)) > 1:
            return "repeated time: Talon refuses it for another one than the last"
        return "accepted: Talon refuses it"
    differing = _differing_fields(alert, case.get("fields") or {}) or _differing_text(
        alert, case.get("match_text") or {}
    )
    if differing is None and case.get("consumed") is False:
        return "kept: Talon loses it after its answer"
    return differing


def _differing_fields(alert: Alert, wanted: Mapping[str, Any]) -> str | None:
    got = _talons_fields(alert)
    for name, value in wanted.items():
        expected = time_ns(value) if name == "time" else value
        if not _same(got[name], expected):
            return f"{name}: {got[name]!r}, Talon has {value!r}"
    return None


def _talons_fields(alert: Alert) -> dict[str, object]:
    return {
        "rule": alert.rule,
        "priority": alert.priority_text,
        "source": alert.source,
        "output": alert.output,
        "hostname": alert.hostname,
        "time": alert.time_ns,
        "trace_id": alert.trace_id,
        "tags": list(alert.sent_tags),
        "output_fields": alert.fields,
        "context": alert.context,
    }


def _differing_text(alert: Alert, wanted: Mapping[str, str]) -> str | None:
    for key, text in wanted.items():
        if text_form(alert.fields[key]) != text:
            return f"text of {key}: {text_form(alert.fields[key])!r}, Talon has {text!r}"
    return None


def _same(got: object, wanted: object) -> bool:
    """Equal in type and value. No list or object is as an empty one; a Decimal is what the float form reads as."""
    if isinstance(wanted, list) and isinstance(got, list):
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    if isinstance(wanted, dict) and isinstance(got, dict):
        return got.keys() == wanted.keys() and all(_same(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, bool) or isinstance(got, bool):
        return wanted is got
    if isinstance(got, Decimal):
        return isinstance(wanted, (int, float)) and float(got) == float(wanted)
    return got == wanted or (wanted is None and got in ([], {}))
