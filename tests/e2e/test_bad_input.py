"""Garbage on each protocol: refused with a reason, memory bounded, the next alert served."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.e2e.conftest import Agent, MakeAgent, alert, was_killed
from tests.real.conftest import PATIENCE_S, Spawn, await_that

pytestmark = pytest.mark.real

MIB = 1024 * 1024
HUGE = 50 * MIB
MOST_GROWTH_KIB = 24 * 1024
"""What a hostile 50 MB may cost: some alerts of the largest size that is taken, decoded; not the 50 MB."""

TOKEN = "s3cret"

VALID = alert(4321).strip()

BAD = {
    "garbage": b"\x01\x02\xff\xfe no alert",
    "empty object": b"{}garbage"[:1],
    "truncated": VALID[:-40],
    "plain text": b"12:00:00.000000000: Notice A shell was spawned (user=root)",
    "deep lists": b"[" * 100_000,
    "deep fields": VALID.replace(b'"proc.pid":4321', b'"proc.pid":' + b"[" * 5000 + b"]" * 5000),
    "invalid utf-8": b'{"rule":"a\xff","output":"' + b"\x80",
    "a list": b"[1,2,3]",
    "a number": b"17",
    "wrong types": b'{"rule":7,"priority":[],"output_fields":{}}',
    "fields of another type": b'{"rule":"a","output_fields":[1]}',
    "a time that is none": VALID.replace(b'"time":"2', b'"time":"x'),
}


class Feed(Protocol):
    """One way in. `send` writes one body and gives the answer's status, 0 where there is none."""

    def send(self, body: bytes) -> int: ...


class Lines:
    """NDJSON over the unix socket, one connection."""

    def __init__(self, agent: Agent) -> None:
        self._sock = agent.connect()

    def send(self, body: bytes) -> int:
        self._sock.sendall(body + b"\n")
        return 0

    def close(self) -> None:
        self._sock.close()


class Posts:
    """HTTP/1.1, a connection each: a server may close after what it refused."""

    def __init__(self, connect: Callable[[], socket.socket], header: bytes = b"") -> None:
        self._connect = connect
        self._header = header

    def send(self, body: bytes) -> int:
        with self._connect() as sock:
            head = b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (self._header, len(body))
            return exchange(sock, head + body)

    def close(self) -> None:
        pass


class Chunks:
    """One chunked request of lines a body, over the unix socket."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def send(self, body: bytes) -> int:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        line = body + b"\n"
        with self._agent.connect() as sock:
            exchange(sock, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line))
        return 0  # 200 or 400: of a stream it is only told at its end

    def close(self) -> None:
        pass


class Appends:
    """The file that is followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, body: bytes) -> int:
        with self._path.open("ab") as file:
            file.write(body + b"\n")
        return 0

    def close(self) -> None:
        pass


