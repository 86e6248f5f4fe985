"""The helper as a real process on a real socketpair: what it serves over HTTP, metrics and health."""

from __future__ import annotations

import json
import socket

from stoop.wire import (
    Hello,
    RulesEnd,
    RulesSource,
    Serving,
    SnapshotAsk,
)
from tests.agent.conftest import Start


class TestMetrics:
    def test_the_reflex_s_counts_are_served(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.metrics.inc("acts_total", ("process:kill", "done"), 3)
        helper.reflex.metrics.inc("alerts_matched_total", ('a "quoted"\nrule',))
        helper.reflex.metrics.observe("event_to_acted_seconds", (), 0.0004)
        status, content_type, body = helper.get("/metrics")
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'stoop_acts_total{action="process:kill",outcome="done"} 3.0' in body
        assert r'stoop_alerts_matched_total{rule="a \"quoted\"\nrule"} 1.0' in body
        assert 'stoop_event_to_acted_seconds_bucket{le="0.0003"} 0.0' in body
        assert 'stoop_event_to_acted_seconds_bucket{le="0.0005"} 1.0' in body
        assert "stoop_reflex_responding 1.0" in body
        assert 'stoop_build_info{version="0.1.0"} 1.0' in body

    def test_openmetrics_when_asked(self, start: Start) -> None:
        helper = start()
        helper.greet()
        _, content_type, body = helper.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")

    def test_a_stuck_reflex_leaves_its_last_counts(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.metrics.inc("queue_dropped_total", n=5)
        helper.get("/metrics")
        helper.reflex.answers = False
        status, _, body = helper.get("/metrics")
        assert status == 200
        assert "stoop_reflex_responding 0.0" in body
        assert "stoop_queue_dropped_total 5.0" in body

    def test_a_port_in_use_is_told(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            helper = start()
            serving = helper.greet(port=taken.getsockname()[1])
        assert serving.port == 0
        assert "in use" in serving.error
        assert "metrics.port" in serving.error

    def test_a_port_that_an_earlier_helper_still_holds(self, start: Start) -> None:
        first, second = start(), start()
        port = first.greet().port
        second.reflex.send(Hello("node-1", "127.0.0.1", port, "json", "0.1.0"))
        assert first.end() == 0
        assert second.reflex.expect(Serving).port == port

    def test_no_address_no_server(self, start: Start) -> None:
        helper = start()
        helper.reflex.send(Hello("node-1", "", 0, "json", "0.1.0"), RulesSource(1, ()))
        helper.reflex.expect(RulesEnd)
        assert helper.end() == 0


class TestHealth:
    def test_healthy_and_ready(self, start: Start) -> None:
        helper = start()
        helper.greet()
        assert helper.get("/readyz")[0] == 200
        status, content_type, body = helper.get("/healthz")
        assert (status, content_type, json.loads(body)) == (200, "application/json", {"status": "ok"})

    def test_not_ready_says_why(self, start: Start) -> None:
        helper = start()
        helper.greet()
        helper.reflex.ready = False
        helper.reflex.detail = {"rules": "last reload rejected: \u202e", "intake": {"unix": "not listening"}}
        status, _, body = helper.get("/readyz")
        assert status == 503
        assert body.isascii()
        assert json.loads(body) == {"ready": False, **helper.reflex.detail}

    def test_a_reflex_that_never_answers_fails_both(self, start: Start) -> None:
        helper = start()
        helper.reflex.answers = False
        helper.greet()
        status, _, body = helper.get("/healthz")
        assert status == 503
        assert "has not answered since the helper started" in body
        status, _, body = helper.get("/readyz")
        assert status == 503
        assert "does not answer" in body

    def test_it_asks_by_itself(self, start: Start) -> None:
        helper = start()
        helper.reflex.expect(SnapshotAsk)
