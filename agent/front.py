"""The intakes' sink: counts and says what comes in, and hands the alerts to the responder."""

from __future__ import annotations

from collections.abc import Callable

from agent.own import Own
from stoop.alert import Alert
from stoop.errors import AlertError
from stoop.intake.sink import Peer
from stoop.metrics import Metrics
from stoop.respond import Responder

SAID_EVERY_NS = 10_000_000_000
"""A kind of refusal is said at most this often, with the count since: a broken sender must not fill the log."""

MAX_SHOWN_EVENTS = 100
"""With print_all_events: lines for one batch. A flood is counted, not printed whole."""


class Front:
    """Implements `stoop.intake.sink.Sink`."""

    def __init__(
        self,
        responder: Responder,
        metrics: Metrics,
        own: Own,
        say: Callable[..., None],
        mono_ns: Callable[[], int],
        look_at_clock: Callable[[], None],
    ) -> None:
        self._responder = responder
        self._metrics = metrics
        self._own = own
        self._say = say
        self._mono_ns = mono_ns
        self._look_at_clock = look_at_clock  # before each batch: a step must be known before an alert is judged by it
        self._senders: dict[int, int] = {}
        self._said: dict[tuple[str, str], tuple[int, int]] = {}
        self.connections: dict[str, int] = {}
        self.last_alert_mono_ns = mono_ns()
        self.last_by_intake: dict[str, int] = {}
        self.received = 0
        self.refused = 0
        self.show_all = False

    def opened(self, peer: Peer) -> None:
        """A sender is there."""
        self.connections[peer.kind] = self.connections.get(peer.kind, 0) + 1
        if peer.pid:
            self._senders[peer.pid] = self._senders.get(peer.pid, 0) + 1
            self._own.sender(peer.pid)

    def closed(self, peer: Peer) -> None:
        """It is gone."""
        self.connections[peer.kind] -= 1
        if peer.pid:
            self._senders[peer.pid] -= 1
            if not self._senders[peer.pid]:
                del self._senders[peer.pid]
                self._own.sender_gone(peer.pid)

    def taken(self, count: int, received_ns: int) -> None:
        """Counted before the sender has his answer: SIGKILL between the two must not lose them untold."""
        self._responder.taken(count, received_ns)

    def accept(
        self, alerts: list[Alert], received_ns: int, peer: Peer, settled: Callable[[], None] | None = None
    ) -> None:
        """Match and act."""
        self._look_at_clock()
        self._responder.accept(alerts, received_ns, peer.kind, settled)
        self.last_alert_mono_ns = self._mono_ns()
        self.last_by_intake[peer.kind] = received_ns
        self.received += len(alerts)
        if self.show_all:
            for alert in alerts[:MAX_SHOWN_EVENTS]:
                self._say("info", "event", rule=alert.rule, priority=alert.priority_text, output=alert.output)

    def refuse(self, error: AlertError, peer: Peer) -> None:
        """Counted; said at once, then at most every ten seconds a kind."""
        self.refused += 1
        self._metrics.inc("alerts_refused_total", (peer.kind, error.kind))
        key = (peer.kind, error.kind)
        at, unsaid = self._said.get(key, (0, 0))
        now = self._mono_ns()
        if at and now - at < SAID_EVERY_NS:
            self._said[key] = (at, unsaid + 1)
            return
        self._said[key] = (now, 0)
        self._say(
            "warning",
            "not an alert",
            intake=peer.kind,
            kind=error.kind,
            reason=error.reason,
            pid=peer.pid,
            more_since_last=unsaid,
        )
