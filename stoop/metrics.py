"""What is counted: the definitions, and the light counters that the reflex keeps.

The reflex only adds to plain dicts; the helper asks for a snapshot and renders it (`agent/exposition.py`), so that a
scrape costs the fast path a copy and nothing more. Not for several threads: count on the trio loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

PREFIX = "stoop_"

MAX_SERIES = 2000
"""Series of one metric. Only rule names can reach it (a node with more rules than this is unheard of); the rest are
counted together under `other`."""

MAX_LABEL = 200
"""Characters of a label's value: a longer rule name is cut, because each scrape carries it."""

OTHER = "other"

LATENCY_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7.5e-3),
    *(10e-3, 15e-3, 20e-3, 35e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Seconds. Dense from 50 µs to 35 ms, where the figures to reach and Falco's own polling (12 to 33 ms) lie; then to the
60 s after which an alert is expired."""

Type = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


class Definition(msgspec.Struct, frozen=True):
    """One metric. `name` is whole but for the prefix. `labels` take closed sets, or are bounded by the rules file."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _latency(step: str, meaning: str) -> Definition:
    return Definition(
        f"event_to_{step}_seconds",
        "histogram",
        f"From the event's time in the kernel, as Falco gives it, until {meaning}.",
        buckets=LATENCY_BUCKETS,
    )


DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        # What comes in.
        Definition(
            "alerts_received_total", "counter", "Alerts read, by way in (unix, http, file, stdin).", ("intake",)
        ),
        Definition("alerts_decoded_total", "counter", "Alerts that could be read as such.", ("intake",)),
        Definition(
            "alerts_refused_total",
            "counter",
            "What was sent and is no alert (malformed, too_large, …), by kind of fault.",
            ("intake", "kind"),
        ),
        Definition("intake_up", "gauge", "1 while this way in is listening or followed.", ("intake",)),
        Definition("connections", "gauge", "Open connections of senders.", ("intake",)),
        Definition(
            "feed_silence_seconds", "gauge", "Since the last alert of any kind; since the start when there was none."
        ),
        Definition(
            "feed_alive",
            "gauge",
            "1 while heartbeats come back from Falco, 0 after two in a row did not. Not there before either is known.",
        ),
        Definition(
            "heartbeats_total",
            "counter",
            "Alerts of the heartbeat's rule by what they were (answered, late, repeated, unknown, foreign), and beats "
            "whose file could not be touched (untouched).",
            ("result",),
        ),
        Definition("heartbeats_missed_total", "counter", "Beats without an answer by the time of the next one."),
        Definition(
            "heartbeat_seconds",
            "histogram",
            "From a touch of the beacon until its alert was here, by the pacemaker's state (off, down, running, "
            "resting).",
            ("pacemaker",),
            LATENCY_BUCKETS,
        ),
        Definition("pacemaker_up", "gauge", "1 while the pacemaker's process runs."),
        Definition("pacemaker_rate", "gauge", "System calls a second that the pacemaker really made, last seen."),
        Definition("pacemaker_cpu_ratio", "gauge", "Share of one processor that it used, last seen."),
        Definition("pacemaker_restarts_total", "counter", "Times that the pacemaker ended and was started again."),
        # What is decided.
        Definition("alerts_matched_total", "counter", "Alerts that a rule matched.", ("rule",)),
        Definition(
            "alerts_undecided_total",
            "counter",
            "Alerts that a rule did not match because nothing is known of a field that it asks for.",
            ("rule",),
        ),
        Definition("acts_total", "counter", "Acts by what they do and how they ended.", ("action", "outcome")),
        Definition(
            "acts_repeated_total", "counter", "Repeats of an act within the de-duplication window.", ("action",)
        ),
        Definition(
            "undos_total", "counter", "What was given back, by action and how that ended.", ("action", "outcome")
        ),
        Definition(
            "holds", "gauge", "What is held now: frozen, cut off, limited, until its time is over.", ("action",)
        ),
        Definition("holds_troubled", "gauge", "Holds that can't be given back, or that somebody else changed."),
        Definition("queue_length", "gauge", "Acts that wait for their lane."),
        Definition("queue_dropped_total", "counter", "Acts that expired because the queue was full."),
        Definition("mode", "gauge", "1 for the mode that counts now (enforce, observe, off).", ("mode",)),
        Definition("disarmed_rules", "gauge", "Rules that went above their limit and act no more until `stoop arm`."),
        Definition("rule_disarmed", "gauge", "1 for each rule that is disarmed.", ("rule",)),
        # How fast.
        _latency("received", "the alert was read"),
        _latency("decided", "it was decided what to do"),
        _latency("acted", "the act was carried out"),
        _latency("verified", "the act was seen to have worked"),
        # What is kept.
        Definition("journal_lag_records", "gauge", "Records in the ring that the journal does not have yet."),
        Definition("journal_lost_total", "counter", "Records that could not be written to the journal."),
        Definition("evidence_bytes", "gauge", "Size of all evidence bundles, as of the last one or the start."),
        Definition("evidence_bundles", "gauge", "Evidence bundles, as of the last one or the start."),
        Definition(
            "deliveries_total",
            "counter",
            "Evidence sent to an output or given up, by how it ended.",
            ("output", "outcome"),
        ),
        Definition("deliveries_waiting", "gauge", "Evidence that waits to be sent, by output.", ("output",)),
        Definition("delivery_tries_total", "counter", "Tries to send evidence that failed, by output.", ("output",)),
        Definition("delivered_bytes_total", "counter", "Bytes of evidence that were sent, by output.", ("output",)),
        Definition("workers_running", "gauge", "Workers that take evidence now."),
        Definition("workers_abandoned", "gauge", "Workers and readers that hang in the kernel and can't be ended."),
        # Names beyond the node.
        Definition("pods_known", "gauge", "Pods of this node whose labels, annotations and owners are known."),
        Definition("pods_left_out", "gauge", "Pods beyond those that can be kept."),
        Definition("pods_age_seconds", "gauge", "Since pods.source last proved that what is known is so."),
        Definition("pods_lists_total", "counter", "Times that all pods of this node were told."),
        Definition("pods_unknown_total", "counter", "Looks at a pod that pods.source had not told (yet)."),
        # What the agent says of itself.
        Definition("rules", "gauge", "Rules that are active."),
        Definition("reloads_total", "counter", "Rules files read again, by result (ok, rejected).", ("result",)),
        Definition("reload_rejected", "gauge", "1 while the newest rules files could not be used and older rules act."),
        Definition("clock_offset_seconds", "gauge", "Falco's clock less the agent's, estimated. Positive: ahead."),
        Definition("clock_steps_total", "counter", "Steps of the node's clock that were noticed."),
        Definition("log_lines_dropped_total", "counter", "Log lines lost because nobody took them.", ("process",)),
        Definition("helper_restarts_total", "counter", "Times that the helper ended and was started again."),
        Definition("reflex_responding", "gauge", "1 while the reflex answers; 0 with the counts of its last answer."),
        Definition("build_info", "gauge", "Always 1; the version is in the label.", ("version",)),
    )
}
"""Every metric by name (without the prefix), in the order of the reference."""


