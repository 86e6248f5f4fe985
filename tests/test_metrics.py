"""The reflex's counters: what is counted, how it is bounded, and the form in which it travels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop import metrics, wire
from stoop.metrics import DEFINITIONS, LATENCY_BUCKETS, MAX_LABEL, MAX_SERIES, OTHER, Metrics, merge


def value(counts: Metrics, name: str, *labels: str) -> object:
    return dict(counts.samples()[name])[labels]


class TestDefinitions:
    def test_names_follow_prometheus_conventions(self) -> None:
        for name, definition in DEFINITIONS.items():
            assert name == definition.name
            assert name.endswith("_total") == (definition.type == "counter"), name
            assert bool(definition.buckets) == (definition.type == "histogram"), name
            assert definition.help.endswith("."), name

    def test_latencies_run_from_50_microseconds_to_a_minute(self) -> None:
        assert (LATENCY_BUCKETS[0], LATENCY_BUCKETS[-1]) == (50e-6, 60.0)
        assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))
        steps = ("received", "decided", "acted", "verified")
        assert all(DEFINITIONS[f"event_to_{step}_seconds"].buckets == LATENCY_BUCKETS for step in steps)

    def test_the_reference_names_each(self) -> None:
        text = metrics.reference()
        for name in DEFINITIONS:
            assert f"| `stoop_{name}` |" in text


class TestCounting:
    def test_counters_add_up(self) -> None:
        counts = Metrics()
        counts.inc("acts_total", ("process:kill", "done"))
        counts.inc("acts_total", ("process:kill", "done"), 2)
        counts.inc("acts_total", ("process:kill", "failed"))
        assert value(counts, "acts_total", "process:kill", "done") == 3
        assert value(counts, "acts_total", "process:kill", "failed") == 1

    def test_counters_without_labels_are_there_from_the_start(self) -> None:
        assert value(Metrics(), "queue_dropped_total") == 0
        assert "acts_total" not in Metrics().samples()

    def test_gauges_are_set_and_forgotten(self) -> None:
        counts = Metrics()
        counts.set("rule_disarmed", ("a",), 1)
        counts.set("rule_disarmed", ("a",), 0)
        counts.set("rule_disarmed", ("b",), 1)
        assert dict(counts.samples()["rule_disarmed"]) == {("a",): 0, ("b",): 1}
        counts.clear("rule_disarmed")
        assert "rule_disarmed" not in counts.samples()

    def test_buckets_hold_what_is_at_most_their_bound(self) -> None:
        counts = Metrics()
        for seconds in (50e-6, 51e-6, 60.0, 61.0, -1.0):
            counts.observe("event_to_acted_seconds", (), seconds)
        ((labels, (buckets, total)),) = counts.samples()["event_to_acted_seconds"]
        assert labels == ()
        assert (buckets[0], buckets[1], buckets[-2], buckets[-1]) == (2, 1, 1, 1)
        assert len(buckets) == len(LATENCY_BUCKETS) + 1
        assert total == pytest.approx(121.000101)

    @given(st.lists(st.floats(-1e6, 1e6)))
    def test_every_value_is_in_one_bucket_and_the_sum_never_falls(self, values: list[float]) -> None:
        counts = Metrics()
        last = 0.0
        for number, seconds in enumerate(values, 1):
            counts.observe("event_to_decided_seconds", (), seconds)
            ((_, (buckets, total)),) = counts.samples()["event_to_decided_seconds"]
            assert sum(buckets) == number
            assert total >= last
            last = total

    def test_a_snapshot_does_not_change_any_more(self) -> None:
        counts = Metrics()
        counts.observe("event_to_acted_seconds", (), 1)
        counts.inc("queue_dropped_total")
        before = counts.samples()
        counts.observe("event_to_acted_seconds", (), 1)
        counts.inc("queue_dropped_total")
        assert sum(before["event_to_acted_seconds"][0][1][0]) == 1
        assert before["queue_dropped_total"] == [((), 1)]

    def test_it_travels(self) -> None:
        counts = Metrics()
        counts.inc("acts_total", ("a", "b"))
        counts.observe("event_to_acted_seconds", (), 0.5)
        reply = wire.SnapshotReply(1, counts.samples(), True, {})
        (back,) = wire.FrameReader().feed(wire.encode(reply))
        assert isinstance(back, wire.SnapshotReply)
        assert back.samples == reply.samples


class TestBounds:
    def test_rules_above_the_maximum_are_counted_together(self) -> None:
        counts = Metrics()
        for number in range(MAX_SERIES + 10):
            counts.inc("alerts_matched_total", (f"rule {number}",))
            counts.set("rule_disarmed", (f"rule {number}",), 1)
        counts.inc("alerts_matched_total", ("rule 0",))
        series = dict(counts.samples()["alerts_matched_total"])
        assert len(series) == MAX_SERIES + 1
        assert series[(OTHER,)] == 10
        assert series[("rule 0",)] == 2
        assert len(counts.samples()["rule_disarmed"]) == MAX_SERIES + 1

    def test_long_names_are_cut(self) -> None:
        counts = Metrics()
        for _ in range(2):
            counts.inc("alerts_matched_total", ("x" * 1000,))
        assert counts.samples()["alerts_matched_total"] == [(("x" * MAX_LABEL,), 2)]

    def test_a_slip_in_the_program_is_noticed_at_once(self) -> None:
        with pytest.raises(KeyError):
            Metrics().inc("no_such_total")
        with pytest.raises(ValueError, match="has the labels"):
            Metrics().inc("acts_total", ("one",))
        with pytest.raises(ValueError, match="has the labels"):
            Metrics().observe("event_to_acted_seconds", ("one",), 1.0)


class TestMerge:
    def test_the_same_series_is_the_sum(self) -> None:
        into: dict[str, list[tuple[tuple[str, ...], object]]] = {"log_lines_dropped_total": [(("reflex",), 1)]}
        merge(into, {"log_lines_dropped_total": [(("helper",), 2), (("reflex",), 3)], "rules": [((), 4)]})
        assert into == {"log_lines_dropped_total": [(("reflex",), 4), (("helper",), 2)], "rules": [((), 4)]}
