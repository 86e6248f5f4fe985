"""curl as a foreign sender: Falco's http_output is libcurl, its program_output often curl."""

# ruff: noqa: ASYNC220 - the sender is written to line by line, and starting it may take a moment

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from stoop.intake.http import HttpIntake
from stoop.intake.sink import Desk
from stoop.intake.testing import RecordingSink
from stoop.intake.unix import UnixIntake

MakeBytes = Callable[[str], bytes]
STATUS = ["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"]


@pytest.fixture
async def listening(sock_path: str, desk: Desk, nursery: trio.Nursery) -> str:
    await nursery.start(UnixIntake(sock_path, 0o600, {0}, desk).serve)
    return sock_path


async def run(*command: str, env: dict[str, str] | None = None) -> str:
    done = await trio.run_process(command, capture_stdout=True, env=(os.environ | env) if env else None)
    return bytes(done.stdout).decode()


async def test_post_to_the_unix_socket(curl: str, listening: str, alert_of: MakeBytes, sink: RecordingSink) -> None:
    body = alert_of("a").decode()
    to = ["--unix-socket", listening, "http://agent/falco"]
    assert await run(curl, *STATUS, "-d", body, *to) == "200"
    assert await run(curl, *STATUS, "-d", "not an alert", *to) == "400"
    assert await run(curl, *STATUS, *to) == "400"
    # Two requests on one connection, as Falco sends them.
    assert await run(curl, *STATUS, "-d", body, *to, "--next", *STATUS, "-d", body, *to) == "200200"
    assert sink.rules == ["a"] * 3
    assert len(sink.gone) == 4


async def test_one_endless_chunked_post(curl: str, listening: str, alert_of: MakeBytes, sink: RecordingSink) -> None:
    command = [curl, "-sN", "-T", ".", *STATUS, "-m", "30", "--unix-socket", listening, "http://x/"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        for count, rule in enumerate(("a", "b", "c"), 1):
            sender.stdin.write(alert_of(rule) + b"\n")
            await sink.until_alerts(count)  # each is acted on at once, not at the end of the request
        sender.stdin.close()
        assert await trio.to_thread.run_sync(sender.stdout.read) == b"200"
    assert sink.rules == ["a", "b", "c"]
    assert not sink.faults


async def test_over_socks_as_falco_can(curl: str, listening: str, alert_of: MakeBytes, sink: RecordingSink) -> None:
    env = {"http_proxy": f"socks5h://localhost{listening}"}
    assert await run(curl, *STATUS, "-d", alert_of("a").decode(), "http://agent/falco", env=env) == "200"
    assert sink.rules == ["a"]
    assert not sink.faults


async def test_fifty_megabytes(
    curl: str, listening: str, alert_of: MakeBytes, sink: RecordingSink, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    to = ["--unix-socket", listening, "http://x/"]
    for expect in ("Expect: 100-continue", "Expect:"):
        assert await run(curl, *STATUS, "-H", expect, "--data-binary", f"@{large}", *to) == "413"
    assert await run(curl, *STATUS, "-d", alert_of("next").decode(), *to) == "200"
    assert sink.kinds == ["too large"] * 2
    assert sink.rules == ["next"]


async def test_a_large_alert_waits_for_100_continue(
    curl: str, listening: str, alert_of: MakeBytes, sink: RecordingSink, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(alert_of("a").ljust(1024 * 1024))
    to = ["-H", "Expect: 100-continue", "--unix-socket", listening, "http://x/"]
    assert await run(curl, *STATUS, "--expect100-timeout", "9", "--data-binary", f"@{large}", *to) == "200"
    assert sink.rules == ["a"]


async def test_tcp_with_bearer_and_with_the_token_in_the_url(
    curl: str, alert_of: MakeBytes, desk: Desk, sink: RecordingSink, nursery: trio.Nursery, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    host, port = await nursery.start(HttpIntake("127.0.0.1", 0, str(token), False, desk).serve)
    body = alert_of("a").decode()
    url = f"{host}:{port}/"
    assert await run(curl, *STATUS, "-d", body, "-H", "Authorization: Bearer s3cret", f"http://{url}") == "200"
    assert await run(curl, *STATUS, "-d", body, f"http://falco:s3cret@{url}") == "200"
    assert await run(curl, *STATUS, "-d", body, f"http://falco:wrong@{url}") == "401"
    assert await run(curl, *STATUS, "-d", body, f"http://{url}") == "401"
    assert sink.rules == ["a", "a"]