class Metrics:
    """The reflex's counters. Names and numbers of labels are checked when a series is first used."""

    def __init__(self) -> None:
        self._series: dict[str, dict[Labels, Any]] = {name: {} for name in DEFINITIONS}
        self._buckets = {name: d.buckets for name, d in DEFINITIONS.items() if d.buckets}
        for name, definition in DEFINITIONS.items():
            if definition.type == "counter" and not definition.labels:
                # A counter that is there with 0 can be alerted on; one that appears with 1 has no rate.
                self._series[name][()] = 0

    def inc(self, name: str, labels: Labels = (), n: int = 1) -> None:
        """Add to a counter."""
        series = self._series[name]
        try:
            series[labels] += n
        except KeyError:
            labels = self._first(name, labels)
            series[labels] = series.get(labels, 0) + n

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Set a gauge."""
        series = self._series[name]
        series[labels if labels in series else self._first(name, labels)] = value

    def clear(self, name: str) -> None:
        """Forget the series of a gauge, before those of now are set (rules that are gone after a reload)."""
        self._series[name].clear()

    def observe(self, name: str, labels: Labels, seconds: float) -> None:
        """Count one value into a histogram. Negative ones (two clocks) count as 0: a sum may never fall."""
        series = self._series[name]
        histogram = series.get(labels)
        if histogram is None:
            labels = self._first(name, labels)
            histogram = series.setdefault(labels, [[0] * (len(self._buckets[name]) + 1), 0.0])
        if seconds < 0:
            seconds = 0.0
        histogram[0][bisect_left(self._buckets[name], seconds)] += 1
        histogram[1] += seconds

    def by(self, name: str, label: int) -> dict[str, int]:
        """A counter's sums by the values of one of its labels, counted from 0."""
        sums: dict[str, int] = {}
        for labels, count in self._series[name].items():
            sums[labels[label]] = sums.get(labels[label], 0) + count
        return sums

    def samples(self) -> dict[str, list[tuple[Labels, Any]]]:
        """Every series: (label values, number), or (label values, [counts a bucket, sum]); the last bucket is +Inf.

        Counts are per bucket, not cumulative. The form of `wire.SnapshotReply.samples`.
        """
        found: dict[str, list[tuple[Labels, Any]]] = {}
        for name, series in self._series.items():
            if name in self._buckets:
                found[name] = [(labels, [counts.copy(), total]) for labels, (counts, total) in series.items()]
            elif series:
                found[name] = list(series.items())
        return found

    def _first(self, name: str, labels: Labels) -> Labels:
        """The labels under which a new series is kept. Raises ValueError for a wrong number of them."""
        wanted = DEFINITIONS[name].labels
        if len(labels) != len(wanted):
            raise ValueError(f"{name} has the labels {wanted}, not {labels}")
        if len(self._series[name]) >= MAX_SERIES:
            return (OTHER,) * len(labels)
        return tuple(label[:MAX_LABEL] for label in labels)


def merge(into: dict[str, list[tuple[Labels, Any]]], extra: Mapping[str, list[tuple[Labels, Any]]]) -> None:
    """Add another process's series to these; the same series twice is the sum (counters only)."""
    for name, series in extra.items():
        sums = dict(into.get(name, ()))
        for labels, value in series:
            sums[labels] = sums.get(labels, 0) + value
        into[name] = list(sums.items())


def reference() -> str:
    """docs/reference/metrics.md, made from the definitions."""
    rows = "".join(
        f"| `{PREFIX}{d.name}` | {d.type} | {', '.join(f'`{label}`' for label in d.labels)} | {d.help} |\n"
        for d in DEFINITIONS.values()
    )
    buckets = ", ".join(f"{bound:g}" for bound in LATENCY_BUCKETS)
    return f"""\
# Metrics

<!-- Made from stoop/metrics.py by `make generate`: edit the definitions there. -->

Served by the agent's helper process on `/metrics`, in Prometheus' text format or OpenMetrics, as the scraper asks.
Labels come from closed sets; rule names are bounded by the rules files, at most {MAX_SERIES} series a metric (the rest
count as `{OTHER}`).

| name | type | labels | meaning |
|---|---|---|---|
{rows}
Histograms have the buckets (seconds) {buckets}.
"""
