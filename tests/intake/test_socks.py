"""SOCKS5 as libcurl speaks it, and as it should not be spoken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stoop.intake.limits import Limits
from stoop.intake.socks import SocksTalk
from stoop.intake.talk import Haul

MakeBytes = Callable[[str], bytes]
LIMITS = Limits(slow_seconds=7, idle_seconds=77)
GREETING = bytes.fromhex("050100")
TO_NAME = bytes.fromhex("05010003") + b"\x05agent" + bytes.fromhex("0050")
TO_IPV4 = bytes.fromhex("05010001 7f000001 0050")
TO_IPV6 = bytes.fromhex("05010004") + bytes(16) + bytes.fromhex("0050")
CHOSEN = bytes.fromhex("0500")
CONNECTED = bytes.fromhex("05000001 00000000 0000")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def feed(talk: SocksTalk, text: bytes, size: int) -> Haul:
    total = Haul()
    for at in range(0, len(text), size):
        haul = talk.feed(text[at : at + size])
        total.alerts += haul.alerts
        total.faults += haul.faults
        total.answer += haul.answer
        total.closing = total.closing or haul.closing
    return total


@pytest.mark.parametrize("size", [1, 4, 1_000_000])
@pytest.mark.parametrize("target", [TO_NAME, TO_IPV4, TO_IPV6])
def test_greeting_connect_and_http(post_of: MakeBytes, target: bytes, size: int) -> None:
    talk = SocksTalk(LIMITS)
    haul = feed(talk, GREETING + target + post_of("a") + post_of("b"), size)
    assert haul.answer == CHOSEN + CONNECTED + OK * 2
    assert [alert.rule for alert in haul.alerts] == ["a", "b"]
    assert not haul.faults
    talk.close()


def test_one_of_several_methods_is_chosen() -> None:
    assert SocksTalk(LIMITS).feed(bytes.fromhex("0503020100")).answer == CHOSEN


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (bytes.fromhex("050102"), bytes.fromhex("05ff")),  # only with a password
        (bytes.fromhex("0500"), bytes.fromhex("05ff")),  # no method at all
        (GREETING + bytes.fromhex("05020001 7f000001 0050"), CHOSEN + bytes.fromhex("05070001 00000000 0000")),  # BIND
        (GREETING + bytes.fromhex("04010001 7f000001 0050"), CHOSEN + bytes.fromhex("05070001 00000000 0000")),
        (GREETING + bytes.fromhex("05010009 7f000001 0050"), CHOSEN + bytes.fromhex("05080001 00000000 0000")),
    ],
)
def test_what_is_not_served_is_refused_and_closed(text: bytes, answer: bytes) -> None:
    haul = feed(SocksTalk(LIMITS), text, 1_000)
    assert haul.answer == answer
    assert haul.closing
    assert [fault.kind for fault in haul.faults] == ["protocol"]


def test_the_end_and_the_patience(post_of: MakeBytes) -> None:
    talk = SocksTalk(LIMITS)
    talk.feed(GREETING)
    assert talk.patience() == LIMITS.slow_seconds
    assert talk.end().faults[0].kind == "truncated"
    talk.close()
    talk = SocksTalk(LIMITS)
    talk.feed(GREETING + TO_NAME)
    assert talk.patience() == LIMITS.idle_seconds
    talk.feed(post_of("a")[:-1])
    assert talk.end().faults[0].kind == "truncated"
