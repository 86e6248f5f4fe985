"""Every way in, by foreign senders: nothing lost, nothing acted on twice."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import Agent, MakeAgent, Row, alert, lives, was_killed
from tests.real.conftest import PATIENCE_S, Process, Spawn, await_that

pytestmark = pytest.mark.real
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing: a foreign sender can't be tried")

CURL = ("curl", "-sS", "--max-time", f"{PATIENCE_S:g}")
TOKEN = "s3cret-of-the-node"


def post(agent: Agent, url: str, said: bytes, *options: str, **environment: str) -> str:
    """The status that curl is answered with."""
    done = subprocess.run(
        [*CURL, "-o", os.devnull, "-w", "%{http_code}", "--data-binary", "@-", *options, url],
        input=said,
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
        env={**agent.environment(), **environment},
    )
    return done.stdout.decode()


def acts(rows: Sequence[Row]) -> collections.Counter[str]:
    """How often each act was recorded."""
    return collections.Counter(row["act"] for row in rows)


# ---------------------------------------------------------------- the unix socket


@needs_curl
def test_curl_posts_to_the_unix_socket(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    victim = spawn("sleep", "1000")
    assert post(agent, "http://stoop/", alert(victim.pid), "--unix-socket", agent.socket_path) == "200"
    assert was_killed(victim)


@needs_curl
def test_curl_as_falco_is_pointed_at_the_socket_by_a_proxy(make_agent: MakeAgent, spawn: Spawn) -> None:
    """libcurl speaks SOCKS5, then HTTP, over a unix socket: Falco's http_output does so by its environment alone."""
    agent = make_agent()
    victim = spawn("sleep", "1000")
    proxy = f"socks5h://localhost{agent.socket_path}"
    assert post(agent, "http://stoop.invalid/", alert(victim.pid), http_proxy=proxy) == "200"
    assert was_killed(victim)


@needs_curl
def test_one_endless_request_answers_each_alert_as_it_comes(make_agent: MakeAgent, spawn: Spawn) -> None:
    """Falco's program_output with keep_alive: the request never ends, so nothing may wait for its end."""
    agent = make_agent()
    argv = (*CURL, "-N", "-T", ".", "--unix-socket", agent.socket_path, "http://stoop/")
    falco = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert falco.stdin is not None
    try:
        for _ in range(3):
            victim = spawn("sleep", "1000")
            falco.stdin.write(alert(victim.pid))
            falco.stdin.flush()
            assert was_killed(victim)
            assert falco.poll() is None
        falco.stdin.close()
        assert falco.wait(PATIENCE_S) == 0
    finally:
        falco.kill()
        falco.wait()
    assert {row["outcome"] for row in agent.records(3)} == {"done"}


