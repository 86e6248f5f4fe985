"""Any bytes to each protocol: nothing is raised, splitting changes nothing, and a good neighbour is served."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from stoop.alert import ALERT_ERROR_KINDS
from stoop.intake.http import HttpIntake
from stoop.intake.http1 import HttpTalk
from stoop.intake.limits import Limits
from stoop.intake.sink import INTAKE_ERROR_KINDS, Desk
from stoop.intake.socks import SocksTalk
from stoop.intake.talk import Haul, LineTalk, Talk
from stoop.intake.testing import RecordingSink, RecordingWarn
from stoop.intake.unix import UnixIntake

LIMITS = Limits(alert_bytes=500, header_bytes=400, linger_seconds=0.05)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ALERT = b'{"rule":"r","priority":"Notice","output_fields":{"proc.pid":4711},"time":"2025-06-06T11:18:41.382570987Z"}'
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ALERT),
    ALERT,
)
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\n\r\n0\r\n\r\n" % (len(ALERT) + 1, ALERT)
SOCKS = bytes.fromhex("05010005010003") + b"\x05agent" + bytes.fromhex("0050")

KINDS = {*ALERT_ERROR_KINDS, *INTAKE_ERROR_KINDS}

good = st.lists(st.sampled_from([ALERT + b"\n", POST, CHUNKED, SOCKS, b"\n", b"{}\n", b"junk\r\n\r\n"]), max_size=5)
cuts = st.lists(st.integers(0, 2000), max_size=6)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Good messages in a row, with some bytes changed, left out or put in."""
    text = bytearray(b"".join(draw(good)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(text)


anything = st.binary(max_size=600) | spoilt()


def pieces(text: bytes, at: list[int]) -> Iterator[bytes]:
    """The text cut at these places."""
    places = sorted({0, len(text), *(place for place in at if place < len(text))})
    for start, end in itertools.pairwise(places):
        yield text[start:end]


def hear(talk: Talk, parts: list[bytes]) -> tuple[list[str], list[str], bytes, bool]:
    """What came of it all: rules, kinds of refusal, answers, whether it was closed."""
    total = Haul()
    for haul in [*map(talk.feed, parts), talk.end()]:
        total.alerts += haul.alerts
        total.faults += haul.faults
        total.answer += haul.answer
        total.closing = total.closing or haul.closing
        if haul.closing:
            break
    assert talk.patience() > 0
    talk.close()
    assert all(fault.reason and fault.kind in KINDS for fault in total.faults)
    return [alert.rule for alert in total.alerts], [fault.kind for fault in total.faults], total.answer, total.closing


TALKS: dict[str, Callable[[], Talk]] = {
    "lines": lambda: LineTalk(LIMITS.alert_bytes, LIMITS.slow_seconds),
    "http": lambda: HttpTalk(LIMITS),
    "http with a token": lambda: HttpTalk(LIMITS, admit=lambda shown: shown == b"Bearer x", trusted=False),
    "socks": lambda: SocksTalk(LIMITS),
}


@given(name=st.sampled_from(sorted(TALKS)), text=anything, at=cuts)
def test_any_bytes_split_anywhere(name: str, text: bytes, at: list[int]) -> None:
    whole = hear(TALKS[name](), [text])
    assert hear(TALKS[name](), list(pieces(text, at))) == whole
    if name == "http with a token":
        assert not whole[0]


@given(text=anything, at=cuts)
@settings(max_examples=60, deadline=None)
async def test_a_good_neighbour_is_served_whatever_another_sends(text: bytes, at: list[int]) -> None:
    sink, warn = RecordingSink(), RecordingWarn()
    desk = Desk(sink=sink, now_ns=time.time_ns, warn=warn, limits=LIMITS)
    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            path = await nursery.start(UnixIntake(f"{directory}/s", 0o600, {0}, desk).serve)
            address = await nursery.start(HttpIntake("127.0.0.1", 0, None, True, desk).serve)
            async with await trio.open_unix_socket(path) as good:
                await misbehave(await trio.open_unix_socket(path), text, at)
                await serve_one(good)
                await misbehave(await trio.open_tcp_stream(*address), text, at)
                await serve_one(good)
            async with await trio.open_tcp_stream(*address) as late:
                await serve_one(late)
            await sink.until(lambda: not sink.present)
            nursery.cancel_scope.cancel()
    assert sink.rules.count("neighbour") == 3


async def misbehave(stream: trio.SocketStream, text: bytes, at: list[int]) -> None:
    """Send the pieces, close our side, read whatever comes."""
    async with stream:
        try:
            for piece in pieces(text, at):
                await stream.send_all(piece)
            await stream.send_eof()
            with trio.fail_after(10):
                async for _ in stream:
                    pass
        except trio.BrokenResourceError:  # cut off, as it deserves
            return


async def serve_one(stream: trio.SocketStream) -> None:
    """A request and its answer."""
    body = ALERT.replace(b'"r"', b'"neighbour"')
    await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    got = b""
    with trio.fail_after(10):
        while len(got) < len(OK):
            got += await stream.receive_some(len(OK) - len(got))
    assert got == OK
