"""What /metrics, /healthz and /readyz say, from the reflex's answers. `/healthz` can fail: it is about the reflex."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import trio

from agent.exposition import render
from agent.reflex_peer import ReflexPeer
from agent.serve_metrics import Request, Response
from stoop.metrics import merge

STUCK_SECONDS = 10.0
"""Without an answer for so long the reflex counts as stuck. It is asked every 5 s, and no stretch of it takes 1 s."""


class Pages:
    """The handler of the helper's HTTP server. `dropped`: log lines that the helper itself has lost."""

    def __init__(self, reflex: ReflexPeer, version: str, dropped: Callable[[], int]) -> None:
        self._reflex = reflex
        self._version = version
        self._dropped = dropped

    async def handle(self, request: Request) -> Response:
        """Answer one GET or HEAD."""
        if request.path == "/metrics":
            return await self._metrics(request.accept)
        if request.path == "/healthz":
            return self._health()
        if request.path == "/readyz":
            return await self._ready()
        return Response(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

    async def _metrics(self, accept: str) -> Response:
        """Counts of now; when the reflex does not answer its last ones, marked by `reflex_responding 0`."""
        reply = await self._reflex.ask()
        latest = reply or self._reflex.last
        samples = dict(latest.samples) if latest else {}
        samples["reflex_responding"] = [((), 1 if reply else 0)]
        samples["build_info"] = [((self._version,), 1)]
        merge(samples, {"log_lines_dropped_total": [(("helper",), self._dropped())]})
        body, content_type = render(samples, accept)
        return Response(HTTPStatus.OK, body, content_type)

    def _health(self) -> Response:
        silence = trio.current_time() - self._reflex.answered_at
        if silence <= STUCK_SECONDS:
            return _json(HTTPStatus.OK, {"status": "ok"})
        since = f"for {silence:.0f} s" if self._reflex.last else "since the helper started"
        return _json(
            HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failing", "reason": f"the reflex has not answered {since}"}
        )

    async def _ready(self) -> Response:
        reply = await self._reflex.ask()
        if reply is None:
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "reason": "the reflex does not answer"})
        status = HTTPStatus.OK if reply.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _json(status, {"ready": reply.ready, **reply.detail})


def _json(status: HTTPStatus, value: dict[str, Any]) -> Response:
    """ASCII only: a terminal may show it, and rule names are in it."""
    return Response(status, json.dumps(value, default=str).encode("ascii") + b"\n", "application/json")
