"""Alerts a second: NDJSON with 200 rules, HTTP with one and sixteen connections; each against a floor."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator

import trio

from bench.agent import Agent, alert_line, running
from bench.kills import beside
from bench.table import Row
from bench.victims import Victim, idle
from stoop.alert import decode

ROUNDS = 5
NDJSON_ALERTS = 100_000
MATCHING = 100
"""One alert in so many matches."""

GUARD = {"max_targets": 0, "max_targets_total": 0, "pid_namespace": "agent", "dedup_window": "0s"}
"""Each match is dealt with, also in the next round."""

HTTP_REQUESTS = 4_000

RULES_BY_NAME = 190
RULES_WITHOUT_NAME = 10


def two_hundred_rules() -> str:
    """190 rules that name a Falco rule, 10 that don't; the first is the one that matches."""
    rules = [
        {
            "rule": f"Rule {number}",
            "match": {"rules": ["Terminal shell in container" if not number else f"Falco rule {number}"]},
            "allow_host": True,
            "actions": [{"action": "Kill it", "actionner": "process:kill"}],
        }
        for number in range(RULES_BY_NAME)
    ]
    rules += [
        {
            "rule": f"Nameless {number}",
            "match": {"tags": [f"tag_{number}"], "priority": ">=Warning", "output_fields": ["proc.name=nmap"]},
            "allow_host": True,
            "actions": [{"action": "Kill it", "actionner": "process:kill"}],
        }
        for number in range(RULES_WITHOUT_NAME)
    ]
    return json.dumps(rules)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def await_received(agent: Agent, wanted: int) -> None:
    """Wait until so many alerts were received."""
    while int(agent.status()["counts"]["received"]) < wanted:
        idle(0.002)


def ndjson() -> Iterator[Row]:
    """200 rules, 1 % of the alerts match live, unique targets, in observe mode."""
    victims = [Victim() for _ in range(NDJSON_ALERTS // MATCHING)]
    rates: list[float] = []
    costs: list[float] = []
    floors: list[float] = []
    try:
        with running(two_hundred_rules(), mode="observe", guard=GUARD) as agent:
            sent = 0
            for _ in range(ROUNDS):
                lines = [alert_line(99999, 1, rule=f"Other rule {number % 50}") for number in range(NDJSON_ALERTS)]
                for number in range(0, NDJSON_ALERTS, MATCHING):
                    lines[number] = alert_line(victims[number // MATCHING].pid, os.getpid())
                data = b"".join(lines)
                before, begun = cpu_seconds(agent.process.pid), time.perf_counter()
                with agent.connect() as sock:
                    sock.sendall(data)
                sent += NDJSON_ALERTS
                await_received(agent, sent)
                rates.append(NDJSON_ALERTS / (time.perf_counter() - begun))
                costs.append((cpu_seconds(agent.process.pid) - before) / NDJSON_ALERTS)
                floors.append(_decoding(lines))
            dealt_with = agent.status()["counts"]["outcomes"].get("would", 0)
            if dealt_with != ROUNDS * len(victims):
                raise RuntimeError(f"{dealt_with} of {ROUNDS * len(victims)} matching alerts were dealt with")
    finally:
        for victim in victims:
            victim.end()
    rate, cost, floor = max(rates), min(costs), min(floors)
    median = sorted(rates)[ROUNDS // 2]
    yield Row(
        "NDJSON, 200 rules, 1 % matching, observe mode",
        f"decoding alone {floor * 1e6:.2f} µs CPU",
        f"{median:,.0f}/s median, {rate:,.0f}/s best; {cost * 1e6:.2f} µs CPU an alert ({cost / floor:.1f} × floor)",
        "≥ 60,000/s, ≤ 4 × the floor's CPU",
        median >= 60_000 and cost <= 4 * floor,
        NDJSON_ALERTS * ROUNDS,
    )


def _decoding(lines: list[bytes]) -> float:
    """CPU seconds an alert of decoding it, fields included: what any reader of alerts has to pay."""
    begun = time.process_time()
    for line in lines:
        _ = decode(line).fields
    return (time.process_time() - begun) / len(lines)


# ---------------------------------------------------------------- HTTP


def _request() -> bytes:
    body = alert_line(99999, 1, rule="Contact K8S API Server From Container").rstrip()
    head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _drive(address: tuple[str, int], connections: int) -> float:
    """Requests a second over so many connections, each waiting for its answer before the next."""
    request = _request()
    socks = [socket.create_connection(address) for _ in range(connections)]
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    begun = time.perf_counter()
    for _ in range(HTTP_REQUESTS // connections):
        for sock in socks:
            sock.sendall(request)
        for sock in socks:
            if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("not answered")
    rate = HTTP_REQUESTS // connections * connections / (time.perf_counter() - begun)
    for sock in socks:
        sock.close()
    return rate


def _floor_server(listener: socket.socket) -> None:
    """The same loop answering without looking: reads what is there, answers once a read."""

    async def one(sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            if not data:
                sock.close()
                return
            sock.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def serve() -> None:
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                nursery.start_soon(one, sock)

    trio.run(serve)


def http() -> Iterator[Row]:
    """One and sixteen connections, keep-alive."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {"http": {"address": "127.0.0.1", "port": 0, "insecure": True}}

    def floor(_stop: threading.Event) -> None:
        _floor_server(listener)

    with running(intake=settings) as agent, beside(floor):
        host, _, port = agent.status()["intakes"]["http"].rpartition(":")
        for connections, goal in ((1, 0.6), (16, 0.4)):
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(ROUNDS):
                ours.append(_drive((host, int(port)), connections))
                theirs.append(_drive(listener.getsockname(), connections))
            mine, least = sorted(ours)[ROUNDS // 2], sorted(theirs)[ROUNDS // 2]
            yield Row(
                f"HTTP alerts/s, {connections} connection{'s' if connections > 1 else ''}",
                f"{least:,.0f}/s",
                f"{mine:,.0f}/s ({mine / least:.2f} of it)",
                f"≥ {goal} of it",
                mine >= goal * least,
                HTTP_REQUESTS * ROUNDS,
            )
    listener.close()


def raise_limits() -> None:
    """Fifty victims and many connections need descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
