"""Lines: split anywhere, junk between, too long ones, memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest

from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import Limits
from stoop.intake.talk import Haul, LineTalk, Talk

AlertOf = Callable[[str], bytes]
LIMIT = 2000
SLOW = 7.0


def talk_all(pieces: list[bytes]) -> Haul:
    """Everything that came of the pieces and the end."""
    talk = LineTalk(LIMIT, SLOW)
    total = Haul()
    for haul in [*map(talk.feed, pieces), talk.end()]:
        total.alerts += haul.alerts
        total.faults += haul.faults
        assert haul.answer == b""
        assert not haul.closing
    return total


@pytest.mark.parametrize("size", [1, 2, 7, 300, 100_000])
def test_the_same_alerts_however_the_bytes_arrive(alert_of: AlertOf, size: int) -> None:
    text = b"\n".join([alert_of("a"), alert_of("b"), b"", b"  \r", b"garbage", alert_of("c"), alert_of("last")])
    haul = talk_all([text[at : at + size] for at in range(0, len(text), size)])
    assert [alert.rule for alert in haul.alerts] == ["a", "b", "c", "last"]
    assert [fault.kind for fault in haul.faults] == ["malformed"]


def test_carriage_returns_and_blank_lines_are_nothing(alert_of: AlertOf) -> None:
    haul = talk_all([b"\r\n\r\n" + alert_of("a") + b"\r\n \t\r\n\n"])
    assert len(haul.alerts) == 1
    assert not haul.faults


def test_half_a_last_line_is_refused_at_the_end(alert_of: AlertOf) -> None:
    haul = talk_all([alert_of("a") + b"\n" + alert_of("b")[:-20]])
    assert [alert.rule for alert in haul.alerts] == ["a"]
    assert len(haul.faults) == 1


@pytest.mark.parametrize("size", [1, 999, 100_000])
def test_a_line_that_is_too_long_is_refused_once_and_the_next_served(alert_of: AlertOf, size: int) -> None:
    text = b"x" * (3 * LIMIT) + b"\n" + alert_of("next") + b"\n"
    haul = talk_all([text[at : at + size] for at in range(0, len(text), size)])
    assert [fault.kind for fault in haul.faults] == ["too large"]
    assert [alert.rule for alert in haul.alerts] == ["next"]


def test_a_line_of_exactly_the_limit_is_an_alert(alert_of: AlertOf) -> None:
    line = alert_of("a").ljust(LIMIT)
    assert len(talk_all([line[:7], line[7:] + b"\n"]).alerts) == 1
    assert talk_all([line[:7], line[7:] + b" \n"]).faults[0].kind == "too large"


def test_silence_is_limited_only_within_a_line(alert_of: AlertOf) -> None:
    talk = LineTalk(LIMIT, SLOW)
    assert talk.patience() == math.inf
    talk.feed(alert_of("a"))
    assert talk.patience() == SLOW
    talk.feed(b"\n")
    assert talk.patience() == math.inf
    talk.close()


@pytest.mark.parametrize(
    ("talk", "text"),
    [
        (LineTalk(LIMIT, SLOW), b"garbage\n"),
        (HttpTalk(Limits()), b"POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\ngarbage"),
        (HttpTalk(Limits()), b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ngarbage\n\r\n0\r\n\r\n"),
    ],
    ids=["lines", "http", "stream"],
)
def test_a_refusal_needs_no_collector_to_be_let_go(talk: Talk, text: bytes) -> None:
    gc.disable()  # the agent's looks seldom: what only it can free is a flood's to pile up
    try:
        haul = talk.feed(text)
        refusal = weakref.ref(haul.faults[0])
        talk.end()
        talk.close()
        del haul
        assert refusal() is None
    finally:
        gc.enable()
