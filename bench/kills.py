"""From the alert written to the victim exited: idle, back to back, over HTTP, beside a flood, during reloads."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.agent import RULE, Agent, alert_line, running
from bench.creader import c_reader
from bench.table import Row, ms, percentile
from bench.victims import Victim, idle

ROUNDS = 5
PER_ROUND = 200
IDLE_SECONDS = 0.005
"""Above the 4 ms after which the figures are asked for: the agent has fallen asleep by then."""

Act = Callable[[], object]
Prepare = Callable[[Victim], Act]
"""Makes everything ready for a victim; what it returns is what is timed."""


def by_signal(victim: Victim) -> Act:
    """The floor: whoever waits signals by pidfd itself. The same alert is made, so that both are as warm."""
    alert_line(victim.pid, os.getpid())
    return victim.signal


def over_unix(sock: socket.socket) -> Prepare:
    """Write the alert as a line."""
    return lambda victim: partial(sock.sendall, alert_line(victim.pid, os.getpid()))


def over_http(sock: socket.socket) -> Prepare:
    """POST it on a kept connection of the unix socket."""
    sent = 0

    def prepare(victim: Victim) -> Act:
        nonlocal sent
        if sent and not sock.recv(4096).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("the last alert was not answered")
        sent += 1
        body = alert_line(victim.pid, os.getpid())
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return partial(sock.sendall, head.encode() + body)

    return prepare


Times = list[list[float]]
"""Seconds, a list for each way of killing, in the order in which the ways were given."""


def measure(ways: Sequence[Prepare], *, pause: float, samples: int) -> Times:
    """Kill in each of these ways in turn."""
    times: Times = [[] for _ in ways]
    for _ in range(samples):
        for found, make in zip(times, ways, strict=True):
            victim = Victim()
            try:
                if pause:
                    idle(pause)
                found.append(victim.exited_after(make(victim)))
            finally:
                victim.end()
    return times


def rounds(prepare: Prepare, *, pause: float) -> Times:
    """[the agent, whoever waits by itself, the reader in C where there is a compiler], in alternate rounds."""
    with c_reader() as reader:
        times: Times = [[], [], *([[]] if reader is not None else [])]
        for _ in range(ROUNDS):
            pairs = measure([prepare, by_signal], pause=pause, samples=PER_ROUND)
            # By itself: in turn with the others it would leave the agent asleep for longer than it is said to be.
            alone = measure([over_unix(reader)], pause=pause, samples=PER_ROUND) if reader is not None else []
            for found, more in zip(times, pairs + alone, strict=True):
                found += more
        return times


def _row(what: str, times: Times, p50: float, p99: float | None) -> Row:
    agent, floor = times[:2]
    base = percentile(floor, 0.5)
    over50, over99 = percentile(agent, 0.5) - base, percentile(agent, 0.99) - base
    goal = f"over it ≤ {ms(p50)} p50" + (f", ≤ {ms(p99)} p99" if p99 else "")
    in_c = f"; a C reader over it {ms(percentile(times[2], 0.5) - base)}" if len(times) > 2 else "; no compiler for C"
    return Row(
        what,
        f"{ms(base)} p50, {ms(percentile(floor, 0.99))} p99{in_c}",
        f"{ms(percentile(agent, 0.5))} p50, {ms(percentile(agent, 0.99))} p99; over it {ms(over50)}, {ms(over99)}",
        goal,
        over50 <= p50 and (p99 is None or over99 <= p99),
        len(agent),
    )


def kill_idle() -> Iterator[Row]:
    """Alert on the unix socket, the agent idle before each."""
    with running() as agent, agent.connect() as sock:
        yield _row("kill, agent idle", rounds(over_unix(sock), pause=IDLE_SECONDS), 0.5e-3, 1.5e-3)


def kill_busy() -> Iterator[Row]:
    """The same back to back."""
    with running() as agent, agent.connect() as sock:
        yield _row("kill, back to back", rounds(over_unix(sock), pause=0.0), 0.25e-3, 1e-3)


def kill_http() -> Iterator[Row]:
    """The same over HTTP keep-alive."""
    with running() as agent, agent.connect() as sock:
        yield _row("kill over HTTP keep-alive, idle", rounds(over_http(sock), pause=IDLE_SECONDS), 0.6e-3, None)


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Something that goes on in a process of its own meanwhile (a thread here would slow the harness itself)."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            work(threading.Event())
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def flood(agent: Agent, per_second: int) -> Callable[[threading.Event], None]:
    """Send alerts that no rule matches, at this rate, in portions of 5 ms, for at most two minutes."""

    def work(_stop: threading.Event) -> None:
        portion = alert_line(99999, 1, rule="Contact K8S API Server From Container") * (per_second // 200)
        with agent.connect() as sock:
            begun = time.monotonic()
            for number in range(1, 200 * 120):
                sock.sendall(portion)
                wait = begun + number / 200 - time.monotonic()
                if wait > 0:
                    idle(wait)

    return work


def kill_flood() -> Iterator[Row]:
    """Beside 20,000 unmatched alerts a second on another connection."""
    with running() as agent, agent.connect() as sock, beside(flood(agent, 20_000)):
        agent_times, floor_times = rounds(over_unix(sock), pause=IDLE_SECONDS)[:2]
        total = percentile(agent_times, 0.99)
        yield Row(
            "kill beside 20,000 unmatched alerts/s",
            f"{ms(percentile(floor_times, 0.5))} p50, {ms(percentile(floor_times, 0.99))} p99",
            f"{ms(percentile(agent_times, 0.5))} p50, {ms(total)} p99",
            "total ≤ 2 ms p99",
            total <= 2e-3,
            len(agent_times),
        )


def _thousand_rules(turn: int) -> str:
    rules = "".join(
        f"""
