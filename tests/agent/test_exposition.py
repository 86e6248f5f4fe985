"""Snapshots as Prometheus reads them, checked by prometheus_client's own parsers."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.exposition import render
from stoop.metrics import DEFINITIONS, Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def everything() -> Metrics:
    """One series of each metric."""
    counts = Metrics()
    for name, definition in DEFINITIONS.items():
        labels = tuple(f'{label} \\ "x"\n\u202eé' for label in definition.labels)
        if definition.type == "counter":
            counts.inc(name, labels, 2)
        elif definition.type == "gauge":
            counts.set(name, labels, 1.5)
        else:
            for seconds in (1e-6, 0.0004, 0.0004, 100.0):
                counts.observe(name, labels, seconds)
    return counts


def test_text_is_what_prometheus_reads(everything: Metrics) -> None:
    body, content_type = render(everything.samples())
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in parse_text(body.decode())}
    for name, definition in DEFINITIONS.items():
        family = families[f"stoop_{name.removesuffix('_total') if definition.type == 'counter' else name}"]
        assert family.type == definition.type
        assert family.documentation == definition.help
        for label in definition.labels:
            assert family.samples[0].labels[label] == f'{label} \\ "x"\n\u202eé'


def test_buckets_are_cumulative_and_never_written_with_an_exponent(everything: Metrics) -> None:
    body, _ = render(everything.samples())
    (family,) = (f for f in parse_text(body.decode()) if f.name == "stoop_event_to_acted_seconds")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert list(buckets)[:2] == ["0.00005", "0.0001"]
    assert (buckets["0.00005"], buckets["0.0003"], buckets["0.0005"], buckets["60.0"], buckets["+Inf"]) == (
        1,
        1,
        3,
        3,
        4,
    )
    values = {s.name: s.value for s in family.samples}
    assert values["stoop_event_to_acted_seconds_count"] == 4
    assert values["stoop_event_to_acted_seconds_sum"] == pytest.approx(100.000801)


def test_openmetrics_is_what_a_strict_parser_takes(everything: Metrics) -> None:
    body, content_type = render(everything.samples(), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = list(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call]
    assert len(families) == len(DEFINITIONS)


def test_a_reflex_of_another_version() -> None:
    body, _ = render({"of_the_future_total": [((), 1)], "rules": [((), 2)], "acts_total": []})
    assert b"future" not in body
    assert b"stoop_rules 2.0" in body
    assert b"acts_total" not in body


def test_nothing_yet() -> None:
    assert render({})[0] == b""
