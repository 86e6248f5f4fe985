"""Fakes for whoever tests against the intakes: a sink that remembers, and marks kept in memory."""

from __future__ import annotations

from collections.abc import Callable

import trio

from stoop.alert import Alert
from stoop.errors import AlertError
from stoop.intake.marks import FileMark
from stoop.intake.sink import Peer

# A test that waits longer than this for what must come at once has failed.
_WAIT_SECONDS = 10


class RecordingSink:
    """Remembers everything it is told. `on_accept` runs inside `accept`; `hold` keeps batches from settling."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.faults: list[AlertError] = []
        self.accepted: list[tuple[int, Peer, int]] = []  # alerts in the batch, from whom, received_ns
        self.refused: list[Peer] = []
        self.present: list[Peer] = []
        self.gone: list[Peer] = []
        self.on_accept: Callable[[], None] | None = None
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def rules(self) -> list[str]:
        return [alert.rule for alert in self.alerts]

    @property
    def kinds(self) -> list[str]:
        return [fault.kind for fault in self.faults]

    def opened(self, peer: Peer) -> None:
        self.present.append(peer)
        self._changed.unpark_all()

    def closed(self, peer: Peer) -> None:
        self.present.remove(peer)
        self.gone.append(peer)
        self._changed.unpark_all()

    def taken(self, count: int, received_ns: int) -> None:
        """Nothing to lose here."""

    def accept(
        self, alerts: list[Alert], received_ns: int, peer: Peer, settled: Callable[[], None] | None = None
    ) -> None:
        if self.on_accept is not None:
            self.on_accept()
        self.alerts.extend(alerts)
        self.accepted.append((len(alerts), peer, received_ns))
        if settled is not None:
            if self.hold:
                self.held.append(settled)
            else:
                settled()
        self._changed.unpark_all()

    def refuse(self, error: AlertError, peer: Peer) -> None:
        self.faults.append(error)
        self.refused.append(peer)
        self._changed.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once it holds; it is asked again after each thing told. Raises trio.TooSlowError."""
        with trio.fail_after(_WAIT_SECONDS):
            while not condition():
                await self._changed.park()

    async def until_alerts(self, count: int) -> None:
        """Return once so many alerts came."""
        await self.until(lambda: len(self.alerts) >= count)

    async def until_faults(self, count: int) -> None:
        """Return once so many refusals came."""
        await self.until(lambda: len(self.faults) >= count)


class RecordingWarn:
    """Remembers what was warned of."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []
        self._changed = trio.lowlevel.ParkingLot()

    def __call__(self, event: str, **fields: object) -> None:
        self.said.append((event, fields))
        self._changed.unpark_all()

    async def until_said(self, count: int) -> None:
        """Return once so much was said. Raises trio.TooSlowError."""
        with trio.fail_after(_WAIT_SECONDS):
            while len(self.said) < count:
                await self._changed.park()


class MemoryMarks:
    """Marks that live as long as the object; `committed` in the order they came."""

    def __init__(self) -> None:
        self.committed: list[FileMark] = []

    def load(self, path: str) -> FileMark | None:
        for mark in reversed(self.committed):
            if mark.path == path:
                return mark
        return None

    def commit(self, mark: FileMark) -> None:
        self.committed.append(mark)