- rule: Filler {number} of {turn}
  match:
    rules: [Rule {number}]
    output_fields: ["proc.name=sh, k8s.ns.name!=kube-system"]
  actions: [{{action: Kill it}}]
"""
        for number in range(1000)
    )
    return RULE + rules


def kill_reload() -> Iterator[Row]:
    """While 1,000 rules are reloaded again and again and /metrics is read 10 times a second."""
    with running() as agent, agent.connect() as sock:
        quiet = rounds(over_unix(sock), pause=IDLE_SECONDS)[0]
        port = agent.status()["metrics"]["port"]

        def work(_stop: threading.Event) -> None:
            texts = [_thousand_rules(0), _thousand_rules(1)]
            for turn in range(1200):
                if turn % 20 == 0:
                    fresh = agent.rules.with_suffix(".new")
                    fresh.write_text(texts[turn // 20 % 2])
                    fresh.rename(agent.rules)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/metrics")
                connection.getresponse().read()
                connection.close()
                idle(0.1)

        with beside(work):
            loud = rounds(over_unix(sock), pause=IDLE_SECONDS)[0]
        digest = agent.status()["rules"]
        p99, quiet99 = percentile(loud, 0.99), percentile(quiet, 0.99)
        yield Row(
            f"kill during reloads of 1,000 rules ({digest['count']} in force at the end)",
            f"quiet: {ms(percentile(quiet, 0.5))} p50, {ms(quiet99)} p99",
            f"{ms(percentile(loud, 0.5))} p50, {ms(p99)} p99",
            "≤ 2 × the quiet p99",
            p99 <= 2 * quiet99,
            len(loud),
        )


def kill_ten() -> Iterator[Row]:
    """Ten victims named at once: until the last one is seen to have exited."""
    times: list[float] = []
    with running() as agent, agent.connect() as sock:
        for _ in range(ROUNDS * PER_ROUND):
            victims = [Victim() for _ in range(10)]
            try:
                idle(IDLE_SECONDS)
                lines = b"".join(alert_line(victim.pid, os.getpid()) for victim in victims)
                begun = time.perf_counter()
                sock.sendall(lines)
                for victim in victims:
                    victim.exited_after(lambda: None)
                times.append(time.perf_counter() - begun)
            finally:
                for victim in victims:
                    victim.end()
    p50 = percentile(times, 0.5)
    yield Row(
        "10 victims named at once, the last one dead",
        "-",
        f"{ms(p50)} p50, {ms(percentile(times, 0.99))} p99",
        "≤ 3 ms p50",
        p50 <= 3e-3,
        len(times),
    )