def test_a_split_alert_is_one_and_joined_ones_are_two(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent()
    one, two, three = (spawn("sleep", "1000") for _ in range(3))
    first, rest = alert(one.pid), alert(two.pid) + alert(three.pid)
    with agent.connect() as sock:
        sock.sendall(first[:300])
        await_that(lambda: agent.status()["feed"]["peers"], "its connection is seen")
        assert lives(one)
        sock.sendall(first[300:] + rest[:10])
        assert was_killed(one)
        sock.sendall(rest[10:])
        assert was_killed(two)
        assert was_killed(three)


def test_the_same_alert_twice_is_acted_on_once(make_agent: MakeAgent, spawn: Spawn) -> None:
    """libcurl may send twice: the first repeat is told, further ones are counted."""
    agent = make_agent()
    victim = spawn("sleep", "1000")
    said = alert(victim.pid)
    agent.send(said)
    assert was_killed(victim)
    agent.records(1)
    agent.send(said)
    agent.send(said)
    await_that(lambda: agent.status()["counts"]["received"] == 3, "all of them are taken")
    assert agent.stop() == 0
    outcomes = collections.Counter(row["outcome"] for row in agent.rows())
    assert outcomes["done"] == 1
    assert outcomes.keys() <= {"done", "skipped"}


def test_a_last_line_without_its_end_is_taken_when_the_sender_leaves(make_agent: MakeAgent, spawn: Spawn) -> None:
    """Half a line is refused and counted instead."""
    agent = make_agent()
    victim, other = spawn("sleep", "1000"), spawn("sleep", "1000")
    agent.send(alert(victim.pid).rstrip(b"\n"))
    assert was_killed(victim)
    agent.send(alert(other.pid)[:200])
    await_that(lambda: agent.status()["counts"]["refused"] == 1, "half an alert is refused")
    assert lives(other)


def test_an_alert_over_two_ways_is_acted_on_once(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    feed = tmp_path / "events.json"
    feed.touch()
    agent = make_agent(intake={"file": {"path": str(feed)}})
    victim = spawn("sleep", "1000")
    said = alert(victim.pid)
    with feed.open("ab") as file:
        file.write(said)
    agent.send(said)
    assert was_killed(victim)
    await_that(lambda: agent.status()["counts"]["received"] == 2, "both are taken")
    await_that(lambda: any(row["outcome"] == "done" for row in agent.rows()), "it is recorded")
    assert agent.stop() == 0  # whatever was still to be written is written
    outcomes = collections.Counter(row["outcome"] for row in agent.rows())
    assert outcomes["done"] == 1
    assert outcomes.keys() <= {"done", "skipped"}


def test_who_never_reads_his_answers_holds_up_nobody(make_agent: MakeAgent, spawn: Spawn) -> None:
    """An answer is 38 bytes: the kernel holds thousands of them, then the agent must not wait for this sender."""
    agent = make_agent()
    victim = spawn("sleep", "1000")
    body = alert(2**40, rule="Some other rule")
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with agent.connect() as deaf:
        deaf.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 20_000 * len(request):
                sent += deaf.send(request * 50)
        agent.send(alert(victim.pid))
        assert was_killed(victim)


def test_the_stoop_command_sends_a_file(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    agent = make_agent()
    victims = [spawn("sleep", "1000") for _ in range(3)]
    (tmp_path / "alerts.json").write_bytes(b"".join(alert(victim.pid) for victim in victims))
    argv = [sys.executable, "-m", "stoop.cli", "send", str(tmp_path / "alerts.json"), "--to", agent.socket_path]
    sent = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert sent.returncode == 0, sent.stderr
    assert all(map(was_killed, victims))


# ---------------------------------------------------------------- HTTP


def http(make_agent: MakeAgent, token: Path) -> tuple[Agent, str]:
    """An agent that asks for a token, and where it listens."""
    agent = make_agent(intake={"http": {"address": "127.0.0.1", "port": 0, "token_file": str(token)}})
    return agent, agent.status()["intakes"]["http"]


@needs_curl
def test_a_token_is_asked_and_read_again_when_it_changes(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    agent, bound = http(make_agent, token)
    victim, other = spawn("sleep", "1000"), spawn("sleep", "1000")
    said = alert(victim.pid)
    assert post(agent, f"http://{bound}/", said) == "401"
    assert post(agent, f"http://falco:wrong@{bound}/", said) == "401"
    assert post(agent, f"http://{TOKEN}:falco@{bound}/", said) == "401"
    assert post(agent, f"http://{bound}/", said, "-H", "Authorization: Bearer wrong") == "401"
    assert (agent.rows(), lives(victim)) == ([], True)
    assert post(agent, f"http://falco:{TOKEN}@{bound}/any/path", said) == "200"
    assert was_killed(victim)
    token.write_text("another-one\n")
    await_that(lambda: post(agent, f"http://falco:another-one@{bound}/", alert(2**40)) == "200", "the new token holds")
    assert post(agent, f"http://falco:{TOKEN}@{bound}/", alert(other.pid)) == "401"
    assert post(agent, f"http://{bound}/", alert(other.pid), "-H", "Authorization: Bearer another-one") == "200"
    assert was_killed(other)
    assert TOKEN not in agent.said()


@needs_curl
def test_many_alerts_in_one_request(make_agent: MakeAgent, spawn: Spawn, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    agent, bound = http(make_agent, token)
    victims = [spawn("sleep", "1000") for _ in range(3)]
    said = b"".join(alert(victim.pid) for victim in victims)
    ndjson = ("-H", "Content-Type: application/x-ndjson")
    assert post(agent, f"http://falco:{TOKEN}@{bound}/", said, *ndjson) == "200"
    assert all(map(was_killed, victims))


def test_without_a_token_the_start_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False, intake={"http": {"address": "127.0.0.1", "port": 0}})
    ended = agent.once()
    assert (ended.returncode, "token" in ended.stderr, "Traceback" in ended.stderr) == (2, True, False), ended.stderr
    assert "ready" not in ended.stdout


@needs_curl
def test_without_a_token_on_purpose_it_is_said_loudly(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(intake={"http": {"address": "127.0.0.1", "port": 0, "insecure": True}})
    victim = spawn("sleep", "1000")
    assert post(agent, f"http://{agent.status()['intakes']['http']}/", alert(victim.pid)) == "200"
    assert was_killed(victim)
    await_that(lambda: "token" in agent.said() and "warning" in agent.said(), "a warning in the log")


# ---------------------------------------------------------------- a followed file


DRY = {"mode": "observe"}
"""Alerts name the same victims again and again: each of them is recorded, none acted on."""


class Feed:
    """What Falco's file_output writes: every alert is another one, about a process that lives."""

    def __init__(self, path: Path, named: Sequence[Process]) -> None:
        self.path = path
        self.named = named
        self.written = 0

    def write(self, count: int) -> None:
        with self.path.open("ab") as file:
            for _ in range(count):
                file.write(alert(self.named[self.written % len(self.named)].pid, {"evt.num": self.written}))
                self.written += 1

    def rotate(self, number: int) -> None:
        self.path.rename(f"{self.path}.{number}")

    def truncate(self) -> None:
        """As `logrotate` with copytruncate does."""
        os.truncate(self.path, 0)


def test_a_file_is_followed_over_rename_truncation_and_restarts(
    make_agent: MakeAgent, spawn: Spawn, tmp_path: Path
) -> None:
    feed = Feed(tmp_path / "events.json", [spawn("sleep", "1000") for _ in range(3)])
    agent = make_agent(start=False, intake={"unix": None, "file": {"path": str(feed.path)}}, **DRY)
    feed.write(5)  # it was there before the agent
    agent.start()
    agent.records(feed.written)
    feed.write(5)
    feed.rotate(1)
    feed.write(5)
    agent.records(feed.written)
    feed.truncate()
    feed.write(5)
    agent.records(feed.written)
    assert agent.stop() == 0
    feed.write(50)  # nobody reads now
    agent.start()
    agent.records(feed.written)
    feed.write(5)
    agent.records(feed.written)
    agent.kill()
    feed.write(5)
    agent.start()
    rows = agent.records(feed.written)
    assert max(acts(rows).values()) == 1
    assert {row["outcome"] for row in rows} == {"would"}


def test_what_was_written_before_a_rotation_while_nobody_read_is_not_lost(
    make_agent: MakeAgent, spawn: Spawn, tmp_path: Path
) -> None:
    """Or it is said that it may be: the renamed file is no longer the one that the configuration names."""
    feed = Feed(tmp_path / "events.json", [spawn("sleep", "1000")])
    feed.write(5)
    agent = make_agent(intake={"unix": None, "file": {"path": str(feed.path)}}, **DRY)
    agent.records(5)
    assert agent.stop() == 0
    before = len(agent.said())
    feed.write(3)
    feed.rotate(1)
    feed.write(4)
    agent.start()
    await_that(lambda: len(agent.rows()) >= 9, "what is in the new file")
    if len(agent.rows()) < feed.written:
        await_that(
            lambda: "warning" in agent.said()[before:] and "lost" in agent.said()[before:], "that some may be lost"
        )
    assert max(acts(agent.rows()).values()) == 1


def test_killed_amid_a_files_alerts_it_goes_on_where_it_was(
    make_agent: MakeAgent, spawn: Spawn, tmp_path: Path
) -> None:
    feed = Feed(tmp_path / "events.json", [spawn("sleep", "1000") for _ in range(5)])
    agent = make_agent(intake={"unix": None, "file": {"path": str(feed.path)}}, **DRY)
    feed.write(300)
    await_that(lambda: bool(agent.rows()), "some of it is recorded")
    agent.kill()
    agent.start()
    feed.write(10)
    await_that(lambda: len(acts(agent.rows())) == feed.written, "every alert is in the journal")
    assert max(acts(agent.rows()).values()) == 1


# ---------------------------------------------------------------- standard input


def test_standard_input_is_read_and_its_end_ends_nothing(make_agent: MakeAgent, spawn: Spawn) -> None:
    agent = make_agent(start=False, intake={"stdin": True})
    agent.start(stdin=subprocess.PIPE)
    victim, other = spawn("sleep", "1000"), spawn("sleep", "1000")
    feed = agent.program.stdin
    assert feed is not None
    feed.write(b"no alert\n" + alert(victim.pid))
    feed.flush()
    assert was_killed(victim)
    feed.close()
    agent.send(alert(other.pid))
    assert was_killed(other)
    assert agent.status()["counts"]["refused"] == 1
    assert agent.stop() == 0
