"""How the agent is: whether it can do its work, its gauges, and the whole of `stoop status`."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from stoop import __version__
from stoop.journal import Recovery

if TYPE_CHECKING:
    from agent.reflex import Reflex


def ready(reflex: Reflex) -> tuple[bool, dict[str, Any]]:
    """Whether the agent can do its work, and in detail."""
    rules = reflex.rulebook.in_force
    waiting = sorted(set(wanted(reflex)) - set(reflex.bound))
    unreachable = reflex.reach.lost
    detail: dict[str, Any] = {
        "rules": {"count": rules.count, "digest": rules.digest, "rejected": rules.rejected},
        "intakes": reflex.bound,
        **reflex.vitals.status(),
        "pods": reflex.names.status(),
    }
    if waiting:
        detail["not_listening"] = waiting
    if unreachable:
        detail["out_of_reach"] = unreachable
    return bool(rules.digest) and not waiting and not unreachable and not reflex.stopping, detail


def wanted(reflex: Reflex) -> list[str]:
    """The intakes that the configuration turns on."""
    intake = reflex.config.intake
    on = {"unix": intake.unix, "http": intake.http, "file": intake.file, "stdin": intake.stdin}
    return [name for name, wanted in on.items() if wanted]


def samples(reflex: Reflex) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    """The counters of now, with the gauges that are looked up only when somebody asks."""
    metrics, skew, journal = reflex.metrics, reflex.keeps.skew, reflex.journal.status()
    load = reflex.responder.load()
    metrics.set("queue_length", (), load["queued"] + load["waiting"])
    metrics.set("feed_silence_seconds", (), (reflex.clocks.mono_ns() - reflex.front.last_alert_mono_ns) / 1e9)
    metrics.set("clock_offset_seconds", (), -skew.drift_ns / 1e9)
    metrics.set("journal_lag_records", (), journal.lag)
    reflex.vitals.count()
    reflex.names.count(metrics)
    metrics.clear("holds")
    for action, count in Counter(hold.actionner for hold in reflex.holdings.table).items():
        metrics.set("holds", (action,), count)
    metrics.set("holds_troubled", (), len(reflex.giveback.troubles()))
    for name, value in reflex.evidence.gauges().items():
        metrics.set(name, (), value)
    metrics.clear("deliveries_waiting")
    for output, count in reflex.deliveries.waiting().items():
        metrics.set("deliveries_waiting", (output,), count)
    metrics.set("disarmed_rules", (), len(reflex.keeps.limits.disarmed))
    for name in ("rule_disarmed", "mode", "intake_up", "connections"):
        metrics.clear(name)
    for rule in reflex.keeps.limits.disarmed:
        metrics.set("rule_disarmed", (rule,), 1)
    metrics.set("mode", (str(reflex.mode()),), 1)
    for name in wanted(reflex):
        metrics.set("intake_up", (name,), 1 if name in reflex.bound and name not in reflex.reach.lost else 0)
    for name, count in reflex.front.connections.items():
        metrics.set("connections", (name,), count)
    samples = metrics.samples()
    samples["journal_lost_total"] = [((), journal.lost)]
    samples["clock_steps_total"] = [((), skew.steps)]
    samples["helper_restarts_total"] = [((), max(0, reflex.link.restarts))]
    samples |= reflex.names.counters()
    samples["log_lines_dropped_total"] = [(("reflex",), reflex.link.dropped)]
    return samples


def status(reflex: Reflex) -> dict[str, Any]:
    """The result of `stoop status --json`."""
    rules, skew, journal = reflex.rulebook.in_force, reflex.keeps.skew, reflex.journal.status()
    serving, mono_ns = reflex.serving, reflex.clocks.mono_ns()
    return {
        "version": __version__,
        "pid": os.getpid(),
        "node": reflex.config.node_name,
        "mode": str(reflex.mode()),
        "mode_until_ns": reflex.switches.until_ns,
        "ready": ready(reflex)[0],
        "uptime_s": (mono_ns - reflex.started_mono_ns) / 1e9,
        "intakes": reflex.bound,
        "out_of_reach": reflex.reach.lost,
        "metrics": {"address": serving.address, "port": serving.port} if serving is not None else None,
        "control": reflex.config.control.path,
        "state_dir": reflex.config.state_dir,
        "rules": {
            "count": rules.count,
            "digest": rules.digest,
            "loaded_at_ns": rules.loaded_ns,
            "last_error": rules.rejected,
        },
        "unavailable": reflex.fitness.status(),
        "pods": reflex.names.status(),
        "disarmed": reflex.keeps.limits.disarmed,
        "queue": reflex.responder.load(),
        "holds": {"count": len(reflex.holdings.table), "trouble": reflex.giveback.troubles()},
        "evidence": reflex.evidence.status(),
        "deliveries": reflex.deliveries.status(),
        "feed": {
            "silence_s": (mono_ns - reflex.front.last_alert_mono_ns) / 1e9,
            "peers": {kind: count for kind, count in reflex.front.connections.items() if count},
        },
        **reflex.vitals.status(),
        "clock": {"offset_ms": -skew.drift_ns / 1e6, "established": skew.established, "steps": skew.steps},
        "journal": {"lag": journal.lag, "lost": journal.lost, "error": journal.error},
        "recovery": _recovery(reflex.recovery),
        "helper": {"pid": reflex.link.pid, "restarts": max(0, reflex.link.restarts)},
        "counts": {
            "received": reflex.front.received,
            "refused": reflex.front.refused,
            "matched": sum(reflex.metrics.by("alerts_matched_total", 0).values()),
            "outcomes": reflex.metrics.by("acts_total", 1),
        },
    }


def _recovery(recovery: Recovery | None) -> dict[str, Any] | None:
    if recovery is None:
        return None
    window = msgspec.structs.asdict(recovery.window) if recovery.window is not None else None
    return {"clean": recovery.clean, "unfinished": len(recovery.unfinished), "window": window}