class Writes:
    """Standard input."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, body: bytes) -> int:
        data = memoryview(body + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]
        return 0

    def close(self) -> None:
        os.close(self._fd)


def exchange(sock: socket.socket, request: bytes) -> int:
    """Send a request while reading its answer, whose status is given. The server need not read to the end."""
    sock.setblocking(False)
    left, answer = memoryview(request), b""
    while not re.match(rb"HTTP/1.1 (?!100)\d+ ", answer):
        readable, writable, _ = select.select([sock], [sock] if left else [], [], PATIENCE_S)
        assert readable or writable, f"no answer but {answer!r}"
        if readable:
            data = sock.recv(65536)
            assert data, f"closed after {answer!r}"
            answer += data
        elif left:
            left = left[sock.send(left[:MIB]) :]
    return int(answer.split()[1])


def through_socks(agent: Agent) -> socket.socket:
    """As libcurl connects with `http_proxy=socks5h://localhost/<path>` (RFC 1928)."""
    sock = agent.connect()
    sock.sendall(b"\x05\x01\x00")
    assert sock.recv(2) == b"\x05\x00"
    sock.sendall(b"\x05\x01\x00\x03\x05stoop\x00\x50")
    assert sock.recv(10)[:2] == b"\x05\x00"
    return sock


def over_tcp(agent: Agent) -> socket.socket:
    address, _, port = agent.status()["intakes"]["http"].rpartition(":")
    return socket.create_connection((address, int(port)), timeout=PATIENCE_S)


KINDS = ("lines", "posts", "chunks", "socks", "tcp", "file", "stdin")


@pytest.fixture(params=KINDS)
def fed(request: pytest.FixtureRequest, make_agent: MakeAgent) -> Iterator[tuple[Agent, Feed]]:
    """An agent, and one way in to it."""
    agent = make_agent(start=False)
    kind = request.param
    followed, token = agent.directory / "events.json", agent.directory / "token"
    token.write_text(TOKEN)
    intake = {
        "http": {"address": "127.0.0.1", "port": 0, "token_file": str(token)} if kind == "tcp" else None,
        "file": {"path": str(followed)} if kind == "file" else None,
        "stdin": kind == "stdin",
    }
    agent.configure({"intake": {name: value for name, value in intake.items() if value}})
    theirs, ours = os.pipe()
    agent.start(stdin=theirs)
    os.close(theirs)
    feeds: dict[str, Callable[[], Lines | Posts | Chunks | Appends | Writes]] = {
        "lines": lambda: Lines(agent),
        "posts": lambda: Posts(agent.connect),
        "chunks": lambda: Chunks(agent),
        "socks": lambda: Posts(lambda: through_socks(agent)),
        "tcp": lambda: Posts(lambda: over_tcp(agent), b"Authorization: Bearer %b\r\n" % TOKEN.encode()),
        "file": lambda: Appends(followed),
        "stdin": lambda: Writes(os.dup(ours)),
    }
    feed = feeds[kind]()
    try:
        yield agent, feed
    finally:
        feed.close()
        os.close(ours)


def peak_kib(pid: int) -> int:
    """The most that was ever resident of a process (proc(5): VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def refused(agent: Agent) -> int:
    return int(agent.status()["counts"]["refused"])


def test_what_is_no_alert_is_refused_and_the_next_one_served(fed: tuple[Agent, Feed], spawn: Spawn) -> None:
    agent, feed = fed
    statuses = {name: feed.send(body) for name, body in BAD.items()}
    assert set(statuses.values()) <= {0, 400}, statuses
    await_that(lambda: refused(agent) == len(BAD), f"{len(BAD)} refusals, {refused(agent)} now")
    victim = spawn("sleep", "1000")
    assert feed.send(alert(victim.pid)) in (0, 200)
    assert was_killed(victim)
    await_that(lambda: "not an alert" in agent.said(), "it is said")
    total = sum(value for name, value in agent.samples().items() if name.startswith("stoop_alerts_refused_total"))
    assert total == len(BAD)
    assert agent.get("healthz")[0] == 200


def test_fifty_megabytes_are_refused_in_little_memory(fed: tuple[Agent, Feed], spawn: Spawn) -> None:
    agent, feed = fed
    before = peak_kib(agent.program.pid)
    assert feed.send(b"x" * HUGE) in (0, 413)
    assert feed.send(b'{"rule":"' + b"y" * HUGE + b'"}') in (0, 413)
    victim = spawn("sleep", "1000")
    assert feed.send(alert(victim.pid)) in (0, 200)
    assert was_killed(victim)
    assert peak_kib(agent.program.pid) - before < MOST_GROWTH_KIB
    assert refused(agent) >= 2


def test_another_sender_is_served_amid_a_huge_line(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    with agent.connect() as hostile:
        hostile.setblocking(False)
        sent = hostile.send(b"z" * MIB)
        assert sent
        agent.send(alert(victim.pid))
        assert was_killed(victim)


# ---------------------------------------------------------------- fields that match and are odd

ODD_FIELDS: dict[str, dict[str, Any]] = {
    "huge number": {"evt.num": 10**4000},
    "64 bits and more": {"thread.tid": 2**64, "proc.ppid": -(2**63) - 1},
    "lone surrogates": {"proc.name": "\ud800", "\udfff": 1},
    "names": {"container.id": "../../etc", "k8s.ns.name": "\u202e\x1b[31m"},
    "types": {"container.id": [1], "k8s.ns.name": {"a": 1}, "proc.vpid": "x", "proc.pid.ts": 1.5},
    "long": {"proc.cmdline": "x" * 900_000},
    "nulls": dict.fromkeys(("container.id", "k8s.ns.name", "proc.ppid", "evt.time")),
}
ODD_TOPS: dict[str, dict[str, Any]] = {
    "in the year 9999": {"time": "9999-12-31T23:59:59.999999999Z"},
    "in the year 1": {"time": "0001-01-01T00:00:01Z"},
    "before 1970": {"time": "1905-01-01T00:00:00Z"},
    "output": {"output": "\ud800\x1b]0;title\x07" + "o" * 500_000},
    "hostname and tags": {"hostname": "\ud800", "tags": ["\udfff", "a"], "source": "\ud800"},
}


def test_odd_values_of_an_alert_that_matches_end_as_one_record_each(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(mode="observe")
    bystander = spawn("sleep", "1000")
    lines = [alert(bystander.pid, fields) for fields in ODD_FIELDS.values()]
    lines += [alert(bystander.pid, **top) for top in ODD_TOPS.values()]
    for number, line in enumerate(lines, 1):
        agent.send(line)
        rows = agent.records(number)
        assert rows[-1]["outcome"] in ("would", "expired", "refused"), rows[-1]
    told = agent.stoop("history", "--json").stdout.splitlines()
    assert [json.loads(line)["act"] for line in told] == [row["act"] for row in agent.rows()]
    assert agent.status()["helper"]["restarts"] == 0
    assert agent.get("readyz")[0] == 200


# ---------------------------------------------------------------- at the start


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[1, 2]\n", "stoop.yaml"),
        ("mode: maybe\n", "mode"),
        ("guard: {max_targets: many}\n", "max_targets"),
        ("a: [\n", "stoop.yaml"),
        ("intake: {http: {address: 127.0.0.1, port: 0}}\n", "token"),
        ("intake: {file: {path: /}}\n", "regular file"),
    ],
)
def test_a_configuration_that_can_not_be_used_ends_the_start_in_clear_lines(
    make_agent: MakeAgent, text: str, word: str
) -> None:
    agent = make_agent(start=False)
    if "intake" in text:
        text += f"state_dir: {agent.state_dir}\nrules_files: [{agent.rules}]\nmetrics: null\n"
    agent.config.write_text(text)
    ended = agent.once()
    assert (ended.returncode, ended.stdout, "Traceback" in ended.stderr) == (2, "", False), ended.stderr
    assert word in ended.stderr


OTHER_HELPER = "import sys, agent.app; sys.executable = sys.argv[1]; sys.exit(agent.app.main(sys.argv[2:]))"
WITHIN_S = 20.0
"""Far below the 30 s that the first rules are waited for."""


@pytest.mark.parametrize(
    ("program", "why"), [("/nowhere/python", "No such file or directory"), ("/bin/false", "with exit code 1")]
)
def test_a_helper_that_can_not_be_started_is_said_at_once(make_agent: MakeAgent, program: str, why: str) -> None:
    agent = make_agent(start=False)
    argv = [sys.executable, "-c", OTHER_HELPER, program, "-c", str(agent.config)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=WITHIN_S, check=False, env=agent.environment())
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith(f"stoop-agent: {program} -m agent.helper: the helper can't be started: ")
    assert why in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not Path(agent.socket_path).exists()
