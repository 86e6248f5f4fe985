"""What the tests of the intakes share."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from stoop.intake.limits import Limits
from stoop.intake.sink import Desk
from stoop.intake.testing import RecordingSink, RecordingWarn
from stoop.intake.unix import UnixIntake

MakeBytes = Callable[[str], bytes]
Connect = Callable[[], Awaitable[trio.SocketStream]]


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def warn() -> RecordingWarn:
    return RecordingWarn()


@pytest.fixture
def limits() -> Limits:
    """As in production, but deadlines are looked at often; a test overrides this fixture for others."""
    return Limits(sweep_seconds=0.02)


@pytest.fixture
def desk(sink: RecordingSink, warn: RecordingWarn, limits: Limits) -> Desk:
    return Desk(sink=sink, now_ns=time.time_ns, warn=warn, limits=limits)


@pytest.fixture
def alert_of() -> Callable[[str], bytes]:
    """An alert as Falco writes it, without a newline, for a rule of this name."""

    def build(rule: str) -> bytes:
        fields = {"evt.time": 1_749_208_721_382_570_987, "proc.pid": 4711, "proc.cmdline": "sh -c id", "fd.name": None}
        return msgspec.json.encode(
            {
                "hostname": "node-1",
                "output": f"11:18:41.382570987: Notice {rule}",
                "output_fields": fields,
                "priority": "Notice",
                "rule": rule,
                "source": "syscall",
                "tags": ["container", "shell"],
                "time": "2025-06-06T11:18:41.382570987Z",
            }
        )

    return build


@pytest.fixture
def post_of(alert_of: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """The request that Falco's http_output sends for it."""

    def build(rule: str) -> bytes:
        body = alert_of(rule)
        head = (
            "POST /x HTTP/1.1\r\nHost: 127.0.0.1:9101\r\nUser-Agent: falcosecurity/falco\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    return build


@pytest.fixture
def curl() -> str:
    """curl, a foreign sender."""
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed: the foreign sender can't be tried")
    return found


@pytest.fixture
def sock_path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "falco.sock")


async def listen(nursery: trio.Nursery, path: str, desk: Desk, mode: int = 0o600) -> None:
    assert await nursery.start(UnixIntake(path, mode, {0}, desk).serve) == path


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly so many bytes, or fewer at the end."""
    got = b""
    with trio.fail_after(10):
        while len(got) < size and (data := await stream.receive_some(size - len(got))):
            got += data
    return got


async def receive_all(stream: trio.SocketStream) -> bytes:
    return await receive(stream, 1 << 30)


@pytest.fixture
async def connect(sock_path: str, desk: Desk, nursery: trio.Nursery) -> Connect:
    """A way to connect to a listening intake."""
    await listen(nursery, sock_path, desk)

    async def opened() -> trio.SocketStream:
        return await trio.open_unix_socket(sock_path)

    return opened
