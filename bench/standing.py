"""What the agent costs while it stands: matching against many rules, memory, start, idle CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from bench.agent import Agent, alert_line, running
from bench.table import Row
from bench.throughput import await_received, cpu_seconds, two_hundred_rules
from bench.victims import idle
from stoop.alert import decode
from stoop.catalogue import CATALOGUE
from stoop.rules import RuleSet, load

ROUNDS = 5
MATCHES = 20_000
MILLION = 1_000_000
IDLE_WATCH_SECONDS = 20.0
STARTS = 9


def _rules(count: int) -> RuleSet:
    rules = [
        {
            "rule": f"Rule {number}",
            "match": {"rules": [f"Falco rule {number}"], "output_fields": ["proc.name=sh, user.uid!=1000"]},
            "actions": [{"action": "Kill it", "actionner": "process:kill"}],
        }
        for number in range(count)
    ]
    return RuleSet.of(load((("bench", json.dumps(rules).encode()),), CATALOGUE).rules)


def match() -> Iterator[Row]:
    """Route and test one alert against 10, 100 and 1,000 rules that name Falco rules."""
    alerts = [decode(alert_line(4242, 1, rule=f"Falco rule {number}").rstrip()) for number in range(10)]
    for alert in alerts:
        _ = alert.fields
    sets = {count: _rules(count) for count in (10, 100, 1000)}
    best = dict.fromkeys(sets, float("inf"))
    for _ in range(ROUNDS):
        for count, rules in sets.items():
            begun = time.perf_counter()
            for number in range(MATCHES):
                alert = alerts[number % 10]
                for rule in rules.route(alert):
                    rule.test(alert)
            best[count] = min(best[count], (time.perf_counter() - begun) / MATCHES)
    worst = max(best.values()) / min(best.values())
    yield Row(
        "matching one alert against 10 / 100 / 1,000 rules",
        "-",
        " / ".join(f"{seconds * 1e6:.2f} µs" for seconds in best.values()),
        "flat within 20 %",
        worst <= 1.2,
        MATCHES * ROUNDS,
    )


def _proportional_mib(agent: Agent) -> float:
    """Resident memory of all the agent's processes, shared pages once (Pss of smaps_rollup, proc(5)), in MiB."""
    total = 0
    for pid in agent.pids():
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


def memory() -> Iterator[Row]:
    """At the start, and after a million alerts."""
    with running(two_hundred_rules(), mode="observe") as agent:
        idle(2.0)
        at_start = _proportional_mib(agent)
        lines = b"".join(alert_line(99999, 1, rule=f"Other rule {number % 50}") for number in range(20_000))
        with agent.connect() as sock:
            # The first portion fills caches and buffers that stay.
            for turn in range(MILLION // 20_000):
                sock.sendall(lines)
                if turn == 0:
                    await_received(agent, 20_000)
                    settled = _proportional_mib(agent)
            await_received(agent, MILLION)
        after = _proportional_mib(agent)
    yield Row(
        "resident memory of all processes: start, after 1 M alerts",
        "-",
        f"{at_start:.1f} MiB, {after:.1f} MiB (grown {after - at_start:.1f}; after the first 20,000: {settled:.1f})",
        "≤ 80 MiB, growth ≤ 2 MiB",
        at_start <= 80 and after - at_start <= 2,
        MILLION,
    )


def start() -> Iterator[Row]:
    """From exec to `ready`; then what it costs to do nothing."""
    times = []
    for _ in range(STARTS):
        with running() as agent:
            times.append(agent.ready_seconds)
    median = sorted(times)[STARTS // 2]
    yield Row("start to ready", "-", f"{median:.2f} s (best {min(times):.2f})", "≤ 0.5 s", median <= 0.5, STARTS)
    with running() as agent:
        pids = agent.pids()
        idle(2.0)
        before = [cpu_seconds(pid) for pid in pids]
        idle(IDLE_WATCH_SECONDS)
        spent = sum(cpu_seconds(pid) for pid in pids) - sum(before)
    share = spent / IDLE_WATCH_SECONDS
    yield Row("idle CPU of all processes", "-", f"{share:.2%} of a core", "≤ 0.2 %", share <= 0.002, 1)
