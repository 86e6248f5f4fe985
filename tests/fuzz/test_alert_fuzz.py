"""Real alerts, cut, stirred and with junk behind them: an Alert or an AlertError, the same by both ways, every time.

Bounded and repeatable: the seed is fixed.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stoop.alert import Alert, alert_id, decimal_form, decode, decode_tolerant, text_form
from stoop.errors import AlertError

DATA = Path(__file__).parent.with_name("data")
REAL = DATA.joinpath("falco.jsonl").read_bytes().splitlines()

PIECES = [
    *(bytes([byte]) for byte in b'{}[],:"\\ \n\t\x00\x0c\x7f\xff-0'),
    b'"\\ud83d"',
    b"\\u0061",
    b"\xe2\x82",
    b"\xef\xbb\xbf",
    b"null",
    b"NaN",
    b"1e999",
    b"-0",
    b"01",
    b"9" * 5_000,
    b"[" * 600,
    b'{"a":' * 600,
    b'"Rule":1,',
    b'"rule":null,',
    b'"output_fields":{"x":[]},',
    b'"output_f\\u0069elds":{},',
    b'"time":"2026-01-02T03:04:05.5\\u005a",',
    b'"tags":[1,"a"],',
]


def answer(data: bytes, tolerant: bool = False) -> str:
    """What came of it, as text: the error's kind, or everything that the alert says."""
    try:
        alert = (decode_tolerant if tolerant else decode)(data)
    except AlertError as error:
        return error.kind if error.reason else "no reason"
    return said(alert)


def said(alert: Alert) -> str:
    forms = [(key, text_form(value), decimal_form(value)) for key, value in alert.fields.items()]
    scalars = (alert.rule, alert.priority, alert.source, alert.hostname, alert.output, alert.sent_tags, alert.time_ns)
    return repr((scalars, alert.context, alert.trace_id, forms, alert_id(alert, "n")))


def stirred(data: bytes, dice: random.Random) -> bytes:
    sent = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(sent) + 1)
        match dice.randrange(4):
            case 0:
                sent[at:at] = dice.choice(PIECES)
            case 1:
                del sent[at : at + dice.choice((1, 2, 20))]
            case 2:
                sent[at : at + 1] = bytes([dice.randrange(256)])
            case _:
                sent[at:at] = sent[at - 30 : at]
    return bytes(sent)


@pytest.mark.parametrize("seed", range(4))
def test_stirred_alerts(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(1_500):
        data = stirred(dice.choice(REAL), dice)
        assert answer(data) == answer(data, tolerant=True), data


def test_every_truncation_is_refused() -> None:
    for line in (min(REAL, key=len), max(REAL, key=len)):
        for end in range(len(line)):
            assert answer(line[:end]) in {"malformed", "empty"}, line[:end]


def test_trailing_junk_changes_nothing() -> None:
    dice = random.Random(7)
    for line in REAL:
        junk = dice.choice(PIECES)
        assert answer(line + junk) == answer(line), junk
