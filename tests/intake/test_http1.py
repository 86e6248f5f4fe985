"""HTTP/1.1 without a socket: whole, byte by byte, pipelined, with junk; every answer of the table in http1.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import Limits
from stoop.intake.talk import Haul

MakeBytes = Callable[[str], bytes]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LIMITS = Limits(alert_bytes=4000, header_bytes=1000, slow_seconds=7, idle_seconds=77)


def feed(talk: HttpTalk, text: bytes, size: int = 1_000_000) -> Haul:
    """What came of it, fed in pieces, up to the end of the connection or of the text."""
    total = Haul()
    for at in range(0, len(text), size):
        haul = talk.feed(text[at : at + size])
        total.alerts += haul.alerts
        total.faults += haul.faults
        total.answer += haul.answer
        total.closing = total.closing or haul.closing
    return total


def request(*headers: str, body: bytes = b"", line: str = "POST / HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def rules(haul: Haul) -> list[str]:
    return [alert.rule for alert in haul.alerts]


@pytest.mark.parametrize("size", [1, 3, 100, 1_000_000])
def test_pipelined_requests_however_the_bytes_arrive(post_of: MakeBytes, size: int) -> None:
    haul = feed(HttpTalk(LIMITS), post_of("a") + post_of("b") + post_of("c"), size)
    assert rules(haul) == ["a", "b", "c"]
    assert haul.answer == OK * 3
    assert not haul.closing


def test_only_the_first_json_value_counts_as_in_talon(alert_of: MakeBytes) -> None:
    body = alert_of("a") + b" trailing junk"
    haul = feed(HttpTalk(LIMITS), request(f"Content-Length: {len(body)}", body=body))
    assert rules(haul) == ["a"]
    assert haul.answer == OK


@pytest.mark.parametrize("body", [b"", b"[1]", b"nonsense", b"\xff\xfe", b'{"rule": 1}', b'{"rule":'])
def test_what_is_no_alert_gets_400_and_the_connection_lives(post_of: MakeBytes, body: bytes) -> None:
    haul = feed(HttpTalk(LIMITS), request(f"Content-Length: {len(body)}", body=body) + post_of("next"))
    assert haul.answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert haul.answer.endswith(OK)
    assert len(haul.faults) == 1
    assert rules(haul) == ["next"]
    assert not haul.closing


def test_a_reason_that_is_not_ascii_is_answered_whole() -> None:
    body = '{"prioritä": }'.encode()
    answer = feed(HttpTalk(LIMITS), request(f"Content-Length: {len(body)}", body=body)).answer
    head, _, text = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(text)}".encode() in head


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE"])
def test_other_methods_get_400_and_are_closed(post_of: MakeBytes, method: str) -> None:
    haul = feed(HttpTalk(LIMITS), request(line=f"{method} /healthz HTTP/1.1") + post_of("never"))
    assert haul.answer.startswith(b"HTTP/1.1 400 ")
    assert haul.closing
    assert [fault.kind for fault in haul.faults] == ["protocol"]
    assert not haul.alerts


@pytest.mark.parametrize(
    "junk", [b"NOT HTTP\r\n\r\n", b"\x00\x01\x02", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST / HTTP/1.1\r\nA B\r\n"]
)
def test_what_is_not_http_gets_400_and_is_closed(post_of: MakeBytes, junk: bytes) -> None:
    haul = feed(HttpTalk(LIMITS), post_of("a") + junk)
    assert rules(haul) == ["a"]
    assert haul.answer.startswith(OK + b"HTTP/1.1 400 ")
    assert haul.closing
    assert [fault.kind for fault in haul.faults] == ["protocol"]


def test_nothing_is_taken_after_the_end(post_of: MakeBytes) -> None:
    talk = HttpTalk(LIMITS)
    assert feed(talk, b"JUNK\r\n\r\n").closing
    assert not talk.feed(post_of("never"))
    assert not talk.end()
    talk.close()
    assert not HttpTalk.feed(talk, post_of("never"))


def test_a_body_over_the_limit_is_refused_by_its_length_already() -> None:
    haul = feed(HttpTalk(LIMITS), request("Content-Length: 4001"))
    assert haul.answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close\r\n" in haul.answer
    assert haul.closing
    assert [fault.kind for fault in haul.faults] == ["too large"]


def test_a_body_of_exactly_the_limit_is_an_alert(alert_of: MakeBytes) -> None:
    body = alert_of("a").ljust(4000)
    assert rules(feed(HttpTalk(LIMITS), request("Content-Length: 4000", body=body), 700)) == ["a"]


@pytest.mark.parametrize("size", [1, 64, 1_000_000])
@pytest.mark.parametrize("ending", [b"", b"\r\n\r\n"])
def test_a_header_over_the_limit_is_refused_whole_or_endless(size: int, ending: bytes) -> None:
    haul = feed(HttpTalk(LIMITS), request()[:-2] + b"X: " + b"y" * 3000 + ending, size)
    assert haul.answer.startswith(b"HTTP/1.1 431 ")
    assert haul.closing


@pytest.mark.parametrize("endless", [b"5;" + b"x" * 3000, b"0\r\nTrailer: " + b"x" * 3000])
def test_an_endless_trailer_or_chunk_extension_is_refused(endless: bytes) -> None:
    haul = feed(HttpTalk(LIMITS), request("Transfer-Encoding: chunked") + endless, 100)
    assert haul.answer.startswith(b"HTTP/1.1 431 ")


def test_a_contradictory_length_is_refused() -> None:
    for headers in (["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 9x"], ["Content-Length: -1"]):
        haul = feed(HttpTalk(LIMITS), request(*headers, body=b"123456789"))
        assert haul.answer.startswith(b"HTTP/1.1 400 ")
        assert haul.closing
    smuggled = request("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    assert feed(HttpTalk(LIMITS), smuggled).answer.startswith(b"HTTP/1.1 400 ")


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("size", [1, 50, 1_000_000])
def test_an_endless_chunked_request_is_served_line_by_line(alert_of: MakeBytes, post_of: MakeBytes, size: int) -> None:
    talk = HttpTalk(LIMITS)
    first, second = alert_of("a") + b"\n" + alert_of("b")[:50], alert_of("b")[50:] + b"\n"
    haul = feed(talk, request("Transfer-Encoding: chunked") + chunk(first), size)
    assert rules(haul) == ["a"]
    assert haul.answer == b""
    assert talk.patience() == LIMITS.slow_seconds
    assert rules(feed(talk, chunk(second), size)) == ["b"]
    assert talk.patience() == math.inf
    assert feed(talk, b"0\r\n\r\n", size).answer == OK
    assert rules(feed(talk, post_of("c"), size)) == ["c"]


def test_ndjson_by_its_type_may_be_longer_than_an_alert(alert_of: MakeBytes) -> None:
    body = b"\n".join([alert_of("a")] * 20)
    head = request("Content-Type: application/x-ndjson; charset=utf-8", f"Content-Length: {len(body)}")
    haul = feed(HttpTalk(LIMITS), head + body, 1000)
    assert rules(haul) == ["a"] * 20
    assert haul.answer == OK


def test_a_stream_with_bad_lines_gets_400_and_its_good_lines_count(alert_of: MakeBytes) -> None:
    body = chunk(b"bad\n" + alert_of("a") + b"\n") + chunk(b"x" * 5000 + b"\n") + chunk(alert_of("b")) + b"0\r\n\r\n"
    haul = feed(HttpTalk(LIMITS), request("Transfer-Encoding: chunked", body=body))
    assert rules(haul) == ["a", "b"]
    assert [fault.kind for fault in haul.faults] == ["malformed", "too large"]
    assert haul.answer.startswith(b"HTTP/1.1 400 ")
    assert b"2 of 4 lines are not alerts" in haul.answer


def test_a_stream_may_be_put_as_curl_does(alert_of: MakeBytes) -> None:
    body = chunk(alert_of("a") + b"\n") + b"0\r\n\r\n"
    haul = feed(HttpTalk(LIMITS), request("Transfer-Encoding: chunked", body=body, line="PUT / HTTP/1.1"))
    assert rules(haul) == ["a"]
    assert haul.answer == OK


def test_an_empty_stream_is_fine() -> None:
    assert feed(HttpTalk(LIMITS), request("Transfer-Encoding: chunked", body=b"0\r\n\r\n")).answer == OK


def test_a_stream_that_breaks_off_keeps_its_whole_last_line(alert_of: MakeBytes) -> None:
    talk = HttpTalk(LIMITS)
    feed(talk, request("Transfer-Encoding: chunked", body=chunk(alert_of("a"))))
    assert rules(talk.end()) == ["a"]


def test_a_request_that_breaks_off_is_refused(post_of: MakeBytes) -> None:
    talk = HttpTalk(LIMITS)
    feed(talk, post_of("a") + post_of("b")[:-1])
    haul = talk.end()
    assert [fault.kind for fault in haul.faults] == ["truncated"]
    assert not haul.alerts


# ---------------------------------------------------------------- keeping the connection


def test_connection_close_and_http_1_0_are_closed_after_the_answer(alert_of: MakeBytes, post_of: MakeBytes) -> None:
    body = alert_of("a")
    length = f"Content-Length: {len(body)}"
    for text in (
        request(length, "Connection: close", body=body),
        request(length, line="POST / HTTP/1.0", body=body),
    ):
        haul = feed(HttpTalk(LIMITS), text + post_of("never"))
        assert rules(haul) == ["a"]
        assert haul.answer == b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        assert haul.closing


def test_http_1_0_may_ask_to_be_kept(alert_of: MakeBytes) -> None:
    body = alert_of("a")
    text = request(f"Content-Length: {len(body)}", "Connection: keep-alive", line="POST / HTTP/1.0", body=body)
    haul = feed(HttpTalk(LIMITS), text * 2)
    assert haul.answer == b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n" * 2
    assert not haul.closing


def test_an_upgrade_is_refused_aloud(alert_of: MakeBytes) -> None:
    body = alert_of("a")
    text = request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"Content-Length: {len(body)}", body=body)
    haul = feed(HttpTalk(LIMITS), text)
    assert haul.answer.startswith(b"HTTP/1.1 400 ")
    assert haul.answer.count(b"Content-Length") == 1
    assert haul.closing
    assert [fault.kind for fault in haul.faults] == ["protocol"]


def test_connect_is_refused() -> None:
    haul = feed(HttpTalk(LIMITS), request(line="CONNECT x:80 HTTP/1.1"))
    assert haul.answer.startswith(b"HTTP/1.1 400 ")
    assert haul.closing


def test_expect_100_continue_is_answered_before_the_body(alert_of: MakeBytes) -> None:
    talk = HttpTalk(LIMITS)
    body = alert_of("a")
    head = request(f"Content-Length: {len(body)}", "Expect: 100-continue")
    assert feed(talk, head).answer == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert feed(talk, body).answer == OK
    assert feed(talk, head + body).answer == OK  # the body is there: nobody waits
    too_large = feed(talk, request("Content-Length: 5000", "Expect: 100-continue"))
    assert too_large.answer.startswith(b"HTTP/1.1 413 ")


def test_patience(post_of: MakeBytes) -> None:
    known, stranger = HttpTalk(LIMITS), HttpTalk(LIMITS, trusted=False)
    assert known.patience() == LIMITS.idle_seconds
    assert stranger.patience() == LIMITS.slow_seconds
    known.feed(post_of("a")[:30])
    assert known.patience() == LIMITS.slow_seconds
    stranger.feed(post_of("a"))
    assert stranger.patience() == LIMITS.idle_seconds


def test_who_is_not_admitted_gets_401_and_the_body_is_not_looked_at(alert_of: MakeBytes) -> None:
    body = alert_of("a")
    seen: list[bytes] = []

    def admit(authorization: bytes) -> bool:
        seen.append(authorization)
        return authorization == b"Bearer good"

    length = f"Content-Length: {len(body)}"
    refused = feed(HttpTalk(LIMITS, admit=admit), request(length, "Authorization: Bearer bad", body=body))
    assert refused.answer.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Bearer, Basic realm="stoop"\r\n' in refused.answer
    assert [fault.kind for fault in refused.faults] == ["unauthenticated"]
    assert refused.closing
    assert not refused.alerts
    assert rules(feed(HttpTalk(LIMITS, admit=admit), request(length, "authorization: Bearer good", body=body))) == ["a"]
    assert feed(HttpTalk(LIMITS, admit=admit), request(length, body=body)).closing
    assert seen == [b"Bearer bad", b"Bearer good", b""]
