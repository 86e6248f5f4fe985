"""Falco's JSON → Alert: what each attribute says, both ways of decoding, texts, identity and every refusal."""

from __future__ import annotations

import calendar
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from stoop.alert import (
    ALERT_ERROR_KINDS,
    MAX_ALERT,
    MAX_NESTING,
    PRIORITIES,
    Alert,
    alert_id,
    decimal_form,
    decode,
    decode_tolerant,
    text_form,
)
from stoop.errors import AlertError

REAL = Path(__file__).with_name("data").joinpath("falco.jsonl").read_bytes().splitlines()

SHELL = {
    "hostname": "node-1",
    "output": "10:11:12.123456789: Warning A shell was spawned (user=root)",
    "output_fields": {"proc.pid": 4242, "thread.tid": 4243, "k8s.ns.name": None, "proc.name": "sh"},
    "priority": "Warning",
    "rule": "Terminal shell in container",
    "source": "syscall",
    "tags": ["container", "shell"],
    "time": "2026-01-02T10:11:12.123456789Z",
}


def as_bytes(alert: object) -> bytes:
    return json.dumps(alert).encode()


def of(**members: Any) -> Alert:
    return decode(as_bytes(members))


def fault(data: bytes) -> AlertError:
    with pytest.raises(AlertError) as caught:
        decode(data)
    assert caught.value.kind in ALERT_ERROR_KINDS
    return caught.value


# ---------------------------------------------------------------- attributes


@pytest.mark.parametrize("read", [decode, decode_tolerant])
def test_a_whole_alert(read: Any) -> None:
    data = as_bytes(SHELL)
    alert = read(data)
    assert alert.rule == "Terminal shell in container"
    assert (alert.priority, alert.priority_text) == (4, "Warning")
    assert alert.source == "syscall"
    assert alert.hostname == "node-1"
    assert alert.output == "A shell was spawned (user=root)"
    assert alert.tags == alert.sent_tags == ("container", "shell")
    assert alert.time_ns == calendar.timegm((2026, 1, 2, 10, 11, 12)) * 1_000_000_000 + 123_456_789
    assert alert.fields == {"proc.pid": 4242, "thread.tid": 4243, "k8s.ns.name": None, "proc.name": "sh"}
    assert alert.fields is alert.fields
    assert alert.raw == data
    assert (alert.context, alert.trace_id) == (None, "")


@pytest.mark.parametrize("data", [b"{}", b"null", b" {} ", b"null x", b'{"tags":null,"output_fields":null}'])
def test_an_alert_that_says_nothing(data: bytes) -> None:
    alert = decode(data)
    assert (alert.rule, alert.hostname, alert.output, alert.priority) == ("", "", "", 0)
    assert (alert.tags, alert.fields, alert.time_ns, alert.source) == ((), {}, 0, "syscall")


def test_real_alerts_go_the_fast_way_and_read_alike() -> None:
    for line in REAL:
        fast, tolerant = decode(line), decode_tolerant(line)
        assert not isinstance(fast.held_fields, dict)
        assert fast.fields == tolerant.fields
        assert fast.time_ns == tolerant.time_ns > 0
        # Some of the alerts went through a parser with 53-bit numbers before they came here.
        assert fast.fields.get("evt.time", fast.time_ns) == pytest.approx(fast.time_ns, abs=1_000)
        assert alert_id(fast, "n") == alert_id(tolerant, "n")


def test_falcosidekick_form() -> None:
    alert = decode(
        b'{"uuid":"u","output":"\\u003cNA\\u003e","priority":"Debug","rule":"r","source":"syscalls",'
        b'"time":"2026-01-02T10:11:12.1234Z","output_fields":{"n":1.50},"message":"m"}\n'
    )
    assert not isinstance(alert.held_fields, dict)
    assert (alert.output, alert.source, alert.time_ns % 1_000_000_000) == ("<NA>", "syscalls", 123_400_000)


