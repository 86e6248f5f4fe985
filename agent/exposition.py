"""A snapshot of the reflex's counters → what Prometheus scrapes. The helper only: prometheus_client costs 3 MiB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from stoop.metrics import DEFINITIONS, PREFIX, Definition

Samples = Mapping[str, Sequence[tuple[Sequence[str], Any]]]
"""The form of `wire.SnapshotReply.samples`."""


class _Snapshot(Collector):
    """Families of one snapshot. A metric that DEFINITIONS doesn't know (a reflex of another version) is left out."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for name, definition in DEFINITIONS.items():
            series = self._samples.get(name)
            if series:
                yield _family(definition, series)


def _family(definition: Definition, series: Sequence[tuple[Sequence[str], Any]]) -> Metric:
    name = PREFIX + definition.name
    if definition.type == "histogram":
        histogram = HistogramMetricFamily(name, definition.help, labels=definition.labels)
        for labels, (counts, total) in series:
            histogram.add_metric(labels, _cumulative(definition.buckets, counts), sum_value=total)
        return histogram
    kind = CounterMetricFamily if definition.type == "counter" else GaugeMetricFamily
    family = kind(name, definition.help, labels=definition.labels)
    for labels, value in series:
        family.add_metric(labels, value)
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Counts a bucket → Prometheus' `le` buckets, each with all below it."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(_bound, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _bound(seconds: float) -> str:
    """`0.0005`, never `5e-05`: some readers compare buckets as text."""
    text = f"{seconds:.9f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def render(samples: Samples, accept: str = "") -> tuple[bytes, str]:
    """The body and its content type: text format 0.0.4, or OpenMetrics when the Accept header asks for it."""
    encode, content_type = choose_encoder(accept)
    return encode(_Snapshot(samples)), content_type
