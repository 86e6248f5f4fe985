"""The reflex's end of the socket to its helper: with a real helper that is killed, and with ones that do not read."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.link import HOPELESS_TRIES, MAX_BACKLOG, Link
from stoop.wire import AnyMessage, Hello, LogLine, RulesBegin, RulesEnd, RulesSource, Serving

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]
HELLO = Hello("node-1", "", 0, "json", "0.1.0")
RULES = b"""
- rule: Kill a shell
  match: {rules: [Terminal shell in container]}
  actions: [{action: Kill it, actionner: "process:kill"}]
"""
BIG = "x" * 100_000

# Tells what it got, one Serving a message. `deaf` reads nothing until the reflex has gone; `rude` speaks no frames.
PEER = """#!{python}
import pathlib, select, socket, sys
from stoop.wire import FrameReader, LogLine, Serving, WireError, encode
sock = socket.socket(fileno=int(sys.argv[-1]))
kind = pathlib.Path({kind!r}).read_text()
if kind == "deaf":
    gone = select.poll()
    gone.register(sock, 0)
    gone.poll()
    sys.exit()
if kind == "mute":
    sys.exit(7)
if kind == "rude":
    sock.sendall(b"GET / HTTP/1.1" * 9)
reader = FrameReader()
try:
    while data := sock.recv(65536):
        for message in reader.feed(data):
            sock.sendall(encode(Serving(message.event if isinstance(message, LogLine) else type(message).__name__, 0)))
except WireError as error:
    sock.sendall(encode(Serving("", 0, str(error))))
except OSError:
    pass
"""


def line(event: str, text: str = "") -> LogLine:
    return LogLine("info", event, 1, {"text": text})


class Reflex:
    """A link, and what came over it."""

    def __init__(self) -> None:
        self.got: list[AnyMessage] = []
        self.lives: list[int] = []
        self._changed = trio.lowlevel.ParkingLot()
        self.link = Link(self._take, self._started)

    def greet(self) -> None:
        self.link.send(HELLO)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for what comes from the helper, or of it."""
        while not true():
            await self._changed.park()

    @property
    def echoed(self) -> list[str]:
        """What the other side says that it got."""
        return [message.error or message.address for message in self.got if isinstance(message, Serving)]

    def _take(self, message: AnyMessage) -> None:
        self.got.append(message)
        self._changed.unpark_all()

    def _started(self, pid: int) -> None:
        self.lives.append(pid)
        self._changed.unpark_all()


@asynccontextmanager
async def serving(reflex: Reflex) -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reflex.link.serve, reflex.greet)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper starts in safe path mode (`-P`), so the checkout is named."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the link start a peer of this kind instead of the helper, from its next start on."""
    kind, program = tmp_path / "kind", tmp_path / "peer"
    program.write_text(PEER.format(python=sys.executable, kind=str(kind)))
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))

    def choose(name: str) -> None:
        kind.write_text(name)

    return choose


async def test_a_helper_that_is_killed_is_started_again_and_asked_again() -> None:
    reflex = Reflex()
    async with serving(reflex):
        reflex.link.send(RulesSource(1, (("rules.yaml", RULES),)))
        await reflex.until(lambda: RulesEnd(1) in reflex.got)
        first = reflex.link.pid
        assert reflex.lives == [first]
        os.kill(first, signal.SIGKILL)
        await reflex.until(lambda: reflex.lives == [first, 0])
        reflex.link.send(RulesSource(2, (("rules.yaml", RULES),)))
        await reflex.until(lambda: RulesEnd(2) in reflex.got)
        assert reflex.link.restarts == 1
        assert reflex.link.pid not in (0, first)
        begun = [message for message in reflex.got if isinstance(message, RulesBegin)]
        assert [(message.generation, message.count) for message in begun] == [(1, 1), (2, 1)]
        second = reflex.link.pid
    assert reflex.lives == [first, 0, second, 0]
    assert reflex.link.dropped == 0
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_frames_come_in_order_and_the_greeting_before_all(peer: Callable[[str], None]) -> None:
    peer("echo")
    reflex = Reflex()
    reflex.link.send(line("early"))
    async with serving(reflex):
        await reflex.until(lambda: len(reflex.echoed) == 2)
        for number in range(50):
            reflex.link.send(line(str(number), BIG))
        await reflex.until(lambda: len(reflex.echoed) == 52)
    assert reflex.echoed == ["Hello", "early", *map(str, range(50))]


async def test_what_a_deaf_helper_does_not_take_is_bounded_and_counted(peer: Callable[[str], None]) -> None:
    peer("deaf")
    reflex = Reflex()
    async with serving(reflex):
        await reflex.until(lambda: bool(reflex.lives))
        sent = 0
        while reflex.link.send(line(str(sent), BIG)):
            sent += 1
        assert MAX_BACKLOG * 0.9 < sent * len(BIG) < MAX_BACKLOG * 1.2
        assert reflex.link.dropped == 1
        assert not reflex.link.send(line("more", BIG))
        assert reflex.link.dropped == 2
        await trio.testing.wait_all_tasks_blocked()

        peer("echo")
        os.kill(reflex.link.pid, signal.SIGKILL)
        await reflex.until(lambda: bool(reflex.echoed) and reflex.echoed[-1] == str(sent - 1))
    assert reflex.echoed[0] == "Hello"
    numbers = list(map(int, reflex.echoed[1:]))
    assert numbers == list(range(numbers[0], sent))  # whole, in order, without the ones that the deaf one was sent
    assert 0 < numbers[0] < 10


async def test_a_new_helper_is_greeted_however_much_waits_for_it(peer: Callable[[str], None]) -> None:
    peer("echo")
    reflex = Reflex()
    while reflex.link.send(line("old", BIG)):
        pass
    while reflex.link.send(line("old")):
        pass
    async with serving(reflex):
        await reflex.until(lambda: bool(reflex.echoed))
        assert reflex.echoed[0] == "Hello"


async def test_a_peer_that_speaks_another_language_is_ended_and_replaced(peer: Callable[[str], None]) -> None:
    peer("rude")
    reflex = Reflex()
    async with serving(reflex):
        await reflex.until(lambda: 0 in reflex.lives)
        peer("echo")
        await reflex.until(lambda: "Hello" in reflex.echoed)
    assert reflex.link.restarts >= 1


async def test_no_program_to_start_is_hopeless_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    reflex = Reflex()
    async with serving(reflex):
        assert await reflex.link.hopeless() == os.strerror(errno.ENOENT)
    assert reflex.link.restarts == 0
    assert not reflex.lives


async def test_helpers_that_end_without_a_word_are_hopeless_after_some(peer: Callable[[str], None]) -> None:
    peer("mute")
    reflex = Reflex()
    async with serving(reflex):
        assert await reflex.link.hopeless() == "it ended without a word, with exit code 7"
        assert reflex.link.restarts == HOPELESS_TRIES - 1
        peer("echo")
        await reflex.until(lambda: "Hello" in reflex.echoed)
        assert reflex.link.trouble == ""