@pytest.mark.parametrize(
    ("text", "priority"),
    [*PRIORITIES.items(), ("WARNING", 4), ("Emergency", 8), ("Info", 0), ("", 0), ("high", 0)],
)
def test_priority(text: str, priority: int) -> None:
    assert of(priority=text).priority == priority


def test_tags_that_are_no_strings_are_kept_apart() -> None:
    alert = decode(b'{"tags":["a",1,null,"a",1e999]}')
    assert alert.tags == ("a", "a")
    assert alert.sent_tags == ("a", 1, None, "a", Decimal("1e999"))


def test_context_and_trace_id_are_kept() -> None:
    alert = of(context={"a": 1}, trace_id="t")
    assert (alert.context, alert.trace_id) == ({"a": 1}, "t")


@pytest.mark.parametrize(
    ("sent", "cleaned"),
    [
        ("10:11:12.123456789: warning  A", " A"),
        ("10:11:12.123456789: Informational A", "rmational A"),  # as in Talon
        ("10:11:12.12345678: Warning A", "10:11:12.12345678: Warning A"),
        ("2026-01-02T10:11:12.123456789+0000: Warning A", "2026-01-02T10:11:12.123456789+0000: Warning A"),
        ("  A", " A"),
    ],
)
def test_output_is_cut_as_talon_cuts_it(sent: str, cleaned: str) -> None:
    assert of(output=sent).output == cleaned


# ---------------------------------------------------------------- the tolerant way


def test_keys_in_any_case() -> None:
    alert = decode('{"RULE":"r","ſource":"s","Tagſ":["t"],"tımE":"x","Output_Fields":{"K":1}}'.encode())
    assert (alert.rule, alert.source, alert.tags, alert.time_ns, alert.fields) == ("r", "s", ("t",), 0, {"K": 1})


@pytest.mark.parametrize(
    "data",
    [
        b'{"output_fields":{"a":1,"b":1},"output_fields":{"b":2}}',
        b'{"output_fields":{"a":1,"b":1},"output_f\\u0069elds":{"b":2}}',
        b'{"output_f\\u0069elds":{"a":1,"b":1},"Output_Fields":{"b":2}}',
        b'{"output_fields":{"c":1},"output_fields":null,"output_fields":{"a":1,"b":2}}',
    ],
)
def test_repeated_objects_are_merged_and_null_empties_them(data: bytes) -> None:
    assert decode(data).fields == {"a": 1, "b": 2}


def test_null_leaves_text_and_empties_tags() -> None:
    alert = decode(b'{"rule":"r","rule":null,"time":"2026-01-02T03:04:05Z","time":null,"tags":["a"],"tags":null}')
    assert (alert.rule, alert.tags) == ("r", ())
    assert alert.time_ns == calendar.timegm((2026, 1, 2, 3, 4, 5)) * 1_000_000_000


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xe2\x82", "\ufffd\ufffd"),  # one for each byte, as in Go
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\\ud83d", "\ufffd"),
        (b"\\uDE42\\ud83d\\ude42", "\ufffd🙂"),
        (b"\\\\ud83d\\udfff", "\\ud83d\ufffd"),
    ],
)
def test_bad_text_is_replaced_everywhere(sent: bytes, text: str) -> None:
    alert = decode(b'{"rule":"%s","tags":["%s"],"output_fields":{"%s":"%s"}}' % (sent, sent, sent, sent))
    assert (alert.rule, alert.tags, alert.fields) == (text, (text,), {text: text})
    assert decode(b'{"output_fields":{"%s":"%s"}}' % (sent, sent)).fields == {text: text}


def test_of_repeated_times_only_the_last_is_parsed() -> None:
    # Talon refuses this: it parses each. Looking for a second `time` would cost every alert a quarter of its decoding.
    alert = decode(b'{"time":"never","time":"1970-01-01T00:00:01Z"}')
    assert alert.time_ns == 1_000_000_000


def test_only_the_first_value_counts_and_only_its_bytes_are_kept() -> None:
    alert = decode(b' {"rule":"\xff\xc3\xa9"}\n{"rule":"b"}' + b"[" * 2_000)
    assert (alert.rule, alert.raw) == ("\ufffdé", b'{"rule":"\xff\xc3\xa9"}')


