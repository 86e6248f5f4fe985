"""Any bytes give an Alert or an AlertError; both ways of decoding agree; texts and identity keep their promises."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stoop.alert import Alert, alert_id, decimal_form, decode, decode_tolerant, text_form
from stoop.errors import AlertError

COMPARED = (
    "rule",
    "priority",
    "priority_text",
    "source",
    "hostname",
    "output",
    "tags",
    "sent_tags",
    "time_ns",
    "fields",
    "context",
    "trace_id",
)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
moments = st.datetimes(datetime(1971, 1, 1), datetime(9999, 1, 1))  # noqa: DTZ001 - hypothesis wants naive bounds

# What a sender may write for a number, also what no JSON number is.
number_texts = st.from_regex(r"\A-?[0-9]{1,30}(\.[0-9]{0,20})?([eE][+-]?[0-9]{0,3})?\Z")

known = st.fixed_dictionaries(
    {},
    optional={
        "hostname": texts,
        "message": texts,
        "output": texts,
        "output_fields": st.dictionaries(texts, values, max_size=6),
        "priority": texts,
        "rule": texts,
        "source": texts,
        "tags": st.lists(texts, max_size=4),
        "time": moments.map(lambda moment: f"{moment.isoformat(timespec='microseconds')}123Z"),
        "uuid": texts,
    },
)
strange = st.dictionaries(
    st.sampled_from(["Rule", "rule", "tags", "time", "ſource", "output_fields", "context", "trace_id", "x"]), values
)
layouts = st.tuples(st.booleans(), st.sampled_from([None, 1]), st.sampled_from(["", " ", "\n{}", "x", "\0"]))


def written(alert: Any, layout: tuple[bool, int | None, str]) -> bytes:
    ascii_only, indent, trailing = layout
    return (json.dumps(alert, ensure_ascii=ascii_only, indent=indent) + trailing).encode("utf-8", "surrogatepass")


def outcome(read: Any, data: bytes) -> dict[str, Any] | str:
    try:
        alert: Alert = read(data)
    except AlertError as error:
        return error.kind
    return {name: exactly(getattr(alert, name)) for name in COMPARED} | {"id": alert_id(alert, "n")}


def exactly(value: Any) -> Any:
    """The value with its types: 1, 1.0, -0.0 and True differ here."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    return [exactly(item) for item in value] if isinstance(value, (list, tuple)) else (type(value), repr(value))


def check(data: bytes) -> None:
    """Nothing but an Alert or an AlertError, the same by both ways, and every field has both texts."""
    assert outcome(decode, data) == outcome(decode_tolerant, data)
    try:
        fields = decode(data).fields
    except AlertError:
        return
    for value in fields.values():
        assert isinstance(text_form(value) + decimal_form(value), str)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(known, layouts)
def test_both_ways_agree_on_what_falco_sends(alert: dict[str, Any], layout: tuple[bool, int | None, str]) -> None:
    check(written(alert, layout))


@given(known, strange, layouts)
def test_both_ways_agree_on_what_falco_never_sends(
    alert: dict[str, Any], odd: dict[str, Any], layout: tuple[bool, int | None, str]
) -> None:
    check(written({**alert, **odd}, layout))


@given(known, st.data())
def test_both_ways_agree_on_damaged_alerts(alert: dict[str, Any], data: st.DataObject) -> None:
    sent = bytearray(written(alert, (False, None, "")))
    at = data.draw(st.integers(0, len(sent)))
    sent[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    check(bytes(sent))


@given(st.lists(number_texts, max_size=4))
def test_both_ways_agree_on_numbers(numbers: list[str]) -> None:
    check(f'{{"output_fields":{{"n":[{",".join(numbers)}]}}}}'.encode())


@given(known)
def test_what_was_sent_is_what_is_read(sent: dict[str, Any]) -> None:
    alert = decode(written(sent, (True, None, "")))
    assert (alert.rule, alert.hostname) == (sent.get("rule", ""), sent.get("hostname", ""))
    assert alert.priority_text == sent.get("priority", "")
    assert alert.source == (sent.get("source") or "syscall")
    assert alert.tags == tuple(sent.get("tags", ()))
    assert exactly(alert.fields) == exactly(sent.get("output_fields", {}))


@given(moments, st.integers(0, 999_999_999), st.integers(-24 * 60, 24 * 60))
def test_times_are_exact_to_the_nanosecond(moment: datetime, nanoseconds: int, offset: int) -> None:
    whole = moment.replace(microsecond=0, tzinfo=UTC)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    expected = ((whole - epoch).days * 86_400 + (whole - epoch).seconds) * 10**9 + nanoseconds
    stamp = f"{whole:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}"
    zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    assert decode(f'{{"time":"{stamp}Z"}}'.encode()).time_ns == expected
    assert decode(f'{{"time":"{stamp}{zone}"}}'.encode()).time_ns == expected - offset * 60 * 10**9


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_number_texts_read_back(number: int | float) -> None:
    assert float(text_form(number)) == float(number)
    assert Decimal(decimal_form(number)) == (number if isinstance(number, int) else Decimal(repr(number)))


@given(values)
def test_small_texts_have_one_form(value: Any) -> None:
    """Where no number is large or tiny the two texts are the same."""
    if decimal_form(value) != text_form(value):
        assert "e+" in text_form(value) or "e-" in text_form(value)


@given(st.dictionaries(texts, values, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_change_the_id(fields: dict[str, Any], random: Any) -> None:
    shuffled = list(fields.items())
    random.shuffle(shuffled)
    one = decode(written({"output_fields": fields}, (True, None, "")))
    other = decode(written({"output_fields": dict(shuffled)}, (False, 1, "")))
    assert alert_id(one, "n") == alert_id(other, "n")