def test_nesting_up_to_the_limit() -> None:
    def nested(levels: int, key: str = "output_fields") -> bytes:
        # two more levels are the alert and the object around `x`
        inner = "[" * (levels - 2) + "]" * (levels - 2)
        return f'{{"{key}":{{"x":{inner}}}}}'.encode()

    deepest = decode(nested(MAX_NESTING)).fields["x"]
    assert text_form(deepest) == decimal_form(deepest) == "[" * (MAX_NESTING - 2) + "]" * (MAX_NESTING - 2)
    for data in (nested(MAX_NESTING + 1), nested(MAX_NESTING + 1, "X"), nested(100_000)):
        assert fault(data).kind == "nesting"


def test_many_brackets_side_by_side_or_in_strings_are_not_deep() -> None:
    flat: list[object] = [[] for _ in range(MAX_NESTING)]
    alert = of(output_fields={"x": flat, "y": "[" * 2_000 + '\\"]'})
    assert alert.fields == {"x": flat, "y": "[" * 2_000 + '\\"]'}


def test_decoding_leaves_nothing_behind_for_the_next_alert() -> None:
    decode(b'{"Tags":["a"],"Output_Fields":{"a":1},"Rule":"r"}')
    empty = decode(b'{"Uuid":1}')
    assert (empty.rule, empty.tags, empty.fields) == ("", (), {})


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("text", "seconds", "nanoseconds"),
    [
        ("2026-01-02T03:04:05Z", calendar.timegm((2026, 1, 2, 3, 4, 5)), 0),
        ("2026-01-02T3:04:05,5Z", calendar.timegm((2026, 1, 2, 3, 4, 5)), 500_000_000),
        ("2026-01-02T03:04:05.0000000019Z", calendar.timegm((2026, 1, 2, 3, 4, 5)), 1),
        ("2026-01-02T03:04:05+02:30", calendar.timegm((2026, 1, 2, 0, 34, 5)), 0),
        ("2026-01-02T03:04:05-24:60", calendar.timegm((2026, 1, 3, 4, 4, 5)), 0),
        ("2024-02-29T23:59:59.999999999Z", calendar.timegm((2024, 2, 29, 23, 59, 59)), 999_999_999),
        ("1969-12-31T23:59:59.000000001Z", -1, 1),
        ("0000-02-29T00:00:00Z", -62_162_121_600, 0),
        ("0001-01-01T00:00:00.000000000Z", 0, 0),
        ("0001-01-01T02:00:00+02:00", 0, 0),
        ("9999-12-31T23:59:59.123456789Z", 253_402_300_799, 123_456_789),
    ],
)
def test_times(text: str, seconds: int, nanoseconds: int) -> None:
    for _ in range(2):  # the second time from memory
        assert of(time=text).time_ns == seconds * 1_000_000_000 + nanoseconds


def test_many_different_times() -> None:
    for second in range(1_000):
        text = f"2026-01-02T{second // 60:02}:{second % 60:02}:07.000000009Z"
        for _ in range(2):
            assert of(time=text).time_ns == (calendar.timegm((2026, 1, 2, 0, 0, 7)) + second * 60) * 10**9 + 9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-02",
        "2026-01-02 03:04:05Z",
        "2026-01-02t03:04:05z",
        "2026-01-02T03:04:05",
        "2026-02-29T03:04:05Z",
        "2026-13-01T03:04:05Z",
        "2026-01-02T24:04:05Z",
        "2026-01-02T03:60:05Z",
        "2026-01-02T03:04:60Z",
        "2026-01-02T03:04:05+25:00",
        "2026-01-02T03:04:05+01:61",
        "2026-01-02T03:04:05.12345678٣Z",
        "2026-01-02T03:04:05.+2345678Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    of(time="2026-01-02T03:04:05.123456789Z")  # that this second is known changes nothing
    assert fault(as_bytes({"time": text})).kind == "time"


def test_an_escape_in_a_time_is_refused_as_in_talon() -> None:
    assert fault(b'{"time":"2026-01-02T03:04:05\\u005a"}').kind == "time"
    assert fault(b'{"t\\u0069me":"2026-01-02T03:04:05\\u005a"}').kind == "time"


# ---------------------------------------------------------------- identity


def test_the_id_knows_meaning_not_writing() -> None:
    one = b'{"rule":"r","time":"2026-01-02T03:04:05Z","output_fields":{"a":{"x":1,"y":2},"thread.tid":7}}'
    other = b' {"output_fields": {"thread.tid":7,"a":{"y":2, "x":1}}, "Rule":"\\u0072","time":"2026-01-02T03:04:05.0Z"}'
    assert alert_id(decode(one), "n") == alert_id(decode(other), "n")
    assert len(alert_id(decode(one), "n")) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "x"},
        {"source": "k8s_audit"},
        {"time": "2026-01-02T10:11:12.123456788Z"},
        {"output_fields": {**SHELL["output_fields"], "thread.tid": 1}},  # type: ignore[dict-item]
        {"output_fields": {**SHELL["output_fields"], "proc.pid": "4242"}},  # type: ignore[dict-item]
        {"output_fields": {}},
    ],
)
def test_the_id_changes_with_what_it_names(change: dict[str, Any]) -> None:
    assert alert_id(of(**{**SHELL, **change}), "n") != alert_id(of(**SHELL), "n")


def test_the_id_leaves_out_what_a_second_sending_may_change() -> None:
    same = of(**{**SHELL, "output": "x", "tags": [], "hostname": "h", "priority": "Debug"})
    assert alert_id(same, "n") == alert_id(of(**SHELL), "n")
    assert alert_id(same, "m") != alert_id(same, "n")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "empty", "no bytes"),
        (b" \n", "empty", "no bytes"),
        (b"10:11:12.123456789: Warning A shell", "plain-text", "json_output: true"),
        (b"2026-01-02T10:11:12.123456789+0000: Notice A", "plain-text", "json_output: true"),
        (b"hello", "malformed", "character 0"),
        (b"[]", "type", "a list"),
        (b'"x"', "type", "a string"),
        (b"12", "type", "a number"),
        (b"true", "type", "a boolean"),
        (b'{"rule":1}', "type", "`rule` must be a string, this is a number"),
        (b'{"rule":1,"rule":"a"}', "type", "`rule`"),
        (b'{"tags":"a"}', "type", "`tags` must be a list, this is a string"),
        (b'{"output_fields":[]}', "type", "`output_fields` must be an object, this is a list"),
        (b'{"context":true}', "type", "`context` must be an object, this is a boolean"),
        (b'{"time":{}}', "type", "`time` must be a string, this is an object"),
        (b'{"rule":"a"', "malformed", "character 11: ',' was expected"),
        (b'{"rule" "a"}', "malformed", "':' was expected"),
        (b'{"rule":"a",}', "malformed", "a key in double quotes"),
        (b'{"rule":"a\nb"}', "malformed", "character 10"),
        (b'{"output_fields":{"n":NaN}}', "malformed", "NaN is not JSON"),
        (b'{"output_fields":{"n":-Infinity}}', "malformed", "-Infinity is not JSON"),
        (b'{"output_fields":{"n":01}}', "malformed", "character 23"),
        (b"\xef\xbb\xbf{}", "malformed", "byte order mark"),
        (b'{"time":"2026"}', "time", "'2026'"),
        (b"{" + b" " * MAX_ALERT + b"}", "too large", "1048578 bytes"),
    ],
)
def test_refusals_say_what_was_wrong(data: bytes, kind: str, words: str) -> None:
    error = fault(data)
    assert error.kind == kind
    assert words in error.reason


def test_the_largest_alert_is_taken() -> None:
    data = as_bytes({"rule": "r", "output": ""})
    padded = data.replace(b'""', b'"%s"' % (b"x" * (MAX_ALERT - len(data))))
    assert len(decode(padded).output) == MAX_ALERT - len(data)
    assert fault(padded + b" ").kind == "too large"
